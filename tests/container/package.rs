//! The Debian package, installed where nothing of ours has been.

use std::process::Command;

use crate::podman::{Container, Network, ROOT, ready, succeeded};

#[test]
#[ignore = "long: tests/run --all"]
fn the_package_installs_runs_and_leaves_nothing() {
    ready();
    let dir = tempfile::tempdir().unwrap();
    succeeded(Command::new(format!("{ROOT}/packaging/build")).arg(dir.path()).output().unwrap());
    let volume = format!("{}:/dist:ro", dir.path().display());
    let script = "set -e
        dpkg -i /dist/*.deb
        test \"$(roundsman --version)\" = \"roundsman $VERSION\"
        getent passwd roundsman
        test -s /usr/share/man/man1/roundsman.1.gz || echo 'slim images leave manual pages out'
        bash -n /usr/share/bash-completion/completions/roundsman
        export XDG_STATE_HOME=/tmp
        roundsman -d -l 127.0.0.1:8080 -i 2 -n web -- roundsman demo-server
        roundsman health
        roundsman unit web | grep 'ExecStart=/usr/bin/roundsman -l'
        roundsman quit
        # The same again is an upgrade.
        dpkg -i /dist/*.deb
        dpkg --purge roundsman
        test ! -e /usr/bin/roundsman -a ! -e /etc/roundsman
        echo all is well";
    let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
    let network = Network::new();
    let said = Container::run(
        &network,
        &["--volume", &volume, "--env", &version, "localhost/debian:bookworm-slim", "bash", "-c", script],
    );
    assert!(said.contains(" of 2 online") && said.ends_with("all is well\n"), "{said}");
}
