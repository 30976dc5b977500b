//! Whatever an ecosystem file says: what import writes is read without an error, and means the same.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::convert;
use crate::config::file::File;
use crate::config::merge;
use crate::config::sources::{COMMAND, Given};

/// Every name that PM2 knows, aliases and all, and some that nobody does.
const KEYS: &str = "script exec name name_prefix filter_env namespace install_url cwd args exec_interpreter interpreter \
    node_args interpreterArgs interpreter_args out_file out output out_log error_file error err err_file err_log log_file \
    log disable_logs log_type log_date_format time env env_production env_prod env_a.b max_memory_restart pid_file pid \
    restart_delay exp_backoff_restart_delay source_map_support wait_ready instances kill_timeout shutdown_with_message \
    listen_timeout cron_restart cron merge_logs combine_logs vizion autorestart watch_delay watch ignore_watch \
    watch_options min_uptime max_restarts exec_mode force append_env_to_name post_update trace v8 increment_var \
    instance_var pmx automation treekill port username uid user gid windowsHide kill_retry_time io kill_signal \
    outFile killTimeout maxMemoryRestart stop_exit_codes autostart schön service";

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z./ \"'=#\\[\\]{}\n\r\t\u{0}-\u{9}\u{7f}\u{85}\u{fe}\u{2028}]{0,20}",
        prop::sample::select(vec![
            "5s",
            "1h",
            "300M",
            "300",
            "max",
            "-1",
            "0",
            "SIGTERM",
            "STOP",
            "x",
            "app.js",
            "worker.py",
            "./a b.sh",
            "bin/www",
            "{port}",
            "--port",
            "0 3 * * *",
            "* 0 3 * * *",
            "cluster_mode",
            "fork",
            "node@16",
            "none",
            "NULL",
            "",
            "\0",
            "1e300",
            "3000.0",
            "'''",
            "\"\"\"",
            "\\",
            "cluster",
            "json",
        ])
        .prop_map(str::to_owned),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let plain = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        (-2_i64..20_000).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::String),
    ];
    plain.prop_recursive(2, 12, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(text(), inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn app() -> impl Strategy<Value = Value> {
    let keys: Vec<&str> = KEYS.split_whitespace().collect();
    let key = prop_oneof![9 => prop::sample::select(keys).prop_map(str::to_owned), 1 => text()];
    (prop::collection::btree_map(key, value(), 0..40), text()).prop_map(|(mut app, script)| {
        app.entry("script".to_owned()).or_insert(Value::String(script));
        Value::Object(app.into_iter().collect())
    })
}

/// Reads a text as `check` does, as far as it does not ask the system; the services by name.
#[track_caller]
fn read(text: &str) -> Vec<(String, merge::Settings)> {
    let mut problems = Vec::new();
    let file = File::parse(Path::new("roundsman.toml"), text.to_owned(), &mut problems);
    file.services.iter().for_each(|section| merge::try_each(&section.entries, &mut problems));
    assert!(problems.is_empty(), "{problems:?} in\n{text}");
    let settings = |entries| merge::lay(&Given::default(), Some((&file, entries)));
    let all: Vec<_> = file.services.iter().map(|one| (one.name.clone(), settings(one.entries.as_slice()))).collect();
    for (name, settings) in &all {
        merge::run(settings).unwrap_or_else(|why| panic!("{name}: {why} in\n{text}"));
        crate::config::service::checked(name.clone()).unwrap();
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_written_is_accepted(apps in prop::collection::vec(app(), 1..4), env in prop::option::of(text()), file in text()) {
        let count = apps.len();
        let ecosystem = json!({ "apps": apps, "deploy": {} });
        // Without a script, or with a NUL byte in the command, there is nothing to run.
        if let Ok(imported) = convert(&ecosystem, Path::new(&file), env.as_deref()) {
            prop_assert_eq!(read(&imported.text).len(), count);
        }
    }

    #[test]
    fn command_and_variables_are_those_of_the_app(
        words in prop::collection::vec("[^\0{]{1,12}", 0..4),
        variables in prop::collection::btree_map("[^\0=]{1,9}", "[^\0]{0,12}", 0..5),
    ) {
        let env: Map<String, Value> = variables.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        let app = json!({ "script": "./app.js", "args": words.clone(), "env": env });
        let imported = convert(&app, Path::new("ecosystem.json"), None).unwrap();
        let services = read(&imported.text);
        let values = |key: &str| -> Vec<String> {
            let setting = services[0].1.get(key);
            setting.map(|setting| setting.values.iter().map(|word| word.to_str().unwrap().to_owned()).collect()).unwrap_or_default()
        };
        prop_assert_eq!(&values(COMMAND)[..2], ["node", "./app.js"]);
        prop_assert_eq!(&values(COMMAND)[2..], &words[..]);
        let mut wanted: Vec<_> = variables.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut got = values("env");
        wanted.sort();
        got.sort();
        prop_assert_eq!(got, wanted);
    }
}
