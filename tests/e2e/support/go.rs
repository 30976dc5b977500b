//! Programs in Go and Rust that are built from tests/servers. What is built is kept.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use super::source;

/// Compilers do not share their output with each other or with a server that runs it.
static BUILDING: Mutex<()> = Mutex::new(());

fn made(command: &mut Command) {
    let made = command.output().unwrap_or_else(|error| panic!("{command:?}: {error} (tests/install --all)"));
    assert!(made.status.success(), "{command:?}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A program of tests/servers/go, built with the libraries of the distribution's packages.
pub fn go_program(name: &str) -> String {
    build_go(name, name, "0", &[])
}

/// A program that is linked against libc, with options for the compiler.
pub fn cgo_program(name: &str, output: &str, options: &[&str]) -> String {
    build_go(name, output, "1", options)
}

/// The `go` command as the tests use it.
pub fn go() -> Command {
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
    go.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache"));
    go
}

fn build_go(name: &str, output: &str, cgo: &str, options: &[&str]) -> String {
    let _building = BUILDING.lock();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("go-{output}"));
    let mut go = go();
    go.env("CGO_ENABLED", cgo).arg("build").args(options).arg("-o").arg(&program);
    made(go.arg(source(&format!("go/{name}.go"))));
    program.to_str().unwrap().to_owned()
}

/// The server in Rust that blocks in accept(2), linked statically.
pub fn static_rust() -> String {
    let _building = BUILDING.lock();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rust-static");
    let mut rustc = Command::new("rustc");
    made(rustc.args(["-C", "target-feature=+crt-static", "-o"]).arg(&program).arg(source("rust/server.rs")));
    program.to_str().unwrap().to_owned()
}

/// The server in Rust with tokio, linked statically.
pub fn static_tokio() -> String {
    let _building = BUILDING.lock();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokio");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--quiet", "--manifest-path", &source("rust/tokio/Cargo.toml")]);
    made(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env("CARGO_TARGET_DIR", &target));
    target.join("debug/server").to_str().unwrap().to_owned()
}
