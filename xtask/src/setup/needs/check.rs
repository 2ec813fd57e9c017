//! Whether what is needed is there.

use std::path::Path;

use super::Check;
use crate::shell;

impl Check {
    /// What was found.
    pub(crate) fn found(&self) -> Option<String> {
        match self {
            Self::Program(name) => shell::find(name).map(|path| path.display().to_string()),
            Self::File(path) => path.is_file().then(|| path.display().to_string()),
            Self::Cargo(name) => {
                shell::ask("cargo", &[name, "--version"]).map(|version| version.trim().to_owned())
            }
            Self::Header(name) => {
                Some(format!("/usr/include/{name}")).filter(|path| Path::new(path).exists())
            }
            Self::Module(name) => {
                let python = Path::new("/usr/bin/python3");
                shell::ask(python, &["-c", &format!("import {name}; print({name}.__file__)")])
                    .map(|path| path.trim().to_owned())
            }
            Self::Version(name, version) => {
                let path = shell::find(name)?;
                let said = shell::ask(&path, &["--version"])?;
                said.split_whitespace()
                    .any(|word| word == *version)
                    .then(|| format!("{} ({})", path.display(), said.trim()))
            }
            Self::RustSource => rust_source_found(),
            Self::BpfLinker(llvm) => bpf_linker_found(*llvm),
            Self::All(checks) => {
                let found: Option<Vec<_>> = checks.iter().map(Self::found).collect();
                found.map(|found| found.join(", "))
            }
        }
    }
}

fn rust_source_found() -> Option<String> {
    let toolchains: [&[&str]; 3] = [
        &["rustc"],
        &["rustup", "run", "nightly", "rustc"],
        &["/usr/bin/rustc"],
    ];
    toolchains.iter().find_map(|words| {
        let (program, args) = words.split_first()?;
        let sysroot = shell::ask(program, &[args, &["--print", "sysroot"]].concat())?;
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
        library
            .join("core/src/lib.rs")
            .exists()
            .then(|| library.display().to_string())
    })
}

fn bpf_linker_found(llvm: u32) -> Option<String> {
    let path = shell::find("bpf-linker")?;
    let version = shell::ask(&path, &["--version"])?;
    let linked = shell::ask("ldd", &[path.to_str()?])
        .as_deref()
        .and_then(llvm_linked);
    // A binary with LLVM inside does not say which; the published ones have the newest.
    (linked.unwrap_or(llvm) >= llvm).then(|| format!("{} ({})", path.display(), version.trim()))
}

/// The LLVM that a program is linked to: the 22 in `libLLVM.so.22.1 => …`, `libLLVM-22.so.1 => …`.
pub(super) fn llvm_linked(ldd: &str) -> Option<u32> {
    let name = ldd
        .split_whitespace()
        .find_map(|word| word.strip_prefix("libLLVM"))?;
    name.split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty())?
        .parse()
        .ok()
}
