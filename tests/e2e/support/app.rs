//! A program in Node under the daemon.

use super::{Daemon, eventually, free_port, install_dir, roundsman, seconds, servers, write_file};

/// A daemon of a script, two workers unless the options say otherwise; its port in PORT_OF_APP.
pub struct App {
    pub daemon: Daemon,
    pub port: u16,
    pub dir: tempfile::TempDir,
}

impl App {
    pub fn start(node: &str, file: &str, source: &str, options: &[&str]) -> Self {
        let dir = install_dir();
        write_file(dir.path(), file, source);
        Self::in_dir(dir, node, file, options)
    }

    pub fn in_dir(dir: tempfile::TempDir, node: &str, file: &str, options: &[&str]) -> Self {
        let port = free_port();
        let mut command = roundsman();
        let modules = servers().join("node_modules");
        command.current_dir(dir.path()).env("PORT_OF_APP", port.to_string()).env("NODE_PATH", modules);
        let mut all = if options.contains(&"-i") { vec![] } else { vec!["-i", "2"] };
        all.extend(options);
        all.extend(["--output", "prefix", "--error", "err.log", "--out", "out.log", "--name", "app", "--", node, file]);
        Self { daemon: Daemon::launch(command, &all, port), port, dir }
    }

    pub fn online(self, count: usize) -> Self {
        self.daemon.wait_online(count);
        self
    }

    pub fn ask(&self, words: &[&str]) -> (i32, String) {
        let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", self.daemon.control()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    }

    pub fn out(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("out.log") + &read("err.log")
    }

    #[track_caller]
    pub fn says(&self, words: &str) -> String {
        self.says_times(words, 1)
    }

    #[track_caller]
    pub fn says_times(&self, words: &str, times: usize) -> String {
        eventually(&format!("{times} × {words:?} in {}", self.out()), seconds(15), || {
            let out = self.out();
            (out.matches(words).count() >= times).then_some(out)
        })
    }

    #[track_caller]
    pub fn reload(&self) -> std::time::Duration {
        let begin = std::time::Instant::now();
        let (code, text) = self.ask(&["reload"]);
        assert_eq!(code, 0, "{text}\n{}", self.out());
        begin.elapsed()
    }
}
