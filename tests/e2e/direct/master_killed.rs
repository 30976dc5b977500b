//! A daemon that is killed takes its servers along: they get the stop signal, so that a server with workers of its own
//! ends those. SIGKILL in its place would leave nginx's workers behind, which go on serving.

use nix::sys::signal::Signal;

use crate::support::{Daemon, eventually, free_port, get, install_dir, refused, roundsman, seconds, write_file};

#[test]
fn the_workers_of_a_server_end_with_it() {
    let (dir, port, behind) = (install_dir(), free_port(), free_port());
    let place = dir.path().display();
    let text = format!(
        "worker_processes 2; daemon off; error_log stderr; pid {place}/pid; events {{ worker_connections 64; }}
         http {{ access_log off; client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
           uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
           server {{ listen 127.0.0.1:{behind}; location / {{ return 200 'ok'; }} }} }}"
    );
    let conf = write_file(dir.path(), "nginx.conf", &text);
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{behind}"));
    let all = ["-l", &listen, "-i", "1", "-u", &upstream, "--", "nginx", "-c", conf.to_str().unwrap()];
    let mut daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(1);
    assert_eq!(get(port).unwrap(), "ok");
    let parts = roundsman::sys::process::tree(daemon.pid());
    assert!(parts.len() >= 5, "master, relay worker, nginx and its two: {parts:?}");
    daemon.signal(Signal::SIGKILL);
    daemon.finish(seconds(20));
    let is_alive = |pid: &u32| {
        procfs::process::Process::new(*pid as i32).and_then(|it| it.stat()).is_ok_and(|stat| stat.state != 'Z')
    };
    eventually("all are gone", seconds(20), || (!parts.iter().any(is_alive)).then_some(()));
    assert!(refused(behind));
}
