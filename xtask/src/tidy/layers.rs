//! Imports of the agent go down only. The table is the one of ARCHITECTURE.md; tests may look anywhere.

use super::{
    Finding,
    paths::{self, Named},
    source::Source,
};

/// The modules of `agent/src`, the highest layer first; modules of one layer do not see each other.
const LAYERS: [&[&str]; 9] = [
    &["main", "cli", "args"],
    &["node", "waypoint", "controller"],
    &["limits", "source"],
    &["hbone", "feed", "svid", "kernel", "telemetry", "admin", "dns"],
    &["manifests"],
    &["cluster"],
    &["rpc"],
    &["net"],
    &["mesh"],
];

/// Who may look sideways, and why.
const SIDEWAYS: [(&str, &str, &str); 5] = [
    ("main", "args", "parses"),
    ("main", "cli", "runs what was asked for"),
    ("cli", "args", "each command's own arguments"),
    ("args", "cli", "a command's arguments live beside it"),
    ("admin", "telemetry", "serves metrics and status"),
];

/// Only these modules may use a crate.
const CRATES: [(&str, &[&str], &str); 1] = [(
    "agent_common",
    &["kernel"],
    "the layout of maps is the kernel module's: give callers a type of its own",
)];

/// What `mesh`, being pure, may not name.
const IMPURE: [&[&str]; 14] = [
    &["tokio"],
    &["kube"],
    &["k8s_openapi"],
    &["aya"],
    &["libc"],
    &["rustix"],
    &["std", "env"],
    &["std", "fs"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "os"],
    &["std", "net", "TcpStream"],
    &["std", "net", "TcpListener"],
    &["std", "net", "UdpSocket"],
];

/// Checks one file; only the agent has layers.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let Some(own) = source.path.strip_prefix("agent/src/") else {
        return Vec::new();
    };
    let own = module_path(own);
    let mut findings = Vec::new();
    for named in paths::all(source)
        .iter()
        .filter(|named| !source.is_test(named.line))
    {
        let verdict = upward(&own, named)
            .or_else(|| foreign(&own, named))
            .or_else(|| impure(&own, named));
        if let Some((what, mend)) = verdict {
            findings.push(Finding {
                path: source.path.clone(),
                line: named.line,
                what,
                mend,
            });
        }
    }
    findings.extend(without_layer(source));
    findings.dedup();
    findings
}

type Verdict = Option<(String, String)>;

/// `node/outbound.rs` is `["node", "outbound"]`.
fn module_path(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/')
        .filter(|part| *part != "lib")
        .map(str::to_owned)
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn upward(own: &[String], named: &Named) -> Verdict {
    let (from, to) = (own.first()?.clone(), top_module(own, named)?);
    let (above, below) = (layer(&from)?, layer(&to)?);
    let sideways = SIDEWAYS
        .iter()
        .any(|(a, b, _)| (*a, *b) == (from.as_str(), to.as_str()));
    if from == to || above < below || sideways {
        return None;
    }
    let mend = format!(
        "imports go down only ({}): move what is shared to a lower layer, or hand it in as an argument",
        LAYERS.map(|modules| modules.join(" ")).join(" -> ")
    );
    Some((format!("`{from}` uses `{to}`"), mend))
}

/// The module right under the crate's root that a path leads to.
fn top_module(own: &[String], named: &Named) -> Option<String> {
    let mut base: Vec<_> = own.to_vec();
    base.resize(own.len() + named.modules, "inline".to_owned());
    let mut segments = named.segments.iter().map(String::as_str).peekable();
    match segments.next()? {
        "crate" => base.clear(),
        // The binary sees the library by its name.
        "weft" if own == ["main"] => base.clear(),
        "self" => {}
        "super" => {
            base.pop();
            while segments.next_if_eq(&"super").is_some() {
                base.pop();
            }
        }
        _ => return None,
    }
    base.into_iter()
        .next()
        .or_else(|| segments.next().map(str::to_owned))
}

fn foreign(own: &[String], named: &Named) -> Verdict {
    let (name, _, mend) = CRATES.iter().find(|(name, users, _)| {
        named.segments.first().is_some_and(|first| first == name)
            && !own.first().is_some_and(|module| users.contains(&module.as_str()))
    })?;
    Some((
        format!(
            "`{}` uses `{name}`",
            own.first().map_or("the root", String::as_str)
        ),
        (*mend).to_owned(),
    ))
}

fn impure(own: &[String], named: &Named) -> Verdict {
    if own.first().is_none_or(|module| module != "mesh") {
        return None;
    }
    let path: Vec<_> = named.segments.iter().map(String::as_str).collect();
    let clock = matches!(path.as_slice(), [.., "Instant" | "SystemTime", "now"]);
    (clock || IMPURE.iter().any(|prefix| path.starts_with(prefix))).then(|| {
        let mend = "mesh is pure: clocks, draws and the answers of the system come in as arguments";
        (format!("`mesh` names `{}`", path.join("::")), mend.to_owned())
    })
}

/// A module of the root that the table does not know would be checked by nobody.
fn without_layer(source: &Source) -> Vec<Finding> {
    let declares = source.path == "agent/src/lib.rs";
    let modules = (0..source.tokens.len()).filter(|at| declares && source.matches(*at, &["mod"]));
    let names = modules.filter_map(|at| source.tokens.get(at + 1));
    names
        .filter(|name| layer(&name.word).is_none())
        .map(|name| Finding {
            path: source.path.clone(),
            line: name.line,
            what: format!("`{}` has no layer", name.word),
            mend: "add it to LAYERS in xtask/src/tidy/layers.rs and to ARCHITECTURE.md".into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expect: &[&str]) {
        let found = check(&Source::new(format!("agent/src/{path}"), text.into()));
        let found: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(found, expect, "{path}: {text}");
    }

    #[test]
    fn imports_go_down_only() {
        check_one(
            "node/outbound.rs",
            "use crate::{mesh::Flow, net, hbone::Pool};",
            &[],
        );
        check_one("net/tls.rs", "use crate::mesh::SpiffeId;", &[]);
        check_one("mesh/route.rs", "use crate::net::dial;", &["`mesh` uses `net`"]);
        check_one(
            "net/copy.rs",
            "use crate::{mesh, node::{self}};",
            &["`net` uses `node`"],
        );
        check_one(
            "hbone/pool.rs",
            "fn f() { crate::svid::x() }",
            &["`hbone` uses `svid`"],
        );
        check_one("admin.rs", "use crate::telemetry::Metrics;", &[]);
        check_one(
            "telemetry/mod.rs",
            "use crate::admin::Source;",
            &["`telemetry` uses `admin`"],
        );
        check_one("main.rs", "use weft::{args, cli, node};", &[]);
        check_one("cli/mod.rs", "use crate::main::x;", &["`cli` uses `main`"]);
    }

    #[test]
    fn the_root_is_reached_through_super_too() {
        check_one("mesh/route.rs", "use super::Service;", &[]);
        check_one(
            "mesh/route.rs",
            "use super::super::net::dial;",
            &["`mesh` uses `net`"],
        );
        check_one("net.rs", "use super::node::Node;", &["`net` uses `node`"]);
        check_one("net.rs", "mod x { use super::node; }", &[]);
        check_one(
            "net.rs",
            "mod x { use super::super::node; }",
            &["`net` uses `node`"],
        );
    }

    #[test]
    fn tests_and_words_are_not_imports() {
        check_one(
            "mesh/route.rs",
            "#[cfg(test)]\nmod tests {\nuse crate::feed::file;\n}",
            &[],
        );
        check_one(
            "mesh/route.rs",
            "// crate::node\nfn f() -> &'static str { \"crate::node\" }",
            &[],
        );
    }

    #[test]
    fn mesh_is_pure() {
        check_one("mesh/flow.rs", "use std::time::SystemTime;", &[]);
        check_one(
            "mesh/flow.rs",
            "fn f() { SystemTime::now(); }",
            &["`mesh` names `SystemTime::now`"],
        );
        check_one(
            "mesh/flow.rs",
            "use tokio::sync::watch;",
            &["`mesh` names `tokio::sync::watch`"],
        );
        check_one(
            "mesh/flow.rs",
            "use std::{fs, net::{IpAddr, TcpStream}};",
            &["`mesh` names `std::fs`", "`mesh` names `std::net::TcpStream`"],
        );
        check_one("net/socket.rs", "use tokio::net::TcpStream;", &[]);
    }

    #[test]
    fn only_kernel_knows_the_maps() {
        check_one("kernel/maps.rs", "use agent_common::PodKey;", &[]);
        check_one(
            "node/mod.rs",
            "use agent_common::PodKey;",
            &["`node` uses `agent_common`"],
        );
    }

    #[test]
    fn every_module_has_a_layer() {
        check_one("lib.rs", "pub mod mesh;\nmod misc;", &["`misc` has no layer"]);
    }
}
