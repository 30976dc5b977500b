//! What tests/install has put in place, and what is built from tests/servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Packages of Node and Python.
pub fn servers() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    assert!(path.join("stamp").is_file(), "{} is missing: tests/install makes it", path.display());
    path
}

/// A file of tests/servers.
pub fn source(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name);
    assert!(path.is_file(), "{}", path.display());
    path.to_str().unwrap().to_owned()
}

/// A C program of tests/servers, for one libc.
fn build_c(name: &str, compiler: &str, more: &[&str]) -> String {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{compiler}{}", more.concat()));
    let output = program.to_str().unwrap();
    let made = Command::new(compiler)
        .args(["-O1", "-Wall", "-Werror", "-pthread", "-o", output, &source(&format!("{name}.c"))])
        .args(more)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error} (tests/install)"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    output.to_owned()
}

fn build(compiler: &str, more: &[&str]) -> String {
    build_c("server", compiler, more)
}

pub fn c_server() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| build("cc", &[]))
}

pub fn musl_server() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| build("musl-gcc", &[]))
}

pub fn static_server() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| build("cc", &["-static"]))
}

/// The C server, linked statically and loaded at any address.
pub fn static_pie_server() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| build("cc", &["-static-pie"]))
}

/// The C program that does what few servers do, linked statically.
pub fn rare_server() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| build_c("rare", "cc", &["-static"]))
}

/// The C server, linked statically with glibc and with musl.
pub fn static_servers() -> &'static [String; 2] {
    static BUILT: OnceLock<[String; 2]> = OnceLock::new();
    BUILT.get_or_init(|| [static_server().to_owned(), build("musl-gcc", &["-static"])])
}

/// The program that asks its listening socket, with glibc (its calls fortified, as distributions build) and with musl.
pub fn listener_programs() -> &'static [String; 2] {
    static BUILT: OnceLock<[String; 2]> = OnceLock::new();
    let built = || [build_c("listener", "cc", &["-D_FORTIFY_SOURCE=2"]), build_c("listener", "musl-gcc", &[])];
    BUILT.get_or_init(built)
}

/// The program that runs sequences of calls, with glibc and with musl.
pub fn step_programs() -> &'static [String; 2] {
    static BUILT: OnceLock<[String; 2]> = OnceLock::new();
    BUILT.get_or_init(|| [build_c("steps", "cc", &[]), build_c("steps", "musl-gcc", &[])])
}

/// A key and a certificate for 127.0.0.1, in a directory.
pub fn certificate(dir: &Path) {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=127.0.0.1", "-keyout", &file("key.pem"), "-out", &file("cert.pem")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
