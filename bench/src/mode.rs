//! The modes: the ways in which two pods can talk that a run compares.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    envoy::Envoy,
    figures::{BASELINE, Ground},
    report::ModeInfo,
    waypoint,
};

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Mode {
    /// Short, unique on its ground.
    pub(crate) name: String,
    pub(crate) ground: Ground,
    pub(crate) way: Way,
    pub(crate) about: String,
    /// Whether the quick run has it.
    quick: bool,
}

/// What is between the pods.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Nothing: plain TCP.
    Direct,
    /// weft's agents, one on each node.
    Weft {
        /// Whether two pods of one node go through the agent all the same.
        tunnel: bool,
    },
    /// weft's agents, and a waypoint between them.
    Waypoint(waypoint::Kind),
    /// A proxy beside each of the two apps.
    Sidecar(Sidecar),
}

impl Way {
    fn needs_envoy(&self) -> bool {
        matches!(
            self,
            Self::Sidecar(_) | Self::Waypoint(waypoint::Kind::Envoy { .. })
        )
    }
}

/// A proxy beside an app.
#[derive(Clone, Debug)]
pub(crate) enum Sidecar {
    Envoy {
        kind: Envoy,
        /// The program.
        binary: PathBuf,
    },
    Rival(Rival),
}

/// Another proxy, which the user brings: see [`CONTRACT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rival {
    pub(crate) name: String,
    pub(crate) command: String,
    /// Whether it carries nothing but HTTP.
    pub(crate) http_only: bool,
}

/// What a rival's command is promised, and what it must do. Part of `--help`.
pub(crate) const CONTRACT: &str = "\
A rival is any other proxy. Its command is run with `sh -c` twice, beside the client's app and beside the server's: as root,
in the pod's network namespace and cgroup. It must lead the pod's TCP connections through itself (for example by iptables),
print a line `ready` on its standard output, and run until it gets SIGTERM. Processor time and memory are counted of all its
processes. It finds in its environment:
  WEFT_BENCH_SIDE      client or server
  WEFT_BENCH_POD       the pod's IPv4 address
  WEFT_BENCH_PEER      the other pod's
  WEFT_BENCH_CERTS     a directory with cert.pem, key.pem (PKCS#8) and root.pem: an SVID of the pod, of the same authority
                       as weft's own
  WEFT_BENCH_IDENTITY  the SPIFFE ID in that certificate; WEFT_BENCH_PEER_IDENTITY the other pod's
  WEFT_BENCH_DIR       a directory for its files
NAME=COMMAND carries TCP; NAME:http=COMMAND carries HTTP only and is not asked for more.";

impl Mode {
    fn new(name: &str, ground: Ground, way: Way, quick: bool, about: &str) -> Self {
        Self {
            name: name.to_owned(),
            ground,
            way,
            about: about.to_owned(),
            quick,
        }
    }

    /// All of a run, in the order in which each round plays them.
    pub(crate) fn all(quick: bool, envoy: Option<&Path>, rivals: &[Rival]) -> Vec<Self> {
        let binary = envoy.unwrap_or(Path::new(""));
        let mut modes: Vec<_> = [two_nodes(binary), one_node(binary)].concat();
        modes.retain(|mode| mode.quick || !quick);
        modes.retain(|mode| envoy.is_some() || !mode.way.needs_envoy());
        modes.extend(rivals.iter().map(|rival| {
            let about = format!("a proxy beside each app: {}", rival.command);
            let way = Way::Sidecar(Sidecar::Rival(rival.clone()));
            Self::new(&rival.name, Ground::TwoNodes, way, true, &about)
        }));
        modes
    }

    /// Whether it carries nothing but HTTP.
    pub(crate) fn http_only(&self) -> bool {
        match &self.way {
            Way::Sidecar(Sidecar::Envoy { kind, .. }) => kind.is_http(),
            Way::Sidecar(Sidecar::Rival(rival)) => rival.http_only,
            Way::Waypoint(_) => true,
            Way::Direct | Way::Weft { .. } => false,
        }
    }

    /// As the report names it.
    pub(crate) fn info(&self) -> ModeInfo {
        ModeInfo {
            name: self.name.clone(),
            ground: self.ground,
            about: self.about.clone(),
        }
    }

    /// As a part of the names of its pods.
    pub(crate) fn slug(&self) -> String {
        let ground = match self.ground {
            Ground::TwoNodes => "far",
            Ground::OneNode => "near",
        };
        let name: String = self
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .collect();
        format!("{name}-{ground}")
    }
}

fn two_nodes(binary: &Path) -> Vec<Mode> {
    let mode = |name, way, quick, about| Mode::new(name, Ground::TwoNodes, way, quick, about);
    let envoy = |kind| envoy(kind, binary);
    vec![
        mode(BASELINE, Way::Direct, true, "no mesh: plain TCP between the pods"),
        mode(
            "envoy L4",
            envoy(Envoy::Tcp),
            true,
            "an Envoy beside each app as a TCP proxy, mutual TLS between them",
        ),
        mode(
            "envoy L7",
            envoy(Envoy::http(2, false)),
            true,
            "an Envoy beside each app with an HTTP connection manager and one route, HTTP/2 and mutual TLS between them",
        ),
        mode(
            "envoy L7 h1",
            envoy(Envoy::http(1, false)),
            false,
            "the same with HTTP/1.1 between them",
        ),
        mode(
            "envoy L7 log",
            envoy(Envoy::http(2, true)),
            false,
            "as envoy L7, with an access log on both sides",
        ),
        mode(
            "weft",
            Way::Weft { tunnel: false },
            true,
            "weft's agents, one on each node, mutual TLS between them, access log on",
        ),
        mode(
            "weft L7",
            Way::Waypoint(waypoint::Kind::Weft { routes: 1 }),
            true,
            "weft's agents with weft's waypoint between them and one route, access log on",
        ),
        mode(
            "weft L7 1,000",
            Way::Waypoint(waypoint::Kind::Weft { routes: 1000 }),
            false,
            "the same with a thousand routes",
        ),
        mode(
            "envoy waypoint",
            Way::Waypoint(waypoint::Kind::Envoy {
                binary: binary.to_owned(),
            }),
            true,
            "weft's agents with an Envoy as waypoint between them and one route, no access log",
        ),
    ]
}

fn envoy(kind: Envoy, binary: &Path) -> Way {
    Way::Sidecar(Sidecar::Envoy {
        kind,
        binary: binary.to_owned(),
    })
}

fn one_node(binary: &Path) -> Vec<Mode> {
    let mode = |name, way, quick, about| Mode::new(name, Ground::OneNode, way, quick, about);
    vec![
        mode(
            BASELINE,
            Way::Direct,
            true,
            "no mesh: plain TCP between two pods of one node",
        ),
        mode(
            "envoy L4",
            envoy(Envoy::Tcp, binary),
            false,
            "an Envoy beside each app as a TCP proxy, mutual TLS between them",
        ),
        mode(
            "weft tunnel",
            Way::Weft { tunnel: true },
            false,
            "through weft's agent, as if on two nodes (sameNode: tunnel)",
        ),
        mode(
            "weft",
            Way::Weft { tunnel: false },
            true,
            "from app to app in the kernel, once weft's agent has judged the first connection (the default)",
        ),
    ]
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.ground)
    }
}

impl FromStr for Rival {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not NAME=COMMAND or NAME:http=COMMAND");
        let (name, command) = text.split_once('=').ok_or_else(wrong)?;
        let (name, http_only) = match name.strip_suffix(":http") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let simple = |c: char| c.is_ascii_alphanumeric() || " -_.".contains(c);
        if name.is_empty() || command.is_empty() || name.len() > 16 || !name.chars().all(simple) {
            return Err(format!(
                "{}: NAME has up to 16 letters, digits, spaces, `-`, `_` and `.`, and COMMAND is not empty",
                wrong()
            ));
        }
        if two_nodes(Path::new("")).iter().any(|mode| mode.name == name) {
            return Err(format!(
                "`{name}` is a mode of weft-bench itself: choose another name"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            command: command.to_owned(),
            http_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_baseline_is_first() {
        let modes = Mode::all(false, Some(Path::new("envoy")), &[]);
        for ground in [Ground::TwoNodes, Ground::OneNode] {
            let names: Vec<_> = modes
                .iter()
                .filter(|mode| mode.ground == ground)
                .map(|mode| &mode.name)
                .collect();
            assert_eq!(names[0], BASELINE);
            for name in &names {
                assert_eq!(names.iter().filter(|other| other == &name).count(), 1, "{name}");
            }
        }
    }

    #[test]
    fn what_a_user_brings_is_read() {
        let rival: Rival = "linkerd=./run --port 4143 --x=y".parse().unwrap();
        assert_eq!((rival.name.as_str(), rival.http_only), ("linkerd", false));
        assert_eq!(rival.command, "./run --port 4143 --x=y");
        assert!("proxy:http=x".parse::<Rival>().unwrap().http_only);
        for wrong in ["x", "=x", "x=", "weft=x", "a/b=x", "a name that is too long=x"] {
            assert!(wrong.parse::<Rival>().is_err(), "{wrong}");
        }
        let modes = Mode::all(true, None, &[rival]);
        assert!(modes.iter().any(|mode| mode.name == "linkerd"));
    }
}
