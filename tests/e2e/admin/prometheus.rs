//! The files for Prometheus and Grafana, and /metrics, by promtool.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Daemon, free_port, install_dir, roundsman, servers, write_file};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{name}")).unwrap()
}

/// Whether promtool is content, and what it says.
fn promtool(words: &[&str], input: &str) -> (bool, String) {
    let mut tool = Command::new("promtool");
    tool.args(words).current_dir(ROOT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tool.spawn().unwrap_or_else(|error| panic!("promtool: {error} (tests/install)"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Every expression of the dashboard, with its variables filled in.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&file("config/grafana/roundsman.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let found: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert!(found.len() > 20 && ids.len() == panels.len());
    let fill =
        |text: String| text.replace("$__rate_interval", "5m").replace("$service", ".*").replace("$instance", ".*");
    found.into_iter().map(fill).inspect(|text| assert!(!text.contains('$'), "{text}")).collect()
}

/// Names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("roundsman_")).map(str::to_owned).collect()
}

#[test]
fn metrics_are_clean_and_have_all_that_dashboard_and_alerts_name() {
    let dir = install_dir();
    let (port, upstream) = (free_port().to_string(), TcpListener::bind("127.0.0.1:0").unwrap());
    let upstream = upstream.local_addr().unwrap().to_string();
    let mut command = roundsman();
    command.current_dir(&dir);
    let words = ["-l", "127.0.0.1:0", "-i", "2", "-u", &upstream, "--admin", &port];
    let mut daemon = Daemon::launch(command, &words, 0);
    daemon.wait_online(2);
    let ask = |accept: &str| {
        let header = format!("Accept: {accept}");
        let url = format!("http://127.0.0.1:{port}/metrics");
        let output = Command::new("curl").args(["-sSi", "-H", &header, &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // As Prometheus asks: it knows both.
    let prometheus = ask("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1");
    assert!(prometheus.contains("content-type: application/openmetrics-text") && prometheus.ends_with("# EOF\n"));
    let plain = ask("text/plain;version=0.0.4");
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    let (_, body) = plain.split_once("\r\n\r\n").unwrap();
    let (clean, said) = promtool(&["check", "metrics"], body);
    assert!(clean && said.is_empty(), "{said}");
    // It was looked at.
    let (clean, said) = promtool(&["check", "metrics"], "# TYPE a counter\na 1\n");
    assert!(!clean && said.contains("_total"), "{said}");
    let types = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let real: BTreeSet<_> = types
        .map(|(name, kind)| if kind == "histogram" { format!("{name}_bucket") } else { name.to_owned() })
        .collect();
    for of in [expressions().concat(), file("config/prometheus/alerts.yaml"), file("tests/e2e/admin/alerts.yaml")] {
        let named = names(&of);
        assert!(named.len() >= 9, "{named:?}");
        let missing: Vec<_> = named.difference(&real).collect();
        assert!(missing.is_empty(), "{missing:?} of {real:?}");
    }
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn expressions_are_valid_and_each_alert_fires_and_does_not() {
    let dir = install_dir();
    let rules = expressions().into_iter().enumerate().map(|(at, expression)| {
        format!("      - {{record: \"panel:{at}\", expr: {}}}\n", serde_json::to_string(&expression).unwrap())
    });
    let text: String = std::iter::once("groups:\n  - name: dashboard\n    rules:\n".to_owned()).chain(rules).collect();
    let panels = write_file(dir.path(), "panels.yaml", &text);
    for rules in [panels.to_str().unwrap(), "config/prometheus/alerts.yaml"] {
        let (valid, said) = promtool(&["check", "rules", rules], "");
        assert!(valid && said.contains("SUCCESS"), "{said}");
    }
    write_file(dir.path(), "alerts.yaml", &file("config/prometheus/alerts.yaml"));
    let config = write_file(dir.path(), "prometheus.yml", &file("config/prometheus/scrape.yaml"));
    let (valid, said) = promtool(&["check", "config", config.to_str().unwrap()], "");
    assert!(valid, "{said}");
    let (passed, said) = promtool(&["test", "rules", "tests/e2e/admin/alerts.yaml"], "");
    assert!(passed, "{said}");
    // None is left out.
    let tests = file("tests/e2e/admin/alerts.yaml");
    let alerts = file("config/prometheus/alerts.yaml");
    let alerts: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10);
    for alert in alerts {
        assert!(tests.contains(&format!("name: {alert} fires\n")), "{alert}");
        assert!(tests.contains(&format!("alertname: {alert}, exp_alerts: []")), "{alert}");
    }
}

/// Reads a dashboard as Grafana's own types, and names what is lost or changed by that.
const IMPORT: &str = "
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
def compare(given, kept, path):
    if isinstance(given, dict) and isinstance(kept, dict):
        for key in given:
            if key in kept: compare(given[key], kept[key], f'{path}.{key}')
            else: print(f'{path}.{key}: unknown')
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for at, (one, other) in enumerate(zip(given, kept)): compare(one, other, f'{path}[{at}]')
    elif given != kept: print(f'{path}: {given!r} became {kept!r}')
given = json.load(sys.stdin)
compare(given, json.loads(JSONEncoder().encode(Dashboard.from_json(given))), '')
";

#[test]
#[ignore = "long: tests/run --all"]
fn the_dashboard_is_one_of_grafanas_schema() {
    let python = servers().join("venv/bin/python");
    let import = |text: &str| {
        let mut python = Command::new(&python);
        python.args(["-c", IMPORT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = python.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let text = file("config/grafana/roundsman.json");
    assert_eq!(import(&text), "");
    // It was looked at: options of panels, too.
    let said = import(&text.replace("\"fieldConfig\"", "\"fieldsConfig\"").replace("\"drawStyle\"", "\"drawSytle\""));
    assert!(said.contains(".fieldsConfig: unknown"), "{said}");
    let said = import(&text.replace("\"drawStyle\"", "\"drawSytle\""));
    assert!(said.contains(".drawSytle: unknown"), "{said}");
    // An import by hand makes a dashboard of its own, with the data source that is chosen.
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["id"].is_null() && dashboard["uid"].as_str().is_some_and(|uid| uid.len() <= 40));
    let sources = text.matches("\"uid\": \"${datasource}\"").count();
    let variable = &dashboard["templating"]["list"][0];
    assert!(sources > 10 && variable["type"] == "datasource" && variable["query"] == "prometheus", "{variable}");
}
