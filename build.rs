//! Builds the preload library, which the program carries within itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/direct/preload");
    println!("cargo::rerun-if-changed=src/abi");
    println!("cargo::rerun-if-changed=src/exchange");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is set by cargo"));
    let out = PathBuf::from(variable("OUT_DIR")).join("preload.so");
    // What cargo links with for this target, where that is not rustc's own choice.
    let linker = env::var("RUSTC_LINKER").map(|linker| format!("-Clinker={linker}"));
    let status = Command::new(variable("RUSTC"))
        .args(linker)
        .args(["--edition=2024", "--crate-type=cdylib", "--crate-name=roundsman_preload"])
        .args(["--target", &variable("TARGET")])
        .args(["-Copt-level=2", "-Cpanic=abort", "-Clto=fat", "-Ccodegen-units=1", "-Cstrip=symbols"])
        // No DT_NEEDED: whichever libc the server has is the one that is there.
        .args(["-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles", "-Clink-arg=-Wl,--hash-style=both,-z,now"])
        .arg("-o")
        .arg(&out)
        .arg("src/direct/preload/lib.rs")
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => panic!("the preload library was not built: {other:?}"),
    }
}
