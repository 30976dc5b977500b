//! Which role: master, relay worker, control command.

use std::process::ExitCode;

use roundsman::admin::token::Token;
use roundsman::cli::place::Part;
use roundsman::cli::{self, Places, Targets, Verb, demo};
use roundsman::codes::{CONFIG, OS, USAGE};
use roundsman::config::Config;
use roundsman::config::sources::Given;
use roundsman::control::Request;
use roundsman::daemon::upgrade::TRY;
use roundsman::daemon::upgrade::takeover::{self, Takeover, TakeoverError};
use roundsman::exit::{Exit, tell};
use roundsman::output::follow::LogKind;
use roundsman::output::servers::Servers;
use roundsman::{admin, config, daemon, keeper, output, relay};

fn main() -> ExitCode {
    // The internal roles stay small: they need no command line parser.
    match std::env::args_os().nth(1).as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("relay-worker") => {
            return end(relay::main().map(|()| 0).map_err(|error| Exit::new(OS, error.to_string())));
        }
        Some(roundsman::launch::KEEPER_ROLE) => {
            return end(
                keeper::main(std::env::args_os().skip(2)).map_err(|error| Exit::new(error.code(), error.to_string()))
            );
        }
        Some(keeper::probe::ROLE) => return ExitCode::from(keeper::probe::main()),
        Some(keeper::probe::SERVER_ROLE) => return ExitCode::from(keeper::probe::server()),
        Some("demo-server") => return end(demo::serve().map(|()| 0)),
        Some(TRY) => return end(try_record().map(|()| 0)),
        _ => {}
    }
    let (cli, given) = roundsman::cli::parse().unwrap_or_else(|error| error.exit());
    let result = match cli.verb {
        None if cli.detach => {
            Config::load(given, daemon::inherited()).map_err(Exit::from).and_then(|config| cli::detach::start(&config))
        }
        None => run(given, Greeting::None),
        Some(Verb::Demo(options)) => demo::options(&options).and_then(|given| run(given, Greeting::Demo)),
        Some(Verb::Check(_)) => cli::check::check(given).map(|()| 0),
        Some(Verb::Ls(options)) if options.watch.is_some() => cli::watch::watch(&options).map(|()| 0),
        Some(Verb::Top(target)) => cli::top::run(&target).map(|()| 0),
        Some(Verb::Ls(options)) => cli::client::ls(&options).map(|()| 0),
        Some(Verb::Logs(options)) => cli::logs::show(&options.lines, LogKind::Lines, !options.no_events).map(|()| 0),
        Some(Verb::Events(options)) => cli::events::show(&options).map(|()| 0),
        Some(Verb::Messages(options)) => cli::logs::show(&options, LogKind::Messages, false).map(|()| 0),
        Some(Verb::Send(options)) => cli::client::send(&options).map(|()| 0),
        Some(Verb::Health(targets)) => cli::client::health(&targets).map(|()| 0),
        Some(Verb::Reload(places)) => slots(&places, "reload", |service, slot| Request::Reload { service, slot }),
        Some(Verb::Restart(places)) => slots(&places, "restart", |service, slot| Request::Restart { service, slot }),
        Some(Verb::Drain(options)) => cli::drain::drain(&options).map(|()| 0),
        Some(Verb::Undrain(places)) => cli::drain::undrain(&places).map(|()| 0),
        Some(Verb::Weight(options)) => cli::weight::set(&options).map(|()| 0),
        Some(Verb::Stop(targets)) => each(&targets, |service| Request::Stop { service }),
        Some(Verb::Start(targets)) => each(&targets, |service| Request::Start { service }),
        Some(Verb::Quit(targets)) => cli::quit::quit(&targets).map(|()| 0),
        Some(Verb::Upgrade(options)) => cli::upgrade::upgrade(&options).map(|()| 0),
        Some(Verb::Unit(options)) => cli::unit::print(&options).map(|()| 0),
        Some(Verb::Scale(scale)) => scale
            .meant()
            .and_then(|(to, target)| cli::client::order(&target, |service| Request::Scale { service, to }).map(|()| 0)),
        Some(Verb::Import(options)) => cli::import::import(&options.file, options.env.as_deref()).map(|()| 0),
        Some(Verb::Completions(options)) => cli::manual::completions(options.shell).map(|()| 0),
        Some(Verb::Man(options)) => cli::manual::man(options.directory.as_deref()).map(|()| 0),
    };
    end(result)
}

fn end(result: Result<u8, Exit>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(exit) => {
            tell(&exit);
            ExitCode::from(exit.code)
        }
    }
}

fn each(targets: &Targets, request: impl Fn(Option<String>) -> Request) -> Result<u8, Exit> {
    cli::client::order_each(targets, request).map(|()| 0)
}

/// For services and slots, not for upstreams.
fn slots(places: &Places, verb: &str, request: impl Fn(Option<String>, Option<u32>) -> Request) -> Result<u8, Exit> {
    cli::client::order_places(places, |service, part| match part {
        Part::Whole => Ok(request(service, None)),
        Part::Slot(slot) => Ok(request(service, Some(slot))),
        Part::Upstream(address) => {
            Err(Exit::new(USAGE, format!("{address} is an upstream: roundsman does not run it, and cannot {verb} it")))
        }
    })
    .map(|()| 0)
}

enum Greeting {
    None,
    Demo,
}

/// Whether this program could go on from a daemon's record, which is standard input. The words after the first are the daemon's.
fn try_record() -> Result<(), Exit> {
    let mut words: Vec<_> = std::env::args_os().collect();
    words.remove(1);
    let (cli, given) = cli::parse_words(words).map_err(|error| Exit::new(USAGE, error.to_string()))?;
    let given = match cli.verb {
        Some(Verb::Demo(options)) => demo::options(&options)?,
        _ => given,
    };
    Ok(takeover::try_record(given)?)
}

/// Goes on where another program was.
fn take_over(mut before: Takeover, given: Given) -> Result<u8, Exit> {
    let ready = |before: &mut Takeover| -> Result<_, Exit> {
        let os = |doing| move |source| TakeoverError::Os { doing, source };
        let config = before.config(given)?;
        let token = Token::of(config.admin_token_file.as_deref()).map_err(|error| error.to_string());
        let token = token.map_err(TakeoverError::Token)?;
        if let Some((service, _)) = config.services.first() {
            output::background::watch(
                cli::detach::log_of(&config),
                service.files.rotate_size,
                service.files.rotate_keep,
            );
        }
        let log = output::start(config.log_format, &config.log_level).map_err(os("cannot start the output thread"))?;
        let servers = Servers::start(config.output, log.recent()).map_err(os("cannot start a thread"))?;
        log.keep_in(&servers);
        let recent = log.recent();
        let admin = before.admin()?.map(|listener| admin::Open { listener, token, recent });
        Ok((config, servers, admin, log))
    };
    match ready(&mut before) {
        Ok((config, servers, admin, log)) => {
            let result = before.go_on(config, &servers, admin, log.clone());
            servers.finish();
            log.flush();
            Ok(result?)
        }
        Err(error) => {
            before.give_back(&error);
            Err(error)
        }
    }
}

fn run(given: Given, greeting: Greeting) -> Result<u8, Exit> {
    if let Some(before) = Takeover::begin()? {
        return take_over(before, given);
    }
    let config = Config::load(given, daemon::inherited())?;
    let listeners = daemon::take_inherited(&config)?;
    let admin = config.admin.map(|address| {
        admin::bind(address).map_err(|error| Exit::os(&format!("cannot listen on {} (--admin)", address.0), &error))
    });
    let admin = admin.transpose()?;
    let token = Token::of(config.admin_token_file.as_deref()).map_err(|error| {
        Exit::new(if config.has_file() { CONFIG } else { USAGE }, format!("--admin-token-file: {error}"))
    })?;
    if let Some((service, _)) = config.services.first() {
        output::background::watch(cli::detach::log_of(&config), service.files.rotate_size, service.files.rotate_keep);
    }
    let log = output::start(config.log_format, &config.log_level)
        .map_err(|error| Exit::os("cannot start the output thread", &error))?;
    for warning in config::sources::unknown_variables() {
        tracing::warn!("{warning}");
    }
    if let (Greeting::Demo, Some(listener)) = (greeting, listeners.first().and_then(|listeners| listeners.first())) {
        println!("{}", demo::welcome(&listener.address));
    }
    let servers =
        Servers::start(config.output, log.recent()).map_err(|error| Exit::os("cannot start a thread", &error))?;
    log.keep_in(&servers);
    let admin = admin.map(|listener| admin::Open { listener, token, recent: log.recent() });
    let result = daemon::main(config, listeners, &servers, admin, log.clone());
    servers.finish();
    log.flush();
    Ok(result?)
}
