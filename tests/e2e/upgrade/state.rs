//! What a daemon knows survives `roundsman upgrade`, and it goes on as before.
//! Mostly waits: tests/run runs it beside others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Site, ask, tell, upgraded};
use crate::support::{App, Daemon, Upstream, eventually, free_port, get, install_dir, roundsman, seconds, write_file};

#[test]
fn weights_marks_counts_and_numbers_of_slots_stay() {
    let site = Site::start("direct", 2, &[]);
    for words in
        [&["scale", "3"][..], &["weight", "web/1", "5"], &["drain", "web/0"], &["reload"], &["reload", "web/1"]]
    {
        let (code, text) = tell(&site.daemon, words);
        assert_eq!(code, 0, "{words:?}: {text}");
    }
    let dead = site.daemon.workers()[2];
    kill(Pid::from_raw(dead), Signal::SIGKILL).unwrap();
    eventually("a restart", seconds(20), || (site.daemon.slot(2, "restarts") == 1).then_some(()));
    site.daemon.wait_online(3);
    (0..5).for_each(|_| drop(get(site.port).unwrap()));
    // Nothing of a worker that was replaced is on its way any more.
    let state = || {
        let service = site.daemon.ls()["services"][0].clone();
        let names =
            ["slot", "state", "pid", "generation", "restarts", "connections", "drain", "weight", "last_exit", "reason"];
        let slot = |slot: &serde_json::Value| names.map(|name| slot[name].clone());
        let slots: Vec<_> = service["slots"].as_array().unwrap().iter().map(slot).collect();
        (slots, service["reloads"].clone(), service["listen"].clone(), service["command"].clone())
    };
    let before = state();
    upgraded(&site.daemon);
    assert_eq!(state(), before);
    assert_eq!(before.1, 1, "reloads of the service");
    // It goes on as before: crashes are seen, reloads work, and the end is graceful.
    kill(Pid::from_raw(site.daemon.workers()[2]), Signal::SIGKILL).unwrap();
    eventually("another restart", seconds(20), || (site.daemon.slot(2, "restarts") == 2).then_some(()));
    site.daemon.wait_online(3);
    let (code, text) = tell(&site.daemon, &["reload"]);
    assert_eq!(code, 0, "{text}");
    get(site.port).unwrap();
    let mut daemon = site.daemon;
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn the_configuration_in_force_stays_until_a_reload() {
    let (dir, upstream, [first, second]) = (install_dir(), Upstream::echo(), [free_port(), free_port()]);
    let file = |listen: u16| {
        let text = format!(
            "[service.web]\nlisten = \"127.0.0.1:{listen}\"\nupstream = \"{}\"\ninstances = 1\n\
             [service.job]\nno-listen = true\ncommand = [\"sleep\", \"1000\"]\n",
            upstream.arg()
        );
        write_file(dir.path(), "rr.toml", &text)
    };
    let path = file(first);
    let daemon = Daemon::launch(roundsman(), &["-c", path.to_str().unwrap()], first);
    let online = || daemon.ls()["services"].as_array().unwrap().iter().all(|one| one["slots"][0]["state"] == "online");
    eventually("both online", seconds(20), || online().then_some(()));
    let job = daemon.ls()["services"][1]["slots"][0]["pid"].clone();
    // It is not read.
    write_file(dir.path(), "rr.toml", "[nonsense");
    upgraded(&daemon);
    file(second);
    let listens = |daemon: &Daemon| daemon.ls()["services"][0]["listen"][0]["addr"].clone();
    assert_eq!(listens(&daemon), format!("127.0.0.1:{first}"));
    assert_eq!(daemon.ls()["services"][1]["slots"][0]["pid"], job);
    assert!(online());
    let (code, text) = tell(&daemon, &["reload", "web"]);
    assert_eq!(code, 0, "{text}");
    assert!(daemon.ls().to_string().contains(&format!("127.0.0.1:{second}")));
}

#[test]
fn workers_of_nodes_cluster_go_on_and_listen_for_messages() {
    let source = "const cluster = require('cluster'), http = require('http');
if (cluster.isPrimary) { cluster.fork(); cluster.fork(); } else {
  process.on('message', m => console.log('got', JSON.stringify(m)));
  http.createServer((q, s) => s.end(String(process.pid))).listen(process.env.PORT_OF_APP);
}";
    let app = App::start("node", "app.js", source, &["--min-uptime", "100ms"]).online(2);
    let workers = app.daemon.workers();
    upgraded(&app.daemon);
    assert_eq!(app.daemon.workers(), workers);
    assert!(workers.contains(&get(app.port).unwrap().parse().unwrap()));
    assert_eq!(app.ask(&["send", "{\"a\":1}"]).0, 0);
    app.says_times("got {\"a\":1}", 2);
    app.reload();
    assert!(!workers.contains(&get(app.port).unwrap().parse().unwrap()));
    upgraded(&app.daemon);
    assert_eq!(app.ask(&["send", "{\"b\":1}"]).0, 0);
    app.says_times("got {\"b\":1}", 2);
}

#[test]
fn a_server_that_all_slots_share_and_the_marks_of_upstreams_stay() {
    let [behind, away] = [free_port(), free_port()];
    let (to, port) = (format!("127.0.0.1:{behind}"), format!("PORT={behind}"));
    let other = format!("127.0.0.1:{away}");
    let server = ["env", &port, env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let daemon = Daemon::start(&[&["-n", "web", "-i", "2", "-u", &to, "-u", &other, "--"][..], &server].concat());
    daemon.wait_online(2);
    let (code, text) = tell(&daemon, &["drain", &format!("web@{other}")]);
    assert_eq!(code, 0, "{text}");
    get(daemon.port).unwrap();
    let state = || {
        let service = daemon.ls()["services"][0].clone();
        let upstream =
            |at: usize| ["addr", "drain", "weight", "connections"].map(|name| service["upstreams"][at][name].clone());
        (service["server"]["pid"].clone(), upstream(0), upstream(1))
    };
    let before = state();
    assert!(before.0.as_u64().is_some() && before.1[3] == 1 && before.2[1] == true, "{before:?}");
    upgraded(&daemon);
    assert_eq!(state(), before);
    (0..4).for_each(|_| drop(get(daemon.port).unwrap()));
    assert_eq!(state().1[3], 5);
}

#[test]
fn it_waits_for_a_reload_and_for_workers_that_start() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 2, &["--drain-timeout", "1s"]);
        // A reload takes so long with clients that keep their connections.
        let mut kept: Vec<_> = (0..4).map(|_| site.connect()).collect();
        kept.iter_mut().for_each(|stream| drop(ask(stream, "GET", "/").unwrap()));
        std::thread::scope(|scope| {
            let reload = scope.spawn(|| tell(&site.daemon, &["reload"]));
            site.daemon.wait_for("reloading");
            upgraded(&site.daemon);
            let (code, text) = reload.join().unwrap();
            assert_eq!(code, 0, "{via}: {text}");
        });
        assert!(site.daemon.slots().iter().all(|slot| slot["generation"] == 2), "{via}");
        // Killed: another one is being started.
        let server = ["server_pid", "pid"].into_iter().find_map(|name| site.daemon.slot(0, name).as_i64()).unwrap();
        kill(Pid::from_raw(server as i32), Signal::SIGKILL).unwrap();
        upgraded(&site.daemon);
        eventually("a restart", seconds(20), || (site.daemon.slot(0, "restarts") == 1).then_some(()));
        site.daemon.wait_online(2);
        get(site.port).unwrap();
    }
}

#[test]
fn workers_on_their_way_out_finish_their_connections() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 1, &["--drain-timeout", "60s", "--max-served", "2"]);
        let mut kept: Vec<_> = (0..2).map(|_| site.connect()).collect();
        let before = kept.iter_mut().map(|stream| ask(stream, "GET", "/").unwrap()).next_back().unwrap();
        eventually("a successor", seconds(20), || (site.daemon.slot(0, "generation") == 2).then_some(()));
        site.daemon.wait_online(1);
        let counted = site.daemon.total("connections");
        (0..2).for_each(|_| upgraded(&site.daemon));
        for stream in &mut kept {
            assert_eq!(ask(stream, "POST", "/").unwrap(), before, "{via}");
        }
        assert_ne!(get(site.port).unwrap(), before, "{via}");
        assert_eq!(site.daemon.total("connections"), counted + 1, "{via}");
        let process = std::path::Path::new("/proc").join(&before);
        assert!(process.exists(), "{via}");
        drop(kept);
        eventually("the end of the server before", seconds(20), || (!process.exists()).then_some(()));
        upgraded(&site.daemon);
        get(site.port).unwrap();
        assert_eq!(site.daemon.total("connections"), counted + 2, "{via}");
    }
}

#[test]
fn a_service_that_was_stopped_is_started_by_the_next_program() {
    let site = Site::start("direct", 2, &[]);
    for word in ["stop", "start"] {
        upgraded(&site.daemon);
        let (code, text) = tell(&site.daemon, &[word]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(get(site.port).is_ok(), word == "start");
    }
    let (code, text) = tell(&site.daemon, &["stop"]);
    assert_eq!(code, 0, "{text}");
    upgraded(&site.daemon);
    assert!(crate::support::refused(site.port));
    let (code, text) = tell(&site.daemon, &["start"]);
    assert_eq!(code, 0, "{text}");
    get(site.port).unwrap();
}

/// A stop that is asked for while the program is being replaced.
#[test]
fn no_signal_is_lost() {
    let mut site = Site::start("relay", 1, &[]);
    site.daemon.signal(Signal::SIGUSR2);
    site.daemon.wait_for("the program takes over");
    site.daemon.signal(Signal::SIGTERM);
    assert_eq!(site.daemon.finish(seconds(20)).code(), 0);
}

#[test]
fn the_working_directory_is_known_by_its_name() {
    let (dir, port) = (install_dir(), free_port());
    let [one, two, current] = ["one", "two", "current"].map(|name| dir.path().join(name));
    for place in [&one, &two] {
        std::fs::create_dir(place).unwrap();
    }
    std::os::unix::fs::symlink("one", &current).unwrap();
    let mut command = roundsman();
    command.current_dir(&current).env("PWD", &current);
    let (listen, own) = (format!("127.0.0.1:{port}"), env!("CARGO_BIN_EXE_roundsman"));
    let words = ["-n", "web", "-i", "1", "-l", &listen, "--min-uptime", "100ms", "--", own, "demo-server"];
    let daemon = Daemon::launch(command, &words, port);
    daemon.wait_online(1);
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("two", &current).unwrap();
    upgraded(&daemon);
    assert_eq!(tell(&daemon, &["reload"]).0, 0);
    let place = std::fs::read_link(format!("/proc/{}/cwd", daemon.workers()[0])).unwrap();
    assert_eq!(place, two.canonicalize().unwrap());
}
