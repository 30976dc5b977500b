//! Images and containers, by buildah and podman with a storage of our own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::support::{eventually, seconds};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Base images and ours, kept between runs.
static STORAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let storage = Path::new(env!("CARGO_TARGET_TMPDIR")).join("containers");
    let made = Command::new(format!("{ROOT}/tests/container/bases")).arg(&storage).status().unwrap();
    assert!(made.success(), "no base images");
    storage
});

/// Our image, which takes minutes.
static OURS: LazyLock<()> = LazyLock::new(|| {
    let words =
        ["bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "-t", "localhost/roundsman", ROOT];
    let built = buildah().args(words).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
});

/// Waits until the images are there.
pub fn ready() {
    LazyLock::force(&OURS);
}

/// Base images that tests run themselves: ours is no part of them.
pub const DEBIAN: &str = "localhost/debian:bookworm-slim";
pub const SYSTEMD: &str = "localhost/debian-systemd";

/// Waits until the image is there that is to be run.
fn ready_for(arguments: &[&str]) {
    if !arguments.iter().any(|word| [DEBIAN, SYSTEMD].contains(word)) {
        ready();
    }
}

fn tool(name: &str, storage: &Path) -> Command {
    let mut command = Command::new(name);
    command.arg("--root").arg(storage.join("images")).arg("--runroot").arg(storage.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command
}

fn buildah() -> Command {
    tool("buildah", &STORAGE)
}

fn podman() -> Command {
    let mut command = tool("podman", &STORAGE);
    command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
    command
}

#[track_caller]
pub fn succeeded(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

/// What podman knows of an image.
pub fn inspect(image: &str) -> Value {
    ready();
    let text = succeeded(podman().args(["image", "inspect", image]).output().unwrap());
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}

/// Builds an image from a file in a directory; the directory holds what the file copies.
pub fn build(image: &str, dockerfile: &Path, context: &Path) {
    ready();
    let mut command = buildah();
    command.args(["bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "-t", image, "-f"]);
    succeeded(command.arg(dockerfile).arg(context).output().unwrap());
}

fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("rm-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace with its loopback up; gone when dropped.
pub struct Network(pub String);

impl Network {
    pub fn new() -> Self {
        let network = Self(unique("net"));
        network.ip(&["netns", "add", &network.0]);
        network.ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        network
    }

    /// Joins two by a cable; they are 10.99.0.1 and 10.99.0.2 on it.
    pub fn pair() -> [Self; 2] {
        let both = [Self::new(), Self::new()];
        let [one, two] = &both;
        one.ip(&["-n", &one.0, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &two.0]);
        for (network, address) in [(one, "10.99.0.1/24"), (two, "10.99.0.2/24")] {
            network.ip(&["-n", &network.0, "address", "add", address, "dev", "cable"]);
            network.ip(&["-n", &network.0, "link", "set", "cable", "up"]);
        }
        both
    }

    fn ip(&self, arguments: &[&str]) {
        succeeded(Command::new("ip").args(arguments).output().unwrap());
    }

    /// What GET brings in there: status and body.
    pub fn get(&self, url: &str) -> (u16, String) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "curl", "-s", "-m", "5", "-w", "\n%{http_code}", url]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// What GET brings in there, and the port that it came from.
    pub fn get_from(&self, url: &str) -> (String, String) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "curl", "-s", "-m", "5", "-w", "\n%{local_port}", url]);
        let text = succeeded(command.output().unwrap());
        let (body, port) = text.rsplit_once('\n').unwrap();
        (body.to_owned(), port.to_owned())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// A container; removed when dropped.
pub struct Container(String);

impl Container {
    /// Starts it; these are `podman run`'s arguments from the options on.
    pub fn start(network: &Network, arguments: &[&str]) -> Self {
        ready_for(arguments);
        let container = Self(unique("box"));
        let mut command = podman();
        command.args(["run", "--detach", "--pull", "never", "--name", &container.0, "--log-driver", "k8s-file"]);
        command.args(["--ulimit", "nofile=8192:8192", "--ulimit", "nproc=8192:8192"]);
        command.arg("--network").arg(format!("ns:/run/netns/{}", network.0)).args(arguments);
        succeeded(command.output().unwrap());
        container
    }

    /// Runs one to its end; what it wrote.
    pub fn run(network: &Network, arguments: &[&str]) -> String {
        ready_for(arguments);
        let mut command = podman();
        command.args(["run", "--rm", "--pull", "never", "--ulimit", "nofile=8192:8192", "--ulimit", "nproc=8192:8192"]);
        command.arg("--network").arg(format!("ns:/run/netns/{}", network.0)).args(arguments);
        succeeded(command.output().unwrap())
    }

    pub fn log(&self) -> String {
        let output = podman().args(["logs", &self.0]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str, count: usize) {
        let end = std::time::Instant::now() + seconds(30);
        while self.log().matches(text).count() < count {
            assert!(std::time::Instant::now() < end, "{count} × {text:?} not in {}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    pub fn exec(&self, command: &[&str]) -> Output {
        podman().args(["exec", &self.0]).args(command).output().unwrap()
    }

    /// `ls --json`'s first service, by the program at that path.
    pub fn service(&self, program: &str) -> Value {
        let text = succeeded(self.exec(&[program, "ls", "--json"]));
        serde_json::from_str::<Value>(&text).unwrap()["services"][0].take()
    }

    /// The processes that receive connections, by their numbers in the container.
    pub fn workers(&self, program: &str) -> Vec<u64> {
        let slots = self.service(program)["slots"].as_array().unwrap().clone();
        slots.iter().map(|slot| slot["server_pid"].as_u64().or(slot["pid"].as_u64()).unwrap()).collect()
    }

    /// The user that a process runs as, by its number in the container.
    pub fn uid(&self, pid: u64) -> Option<u32> {
        // The host sees the container's processes below its first one.
        let first = self.state()["Pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{first}/root/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
    }

    /// Kills a process, by its number in the container, with the host's rights.
    pub fn kill(&self, pid: u64) {
        let first = self.state()["Pid"].as_u64().unwrap();
        let inside = ["--target", &first.to_string(), "--pid", "--", "/bin/kill", "-KILL", &pid.to_string()];
        succeeded(Command::new("nsenter").args(inside).output().unwrap());
    }

    /// Whether the image's own HEALTHCHECK succeeds.
    pub fn is_healthy(&self) -> bool {
        podman().args(["healthcheck", "run", &self.0]).output().unwrap().status.success()
    }

    pub fn signal(&self, name: &str) {
        succeeded(podman().args(["kill", "--signal", name, &self.0]).output().unwrap());
    }

    pub fn state(&self) -> Value {
        let text = succeeded(podman().args(["container", "inspect", &self.0]).output().unwrap());
        serde_json::from_str::<Value>(&text).unwrap()[0]["State"].take()
    }

    /// As `docker stop` does it: ten seconds until the kernel kills it. The exit code.
    #[track_caller]
    pub fn stop(&self) -> i64 {
        succeeded(podman().args(["stop", "--time", "10", &self.0]).output().unwrap());
        let ended = || self.state().get("ExitCode").and_then(Value::as_i64);
        eventually("the container's end", seconds(5), ended)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the container ---\n{}--- end of the log ---", self.log());
        }
        let _ = podman().args(["rm", "--force", "--time", "0", &self.0]).output();
    }
}
