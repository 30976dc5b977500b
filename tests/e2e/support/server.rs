//! Servers behind the daemon: in this process, or real programs.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{eventually, free_port, seconds};

/// A server of this process: every connection runs a closure on a thread of its own.
pub struct Upstream {
    pub address: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
}

impl Upstream {
    pub fn start(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (serve, count) = (Arc::new(serve), accepted.clone());
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::Builder::new().stack_size(256 * 1024).spawn(move || drop(serve(stream))).unwrap();
            }
        });
        Self { address, accepted }
    }

    /// Sends back what comes, and the FIN after it.
    pub fn echo() -> Self {
        Self::start(|mut stream| {
            io::copy(&mut stream.try_clone()?, &mut stream)?;
            stream.shutdown(std::net::Shutdown::Write)
        })
    }

    pub fn arg(&self) -> String {
        self.address.to_string()
    }

    pub fn count(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Any child; killed when dropped.
pub struct Killed(pub Child);

impl Killed {
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real program; killed when dropped.
pub struct Process {
    child: Child,
    pub port: u16,
}

impl Process {
    /// Starts a program that is to listen on `port`, and waits until it does.
    #[track_caller]
    pub fn start(program: &str, arguments: &[&str], port: u16) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs it)"));
        let process = Self { child, port };
        eventually(&format!("{program} on port {port}"), seconds(20), || {
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)).ok()
        });
        process
    }

    /// nginx with two workers; `/` answers 200 with a short body, files lie under the directory.
    pub fn nginx(dir: &Path) -> Self {
        let port = free_port();
        let conf = write_file(
            dir,
            "nginx.conf",
            &format!(
                "worker_processes 2; daemon off; error_log stderr; pid {0}/nginx.pid; worker_rlimit_nofile 9000;
                 events {{ worker_connections 4000; }}
                 http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;
                   fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
                   server {{ listen 127.0.0.1:{port} backlog=4096; root {0}; location = / {{ return 200 'ok'; }} }} }}",
                dir.display()
            ),
        );
        Self::start("nginx", &["-c", conf.to_str().unwrap()], port)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A polite end first: nginx's master takes its workers along.
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        for _ in 0..400 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops a process by SIGSTOP and waits until every thread has stopped: one that sleeps in recvmsg(2) wakes up first, and
/// takes what has come until it runs.
#[track_caller]
pub fn freeze(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let has_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        // A thread that has just ended.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { return true };
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    super::eventually("it has stopped", super::seconds(20), || {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(has_stopped).then_some(())
    });
}

/// A directory that the servers' own users can read.
pub fn install_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

pub fn write_file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
