//! The Debian package, installed where nothing of ours has been; and units, run by a real systemd.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::podman::{Container, DEBIAN, Network, ROOT, SYSTEMD, succeeded};
use crate::support::{eventually, seconds};

/// Made once. The directory outlives the tests, and the next run makes it again.
static PACKAGES: LazyLock<String> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let _ = std::fs::remove_dir_all(&dir);
    succeeded(Command::new(format!("{ROOT}/packaging/build")).arg(&dir).output().unwrap());
    format!("{}:/dist:ro", dir.display())
});

#[test]
#[ignore = "long: tests/run --all"]
fn the_package_installs_runs_and_leaves_nothing() {
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
    let said = Container::run(&network, &["--volume", &PACKAGES, "--env", &version, DEBIAN, "bash", "-c", script]);
    assert!(said.contains(" of 2 online") && said.ends_with("all is well\n"), "{said}");
}

/// A machine with systemd and the package.
struct Machine {
    container: Container,
    _scripts: TempDir,
}

impl Machine {
    /// With a shell script at /scripts/test.
    fn start(network: &Network, script: &str) -> Self {
        let scripts = tempfile::tempdir().unwrap();
        std::fs::write(scripts.path().join("test"), script).unwrap();
        let volume = format!("{}:/scripts:ro", scripts.path().display());
        let words = ["--systemd", "always", "--volume", &PACKAGES, "--volume", &volume, SYSTEMD];
        let container = Container::start(network, &[&words[..], &["/lib/systemd/systemd"]].concat());
        let machine = Self { container, _scripts: scripts };
        eventually("the machine is up", seconds(60), || {
            let state = machine.container.exec(&["systemctl", "is-system-running"]);
            String::from_utf8_lossy(&state.stdout).starts_with("running").then_some(())
        });
        succeeded(machine.container.exec(&["sh", "-c", "dpkg -i /dist/*.deb"]));
        machine
    }

    #[track_caller]
    fn passes(&self, user: &[&str]) -> String {
        let said = succeeded(self.container.exec(&[user, &["bash", "-e", "/scripts/test"]].concat()));
        assert!(said.ends_with("all is well\n"), "{said}");
        said
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn systemd_runs_the_unit_that_is_printed_for_a_daemon() {
    let script = r#"export XDG_STATE_HOME=/tmp
        mkdir -p /srv/shop
        cd /srv/shop
        roundsman -d -l 127.0.0.1:8080 -i 2 -n web --env 'ODD=a b%c$d"e\f' -- roundsman demo-server
        # The commands of its first lines; this is root.
        sudo() { "$@"; }
        line=$(roundsman unit web | sed -n '1s/^# //p')
        eval "${line/…/web}"
        roundsman quit web
        systemctl enable --now roundsman-web
        cd /
        systemctl status --no-pager roundsman-web
        server=$(roundsman ls --json | grep -oE '"(server_)?pid":[0-9]+' | tail -n 1 | cut -d: -f2)
        tr '\0' '\n' </proc/$server/environ | grep -xF 'ODD=a b%c$d"e\f'
        test "$(readlink /proc/$server/cwd)" = /srv/shop
        systemctl reload roundsman-web
        roundsman events | tail -n 1
        # A daemon that is killed comes again.
        kill -9 "$(systemctl show -P MainPID roundsman-web)"
        for i in $(seq 100); do test "$(systemctl show -P NRestarts roundsman-web)" = 1 && roundsman health && break; sleep .1; done
        roundsman health
        systemctl disable --now roundsman-web
        ! roundsman ls
        echo all is well
    "#;
    let network = Network::new();
    let said = Machine::start(&network, script).passes(&[]);
    for wanted in ["Active: active (running)", "Status: \"web: ", "web reloaded took="] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[test]
#[ignore = "long: tests/run --all"]
fn systemd_runs_the_unit_of_a_user_without_a_login() {
    let script = r#"export XDG_RUNTIME_DIR=/run/user/1000
        cd
        roundsman -d -l 127.0.0.1:8080 -i 2 -n api -- roundsman demo-server
        # As its first line says, where there is no such directory yet.
        line=$(roundsman unit --user api | sed -n '1s/^# //p')
        eval "${line/…/api}"
        roundsman quit
        systemctl --user enable --now roundsman-api
        systemctl --user status --no-pager roundsman-api
        roundsman ls
        systemctl --user reload roundsman-api
        systemctl --user disable --now roundsman-api
        ! roundsman ls
        echo all is well
    "#;
    let network = Network::new();
    let machine = Machine::start(&network, script);
    let add = "useradd --create-home --uid 1000 alice && loginctl enable-linger alice";
    succeeded(machine.container.exec(&["sh", "-c", add]));
    eventually("her systemd", seconds(30), || {
        machine.container.exec(&["test", "-S", "/run/user/1000/bus"]).status.success().then_some(())
    });
    let said = machine.passes(&["runuser", "-u", "alice", "--", "env", "HOME=/home/alice"]);
    assert!(said.contains("Active: active (running)"), "{said}");
}

#[test]
#[ignore = "long: tests/run --all"]
fn systemd_runs_the_unit_of_the_package_as_a_user_of_its_own_and_restarts_it_when_that_is_upgraded() {
    let script = r#"cat >/etc/roundsman/roundsman.toml <<'END'
[service.web]
listen = "127.0.0.1:8080"
instances = 2
command = ["roundsman", "demo-server"]
END
        systemctl enable --now roundsman
        test "$(stat -c %U /proc/"$(systemctl show -P MainPID roundsman)")" = roundsman
        # Root sees it, beside a daemon of its own.
        export XDG_STATE_HOME=/tmp
        roundsman -d --no-listen -i 1 -n own -- sleep 1000
        roundsman ls
        roundsman ls | grep -q '^own ' && roundsman ls | grep -q '^web '
        roundsman reload web
        roundsman quit own
        systemctl reload roundsman
        before=$(systemctl show -P MainPID roundsman)
        dpkg -i /dist/*.deb
        systemctl is-active roundsman
        test "$(systemctl show -P MainPID roundsman)" != "$before"
        roundsman health
        dpkg --purge roundsman
        ! systemctl is-active roundsman
        test ! -e /etc/systemd/system/multi-user.target.wants/roundsman.service
        echo all is well
    "#;
    let network = Network::new();
    let said = Machine::start(&network, script).passes(&[]);
    assert!(said.contains("web "), "{said}");
}
