//! Which role: master, relay worker, control command.

use std::process::ExitCode;

use roundsman::cli::{Run, Target, Verb};
use roundsman::config::Config;
use roundsman::control::Request;
use roundsman::exit::{Exit, OS};
use roundsman::output::servers::Servers;
use roundsman::{control, demo, output, relay, supervisor};

fn main() -> ExitCode {
    // The internal roles stay small: they need no command line parser.
    match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("relay-worker") => return end(role(relay::main())),
        Some("demo-server") => return end(role(demo::serve())),
        _ => {}
    }
    let cli = roundsman::cli::parse().unwrap_or_else(|error| error.exit());
    let result = match cli.verb {
        None => run(cli.run, Greeting::None),
        Some(Verb::Demo(options)) => demo::options(&options).and_then(|cli| run(cli.run, Greeting::Demo)),
        Some(Verb::Ls(options)) => control::client::ls(&options).map(|()| 0),
        Some(Verb::Reload(target)) => order(&target, &Request::Reload {}),
        Some(Verb::Restart(target)) => order(&target, &Request::Restart {}),
        Some(Verb::Stop(target)) => order(&target, &Request::Stop {}),
        Some(Verb::Start(target)) => order(&target, &Request::Start {}),
        Some(Verb::Scale(scale)) => order(&scale.target, &Request::Scale { to: scale.to }),
    };
    end(result)
}

fn end(result: Result<u8, Exit>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(exit) => {
            eprintln!("roundsman: {}", exit.message);
            ExitCode::from(exit.code)
        }
    }
}

fn order(target: &Target, request: &Request) -> Result<u8, Exit> {
    control::client::order(target, request).map(|()| 0)
}

enum Greeting {
    None,
    Demo,
}

fn run(run: Run, greeting: Greeting) -> Result<u8, Exit> {
    let config = Config::from_cli(run, supervisor::inherited())?;
    let listeners = supervisor::take_inherited(&config.service.listen)?;
    let log = output::start(config.log_format, &config.log_level)
        .map_err(|error| Exit::os("cannot start the output thread", &error))?;
    if let (Greeting::Demo, Some(listener)) = (greeting, listeners.first()) {
        println!("{}", demo::welcome(&listener.address));
    }
    let servers = Servers::start(config.output).map_err(|error| Exit::os("cannot start a thread", &error))?;
    let result = supervisor::main(config, listeners, &servers);
    servers.finish();
    log.flush();
    result
}

fn role(result: anyhow::Result<()>) -> Result<u8, Exit> {
    result.map(|()| 0).map_err(|error| Exit::new(OS, format!("{error:#}")))
}
