//! config/kubernetes and config/compose.yaml: valid by the published schemas, and true when they are run.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::podman::{Container, Network, ROOT, succeeded};
use crate::support::{eventually, seconds, servers};

/// What `kubectl kustomize` makes of config/kubernetes, as YAML and as values.
fn manifests() -> (String, Vec<Value>) {
    let base = format!("{ROOT}/config/kubernetes");
    let yaml = succeeded(Command::new("kubectl").args(["kustomize", &base]).output().unwrap());
    let options = serde_saphyr::options! {};
    let values = serde_saphyr::from_multiple_with_options(&yaml, options).unwrap();
    (yaml, values)
}

fn of_kind(kind: &str) -> Value {
    manifests().1.into_iter().find(|value| value["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
#[ignore = "long: tests/run --all"]
fn the_kustomize_base_is_valid_by_the_published_schemas() {
    let (yaml, values) = manifests();
    let kinds: Vec<_> = values.iter().map(|value| value["kind"].as_str().unwrap()).collect();
    for kind in ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let validate = servers().join("venv/bin/kubernetes-validate");
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = dir.path().join("all.yaml");
        std::fs::write(&file, text).unwrap();
        Command::new(&validate).arg("--strict").arg(&file).output().unwrap()
    };
    succeeded(check(&yaml));
    // It would have said so.
    let wrong = check(&yaml.replace("maxUnavailable", "maxUnavailible"));
    assert!(!wrong.status.success(), "{}", String::from_utf8_lossy(&wrong.stdout));
}

#[test]
#[ignore = "long: tests/run --all"]
fn the_compose_file_is_valid_by_the_published_schema() {
    let check = |file: &std::path::Path| {
        Command::new("docker-compose").arg("-f").arg(file).args(["config", "-q"]).output().unwrap()
    };
    let file = std::path::Path::new(ROOT).join("config/compose.yaml");
    succeeded(check(&file));
    let wrong = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let text = std::fs::read_to_string(file).unwrap().replace("stop_grace_period", "stop_grace_time");
    std::fs::write(wrong.path(), text).unwrap();
    assert!(!check(wrong.path()).status.success());
}

/// Seconds of a value like `5s`.
fn whole_seconds(value: &Value) -> u64 {
    value.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
#[ignore = "long: tests/run --all"]
fn the_pod_of_the_deployment_does_what_its_probes_and_grace_periods_promise() {
    let deployment = of_kind("Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let variable = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"))["value"].clone()
    };
    let (delay, stop) = (variable("ROUNDSMAN_STOP_DELAY"), variable("ROUNDSMAN_STOP_TIMEOUT"));
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > whole_seconds(&delay) + whole_seconds(&stop), "{grace}");

    let image = crate::apps::app_image("node");
    let [here, there] = Network::pair();
    // The pod's rights and environment, as the kubelet would set them.
    let rights = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--user", "1000:1000"];
    let limits = ["--cpus", container["resources"]["limits"]["cpu"].as_str().unwrap(), "--memory", "512m"];
    let variables: Vec<String> = (container["env"].as_array().unwrap().iter())
        .map(|one| format!("--env={}={}", one["name"].as_str().unwrap(), one["value"].as_str().unwrap()))
        .collect();
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    let server = Container::start(&here, &[&rights[..], &limits, &variables, &[&image]].concat());
    // Probes come from outside the pod's network.
    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].clone()
    };
    let probe = |name: &str| {
        let get = &container[name]["httpGet"];
        let port = port(get["port"].as_str().unwrap());
        there.get(&format!("http://10.99.0.1:{port}{}", get["path"].as_str().unwrap())).0
    };
    let serves = || there.get(&format!("http://10.99.0.1:{}/", port("http"))).0;
    eventually("started", seconds(20), || (probe("startupProbe") == 200).then_some(()));
    assert_eq!((probe("readinessProbe"), probe("livenessProbe"), serves()), (200, 200, 200));

    // The race with the endpoints: told to stop it is not ready, alive, and still serves, for as long as is asked.
    let begin = Instant::now();
    server.signal("TERM");
    eventually("not ready", seconds(2), || (probe("readinessProbe") == 503).then_some(()));
    while begin.elapsed() + seconds(1) < seconds(whole_seconds(&delay)) {
        assert_eq!((serves(), probe("livenessProbe")), (200, 200), "{:?} after the signal", begin.elapsed());
    }
    let ended = || (server.state()["Status"] == "exited").then_some(());
    eventually("the end", seconds(grace), ended);
    assert_eq!(server.state()["ExitCode"], 0);
    assert!(begin.elapsed() >= seconds(whole_seconds(&delay)));
}

#[test]
#[ignore = "long: tests/run --all"]
fn what_the_compose_file_asks_for_can_be_had() {
    let text = std::fs::read_to_string(format!("{ROOT}/config/compose.yaml")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let web = &file["services"]["web"];
    let image = crate::apps::app_image("node");
    let network = Network::new();
    let rights = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"];
    let user = ["--user", web["user"].as_str().unwrap(), "--env", "ROUNDSMAN_MAX_MEMORY=90%"];
    let server = Container::start(&network, &[&rights[..], &user, &[&image]].concat());
    server.wait_for("worker online", 1);
    assert_eq!(network.get("http://127.0.0.1:8080/").0, 200);
    let test: Vec<_> = web["healthcheck"]["test"].as_array().unwrap().iter().skip(1).collect();
    let test: Vec<_> = test.into_iter().map(|word| word.as_str().unwrap()).collect();
    succeeded(server.exec(&test));
    let begin = Instant::now();
    assert_eq!(server.stop(), 0);
    assert!(begin.elapsed() < seconds(whole_seconds(&web["stop_grace_period"])));
}
