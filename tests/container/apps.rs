//! config/docker as its readers use it: each file builds an image from an app in an empty directory, and that one serves.

use std::path::Path;

use crate::podman::{Container, Network, ROOT, build};

/// Apps that answer with their slot.
const SOURCES: [(&str, &str); 4] = [
    (
        "app.js",
        "require('http').createServer((_, to) => to.end('slot ' + process.env.ROUNDSMAN_SLOT)).listen(process.env.PORT)",
    ),
    (
        "app.py",
        r#"
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(("slot " + os.environ["ROUNDSMAN_SLOT"]).encode())

ThreadingHTTPServer(("", int(os.environ["PORT"])), Answer).serve_forever()
"#,
    ),
    (
        "App.java",
        r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class App {
    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> {
            byte[] answer = ("slot " + System.getenv("ROUNDSMAN_SLOT")).getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
"#,
    ),
    (
        "main.go",
        r#"
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(to http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(to, "slot "+os.Getenv("ROUNDSMAN_SLOT"))
	})
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
"#,
    ),
];

/// An image of that one with roundsman in it; its name.
pub fn with_roundsman(base: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("Dockerfile");
    std::fs::write(
        &file,
        format!("FROM {base}\nCOPY --from=localhost/roundsman /roundsman /usr/local/bin/roundsman\n"),
    )
    .unwrap();
    let name = format!("{}-with-roundsman", base.replace(':', "-"));
    crate::podman::ready();
    build(&name, &file, dir.path());
    name
}

/// Builds what config/docker/NAME.Dockerfile says; the image's name.
pub fn app_image(name: &str) -> String {
    crate::podman::ready();
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in SOURCES {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let image = format!("localhost/app-{name}");
    build(&image, &Path::new(ROOT).join(format!("config/docker/{name}.Dockerfile")), dir.path());
    image
}

/// Builds and runs it with two CPUs: the connections go round, by the delivery that is expected.
fn serves(name: &str, via: &str) {
    serves_with(name, &[], via, false);
}

fn serves_with(name: &str, options: &[&str], via: &str, by_seccomp: bool) {
    let image = app_image(name);
    let network = Network::new();
    let server = Container::start(&network, &[&["--cpus", "2", "--cap-drop", "all"], options, &[&image]].concat());
    server.wait_for("worker online", 2);
    let answers: Vec<_> = (0..10).map(|_| network.get("http://127.0.0.1:8080/").1).collect();
    for slot in ["slot 0", "slot 1"] {
        assert_eq!(answers.iter().filter(|answer| *answer == slot).count(), 5, "{answers:?}");
    }
    let program = if name == "go" { "/roundsman" } else { "roundsman" };
    let service = server.service(program);
    assert_eq!((&service["via"], &service["via_seccomp"]), (&via.into(), &by_seccomp.into()), "{service}");
    assert!(server.is_healthy());
    assert_eq!(server.stop(), 0);
}

#[test]
#[ignore = "long: tests/run --all"]
fn node_on_debian_is_served_direct() {
    serves("node", "direct");
}

#[test]
#[ignore = "long: tests/run --all"]
fn node_on_musl_is_served_direct() {
    serves("node-alpine", "direct");
}

#[test]
#[ignore = "long: tests/run --all"]
fn python_is_served_direct() {
    serves("python", "direct");
}

#[test]
#[ignore = "long: tests/run --all"]
fn java_is_served_direct() {
    serves("java", "direct");
}

#[test]
#[ignore = "long: tests/run --all"]
fn go_is_served_by_relay() {
    serves("go", "relay");
}

#[test]
#[ignore = "long: tests/run --all"]
fn go_is_served_direct_where_no_new_privs_is_set() {
    serves_with("go", &["--security-opt", "no-new-privileges"], "direct", true);
}
