//! Commands, options and keys of other programs (PM2, HAProxy, nginx) and their equivalents here.

/// Commands of PM2 and similar programs.
const VERBS: [(&[&str], &str); 21] = [
    (&["dash", "dashboard", "imonit", "monitor", "watch"], "use: roundsman top; a page in the browser: --admin 9900"),
    (&["jlist", "prettylist", "slist"], "use: roundsman ls --json"),
    (&["pid", "id"], "use: roundsman ls --json"),
    (&["ping"], "use: roundsman health"),
    (&["env"], "use: roundsman check -c FILE, or /proc/PID/environ for what a process has"),
    (&["flush"], "not available; files of --out and --error are rotated by size (--rotate-size, --rotate-keep)"),
    (&["reloadLogs", "reload-logs", "reopen"], "use: kill -USR1 PID of the daemon; it opens its log files again"),
    (
        &["delete", "del", "rm", "remove"],
        "use: roundsman quit NAME; for one of several services in a file: take it out of the file and: roundsman reload",
    ),
    (&["exit", "shutdown"], "roundsman stop ends the workers; roundsman quit ends the daemon"),
    (&["sendSignal"], "use: kill -SIGNAL PID (roundsman ls shows the pids)"),
    (&["trigger"], "use: roundsman send NAME JSON"),
    (
        &["save", "dump", "resurrect", "cleardump"],
        "not needed; services are in a file: roundsman -c roundsman.toml; at boot: roundsman unit",
    ),
    (&["startup", "unstartup"], "use: roundsman unit NAME; it prints a unit for systemd, and how to enable that"),
    (&["enable", "disable"], "use: roundsman start NAME, roundsman stop NAME; at boot: roundsman unit NAME"),
    (&["deploy"], "not available; deploy with another program and end with: roundsman reload"),
    (&["install", "uninstall", "module:install"], "not available; rotation of logs is built in (--rotate-size)"),
    (
        &["init", "ecosystem"],
        "an example with all keys is config/full.toml; from PM2: roundsman import ecosystem.config.js",
    ),
    (&["update", "upgrade", "reset"], "not available"),
    (&["plus", "link", "unlink", "register", "login", "report"], "not available; a page and metrics: --admin 9900"),
    (&["configtest", "test", "validate", "lint"], "use: roundsman check -c FILE"),
    (&["run", "exec"], "use: roundsman -- COMMAND"),
];

/// Options of PM2 and daemons, by their long or short form.
const FLAGS: [(&[&str], &str); 8] = [
    (&["--daemonize", "--background", "-D"], "did you mean -d (--detach)? To start it at boot: roundsman unit"),
    (&["--no-daemon", "--foreground"], "not needed; without -d it stays in the foreground"),
    (&["-f"], "a configuration file is given by -c FILE; without -d it stays in the foreground"),
    (&["-t", "--test"], "use: roundsman check -c FILE"),
    (&["--watch", "-w"], "not available; for a server in Node: roundsman -- node --watch app.js"),
    (&["--cron", "--cron-restart"], "not available; add to crontab: 0 3 * * * roundsman restart NAME"),
    (&["--no-autorestart"], "not available; see --max-restarts and --on-errored"),
    (&["--log", "--merge-logs"], "did you mean --out FILE --error FILE?"),
];

/// Keys and options for features that do not exist here.
const MISSING: [(&[&str], &str); 15] = [
    (
        &["max-requests", "max-request", "limit-max-requests"],
        "use `max-served`; it counts connections: requests of a keep-alive connection are not seen",
    ),
    (
        &["worker-connections", "maxconn", "max-conn", "max-connections"],
        "use `worker-conns` for each worker (more clients wait in line), or `max-conns` for the service",
    ),
    (&["rate-limit", "limit-rate", "maxconnrate"], "use `accept-rate`, for example 1000/s"),
    (
        &["check", "health-check", "healthcheck", "httpchk", "health"],
        "not available in this version: an upstream that refuses is skipped for a growing time",
    ),
    (&["send-proxy-v2"], "use `send-proxy` with v2, for example send-proxy = \"v2\""),
    (
        &["accept-proxy", "proxy-protocol", "set-real-ip-from", "trusted-proxies", "proxy-allow-from"],
        "use `proxy-from` with the balancers' networks, for example proxy-from = [\"10.0.0.0/8\"]",
    ),
    (
        &["tls", "ssl", "cert", "crt", "certificate", "key", "ssl-certificate"],
        "not available in this version: TLS passes through, the server does it",
    ),
    (
        &["weight", "weights", "backup"],
        "belongs to an upstream: -u 10.0.0.5:6379,weight=3; of a slot: roundsman weight",
    ),
    (
        &["acl", "whitelist", "blacklist", "allowlist", "denylist", "tcp-request"],
        "use `allow` and `deny` with networks, for example deny = [\"192.0.2.0/24\", \"@blocked.txt\"]",
    ),
    (
        &["limit-conn", "max-conns-per-ip", "conn-limit", "maxconn-per-source", "stick-table"],
        "use `source-conns` and `source-rate`, the limits for one client address",
    ),
    (&["stats", "stats-socket"], "use `admin`, for example admin = 9900, and /metrics there"),
    (&["mode", "protocol"], "not needed: all connections are TCP, HTTP included"),
    (&["timeout", "timeouts"], "use `connect-timeout`, `idle-timeout` or `queue-timeout`"),
    (
        &["rewrite", "location", "route", "path", "headers"],
        "not available: connections are passed on, HTTP is not looked at",
    ),
    (&["daemon", "daemonize", "detach"], "is no key: roundsman -d -c FILE, or let systemd run it (roundsman unit)"),
];

/// Keys of other programs that have another name here.
const KEYS: [(&[&str], &str); 24] = [
    (&["max-requests-jitter", "max-request-jitter"], "recycle-jitter"),
    (&["max-worker-lifetime", "worker-lifetime", "max-lifetime", "max-uptime"], "max-age"),
    (&["port", "bind", "frontend"], "listen"),
    (&["workers", "processes", "worker-processes", "nbproc", "slots"], "instances"),
    (&["script", "cmd", "exec", "args"], "command"),
    (&["balance", "lb-policy"], "policy"),
    (&["backend", "server", "servers", "proxy-pass", "target"], "upstream"),
    (&["chdir", "directory", "working-directory"], "cwd"),
    (&["environment"], "env"),
    (&["stdout", "out-file"], "out"),
    (&["stderr", "error-file", "err-file"], "error"),
    (&["timeout-connect", "proxy-connect-timeout"], "connect-timeout"),
    (&["timeout-client", "timeout-server", "keepalive-timeout", "proxy-read-timeout"], "idle-timeout"),
    (&["timeout-queue"], "queue-timeout"),
    (&["client-header-timeout", "timeout-http-request"], "first-byte-timeout"),
    (&["max-memory-restart"], "max-memory"),
    (&["accesslog", "tcplog", "httplog"], "access-log"),
    (&["kill-signal"], "stop-signal"),
    (&["restart-delay", "exp-backoff-restart-delay"], "backoff"),
    (&["uid"], "user"),
    (&["config-file", "conf"], "config"),
    (&["loglevel", "verbosity"], "log-level"),
    (&["time", "log-date-format"], "timestamps"),
    (&["shutdown-with-message"], "stop-message"),
];

/// What to do with a file that is one of PM2's by its name: an ecosystem file.
pub fn ecosystem(file: &str) -> Option<String> {
    const ENDINGS: [&str; 6] = [".config.js", ".config.cjs", ".config.mjs", ".json", ".yaml", ".yml"];
    let advice = "is not TOML; to convert a file of PM2: roundsman import";
    ENDINGS.iter().any(|ending| file.ends_with(ending)).then(|| format!("{advice} {file} > roundsman.toml"))
}

fn find<'a>(table: &[(&[&str], &'a str)], word: &str) -> Option<&'a str> {
    table.iter().find(|(words, _)| words.contains(&word)).map(|(_, answer)| *answer)
}

fn spelling(key: &str) -> String {
    key.to_ascii_lowercase().replace(['_', ' '], "-")
}

/// Advice for a command of another program.
pub fn verb(word: &str) -> Option<&'static str> {
    find(&VERBS, word)
}

/// Advice for an option, with its dashes.
pub fn flag(word: &str) -> Option<&'static str> {
    find(&FLAGS, word)
}

/// Advice for a key or option that does not exist here.
pub fn missing(key: &str) -> Option<&'static str> {
    find(&MISSING, &spelling(key))
}

/// Our name for a key.
pub fn key(key: &str) -> Option<&'static str> {
    find(&KEYS, &spelling(key))
}
