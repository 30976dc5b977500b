//! A headless Chromium, driven by the DevTools protocol over its pipe.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, seconds};

/// A browser with one page; ended when dropped.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// Events since the start.
    events: Vec<Value>,
    _profile: TempDir,
}

/// One key of a keyboard.
#[derive(Clone, Copy)]
pub struct Key(pub &'static str, pub i32);

impl Browser {
    pub fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol's descriptors are 3 and 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec chromium-headless-shell \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"]);
        command.args(["--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        command.env("TZ", "UTC").env("LANG", "en_US.UTF-8").env("HOME", profile.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut output: BufReader<ChildStdout> = BufReader::new(output);
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                if sender.send(serde_json::from_slice(&message).unwrap_or_default()).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser =
            Self { child, input, messages, next: 0, session: None, events: Vec::new(), _profile: profile };
        let pages = browser.call("Target.getTargets", json!({}));
        let page = pages["targetInfos"].as_array().unwrap().iter().find(|target| target["type"] == "page").unwrap();
        let session = browser.call("Target.attachToTarget", json!({"targetId": page["targetId"], "flatten": true}));
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// One method of the protocol.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        let reply = self.ask(method, params);
        assert!(reply["error"].is_null(), "{method}: {reply}");
        reply["result"].clone()
    }

    #[track_caller]
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        assert!(self.input.write_all(format!("{message}\0").as_bytes()).is_ok(), "the browser is gone");
        loop {
            let reply = self.messages.recv_timeout(seconds(30)).unwrap_or_else(|_| panic!("no answer to {method}"));
            if reply["id"] == self.next {
                return reply;
            }
            self.events.push(reply);
        }
    }

    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
    }

    /// Runs before each page that is opened from now on.
    pub fn before_each_page(&mut self, script: &str) {
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": script}));
    }

    /// The value of an expression, waited for if it is a promise.
    #[track_caller]
    pub fn js(&mut self, expression: &str) -> Value {
        let options = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let reply = self.call("Runtime.evaluate", options);
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {reply}");
        reply["result"]["value"].clone()
    }

    /// The text of an element, as it is seen, with plain spaces; empty without one.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.js(&format!("document.querySelector({})?.innerText ?? ''", json!(selector)));
        text.as_str().unwrap_or_default().replace('\u{a0}', " ")
    }

    /// Waits until an expression is true; it may fail before.
    #[track_caller]
    pub fn wait(&mut self, expression: &str) {
        let wanted = json!({"expression": format!("Boolean({expression})"), "returnByValue": true});
        eventually(expression, seconds(30), || {
            let reply = self.ask("Runtime.evaluate", wanted.clone());
            (reply["result"]["result"]["value"] == true).then_some(())
        });
    }

    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        assert_eq!(self.js(&format!("document.querySelector({})?.click() ?? 'clicked'", json!(selector))), "clicked");
    }

    pub fn press(&mut self, Key(name, code): Key) {
        for kind in ["keyDown", "keyUp"] {
            let mut key = json!({"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code});
            if name == "Enter" && kind == "keyDown" {
                key["text"] = "\r".into();
            }
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    pub fn look(&mut self, width: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// A picture of the whole page, half as large: PNG in base64.
    pub fn picture(&mut self) -> String {
        let height = self.js("document.documentElement.scrollHeight").as_u64().unwrap();
        let width = self.js("document.documentElement.clientWidth").as_u64().unwrap();
        self.shot(width, height, 0.5)
    }

    /// A picture of the upper left part of the page: PNG in base64.
    pub fn shot(&mut self, width: u64, height: u64, scale: f64) -> String {
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": scale});
        let reply = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true, "clip": clip}));
        reply["data"].as_str().unwrap().to_owned()
    }

    /// What the console, failed loads and uncaught errors said.
    pub fn complaints(&mut self) -> Vec<String> {
        self.js("1");
        let of = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];
        self.events
            .iter()
            .filter(|event| of.iter().any(|name| event["method"] == *name))
            .map(Value::to_string)
            .collect()
    }

    /// The addresses of all requests.
    pub fn requests(&mut self) -> Vec<String> {
        self.js("1");
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
