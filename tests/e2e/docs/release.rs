//! What a release is made of: the workflow, the packages, the crate.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::ROOT;
use crate::support::install_dir;

#[test]
fn the_workflow_is_valid_and_runs_what_is_here() {
    let text = std::fs::read_to_string(format!("{ROOT}/.github/workflows/release.yml")).unwrap();
    let workflow: Value = serde_saphyr::from_str(&text).unwrap();
    let mut runs = Vec::new();
    for (name, job) in workflow["jobs"].as_object().unwrap() {
        assert!(job["runs-on"].is_string() && job["timeout-minutes"].is_u64(), "{name}");
        for step in job["steps"].as_array().unwrap() {
            assert!(step["uses"].is_string() != step["run"].is_string(), "{name}: {step}");
            runs.extend(step["run"].as_str().map(str::to_owned));
        }
    }
    for script in ["tests/run", "packaging/build dist"] {
        assert!(runs.iter().any(|run| run == script), "{script}: {runs:?}");
        assert!(Path::new(ROOT).join(script.split(' ').next().unwrap()).is_file());
    }
    for run in &runs {
        let checked = Command::new("bash").args(["-n", "-c", run]).output().unwrap();
        assert!(checked.status.success(), "{run}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    // Nothing may write but the job that publishes.
    assert_eq!(workflow["permissions"]["contents"], "read");
}

#[test]
fn the_crate_has_what_a_build_needs_and_no_tests() {
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(["package", "--list", "--allow-dirty", "--offline"]).current_dir(ROOT).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("warning"), "{said}");
    let listed = String::from_utf8(output.stdout).unwrap();
    let listed: Vec<&str> = listed.lines().collect();
    let wanted = [
        "build.rs",
        "Cargo.lock",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "README.md",
        "src/main.rs",
        "src/admin/page/page.html",
    ];
    assert!(wanted.iter().all(|file| listed.contains(file)), "{listed:?}");
    for place in ["tests/", "bench/", "docs/pictures/"] {
        assert!(!listed.iter().any(|file| file.starts_with(place)), "{listed:?}");
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn packages_have_program_unit_pages_completions_and_right_checksums() {
    let dir = install_dir();
    let build = Command::new(format!("{ROOT}/packaging/build"))
        .args(["--binary", env!("CARGO_BIN_EXE_roundsman")])
        .arg(dir.path())
        .env("DEBEMAIL", "roundsman@example.org")
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let sh = |script: &str| {
        let output = Command::new("bash").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{script}: {text}");
        text
    };
    let checked = sh("sha256sum -c SHA256SUMS");
    assert_eq!(checked.matches(": OK").count(), 2, "{checked}");
    sh(
        "dpkg-deb -x *.deb root && tar xzf *.tar.gz && (cd root && dpkg-deb -e ../*.deb && md5sum -c --quiet DEBIAN/md5sums)",
    );
    for program in ["root/usr/bin/roundsman", "roundsman-*/roundsman"] {
        assert_eq!(sh(&format!("{program} --version")).trim(), format!("roundsman {}", env!("CARGO_PKG_VERSION")));
    }
    sh("man -l root/usr/share/man/man1/roundsman-quit.1.gz | grep -q 'End the daemon'");
    sh("bash -n root/usr/share/bash-completion/completions/roundsman");
    for file in
        ["zsh/vendor-completions/_roundsman", "fish/vendor_completions.d/roundsman.fish", "doc/roundsman/copyright"]
    {
        sh(&format!("test -s root/usr/share/{file}"));
    }
    assert!(sh("cat root/lib/systemd/system/roundsman.service").contains("ExecStart=/usr/bin/roundsman -c"));
    sh("for script in root/DEBIAN/{postinst,prerm,postrm}; do sh -n $script; done");
    // Debian's own judgement. This binary is not the static one.
    let unmeant = "initial-upload-closes-no-bugs,missing-dependency-on-libc";
    sh(&format!("lintian --allow-root --fail-on error,warning --suppress-tags {unmeant} *.deb"));
}
