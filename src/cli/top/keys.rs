//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rows::{Row, Subject, label};
use super::screen::{MAX_FILTER, Mode, Order, Screen};
use crate::cli::place::Part;
use crate::config::instances::Change;
use crate::control::Request;

/// What a key asks of the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    None,
    Quit,
    Suspend,
    /// The terminal may show something else.
    Redraw,
    /// To be carried out.
    Order(Box<Order>),
    /// The lines of the selected service or slot.
    Logs,
    /// The lines are no longer wanted.
    LogsEnd,
}

/// The keys of the table, for the help and the last line.
pub const KEYS: [(&str, &str); 14] = [
    ("↑ ↓ j k", "select a line; also PgUp PgDn Home End"),
    ("r", "reload: replace workers without losing a request"),
    ("R", "restart: stop, then start; clients wait"),
    ("d", "drain a slot or upstream, or give it new connections again"),
    ("+ -", "one slot more, one less"),
    ("x", "stop a service, or start it again"),
    ("", "R, - and x ask first"),
    ("l Enter", "logs of the service or slot"),
    ("s", "sort by the next column"),
    ("/", "filter by name, slot, state, address or pid; Esc: no filter"),
    ("? h F1", "this help"),
    ("Ctrl-L", "draw again"),
    ("Ctrl-Z", "suspend"),
    ("q Ctrl-C", "quit"),
];

/// Carries out a key; `page` is the number of lines of a screen.
pub fn press(screen: &mut Screen, rows: &[Row<'_>], key: KeyEvent, page: usize) -> Wish {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return Wish::Quit,
        KeyCode::Char('z') if control => return Wish::Suspend,
        KeyCode::Char('l') if control => return Wish::Redraw,
        KeyCode::Char(_) if control => return Wish::None,
        _ => {}
    }
    let page = isize::try_from(page.max(1)).unwrap_or(1);
    match std::mem::take(&mut screen.mode) {
        Mode::Table => table(screen, rows, key.code, page),
        // Any key.
        Mode::Help => Wish::None,
        Mode::Filter => filter(screen, key.code),
        Mode::Confirm(order) => match key.code {
            KeyCode::Char('y' | 'Y') => Wish::Order(Box::new(order)),
            KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => {
                screen.say(format!("{}: not done", order.name), false);
                Wish::None
            }
            _ => {
                screen.mode = Mode::Confirm(order);
                Wish::None
            }
        },
        Mode::Logs(mut logs) => {
            let all = isize::try_from(logs.lines.len()).unwrap_or(isize::MAX);
            match key.code {
                KeyCode::Char('q' | 'l') | KeyCode::Esc => return Wish::LogsEnd,
                KeyCode::Up | KeyCode::Char('k') => logs.scroll(1),
                KeyCode::Down | KeyCode::Char('j') => logs.scroll(-1),
                KeyCode::PageUp => logs.scroll(page),
                KeyCode::PageDown | KeyCode::Char(' ') => logs.scroll(-page),
                KeyCode::Home | KeyCode::Char('g') => logs.scroll(all),
                KeyCode::End | KeyCode::Char('G') => logs.back = 0,
                _ => {}
            }
            screen.mode = Mode::Logs(logs);
            Wish::None
        }
    }
}

fn table(screen: &mut Screen, rows: &[Row<'_>], code: KeyCode, page: isize) -> Wish {
    let all = isize::try_from(rows.len()).unwrap_or(isize::MAX);
    match code {
        KeyCode::Char('q') => return Wish::Quit,
        KeyCode::Char('?' | 'h') | KeyCode::F(1) => screen.mode = Mode::Help,
        KeyCode::Up | KeyCode::Char('k') => screen.step(rows, -1),
        KeyCode::Down | KeyCode::Char('j') => screen.step(rows, 1),
        KeyCode::PageUp => screen.step(rows, -page),
        KeyCode::PageDown | KeyCode::Char(' ') => screen.step(rows, page),
        KeyCode::Home | KeyCode::Char('g') => screen.step(rows, -all),
        KeyCode::End | KeyCode::Char('G') => screen.step(rows, all),
        KeyCode::Char('s') => screen.sort = screen.sort.next(),
        KeyCode::Char('/') => screen.mode = Mode::Filter,
        KeyCode::Esc => {
            screen.filter.clear();
            screen.status = None;
        }
        KeyCode::Char('l') | KeyCode::Enter => return Wish::Logs,
        KeyCode::Char(letter @ ('r' | 'R' | 'd' | 'x' | '+' | '=' | '-')) => {
            let Some(row) = rows.get(screen.at) else { return Wish::None };
            match order(row, letter) {
                Ok(order) if order.hurts.is_some() => screen.mode = Mode::Confirm(order),
                Ok(order) => return Wish::Order(Box::new(order)),
                Err(why) => screen.say(why, true),
            }
        }
        _ => {}
    }
    Wish::None
}

fn filter(screen: &mut Screen, code: KeyCode) -> Wish {
    screen.mode = Mode::Filter;
    match code {
        KeyCode::Enter => screen.mode = Mode::Table,
        KeyCode::Esc => {
            screen.filter.clear();
            screen.mode = Mode::Table;
        }
        KeyCode::Backspace => drop(screen.filter.pop()),
        KeyCode::Char(c) if screen.filter.chars().count() < MAX_FILTER => screen.filter.push(c),
        _ => {}
    }
    Wish::None
}

/// The request of a letter for a line.
fn order(row: &Row<'_>, letter: char) -> Result<Order, String> {
    let key = row.key();
    let service = Some(key.service.clone());
    let slot = match key.part {
        Part::Slot(number) => Some(number),
        _ => None,
    };
    let upstream = match &key.part {
        Part::Upstream(address) => Some(address.clone()),
        _ => None,
    };
    let label = label(&key.service, &key.part);
    let running = |verb: &str| match &upstream {
        Some(_) => Err(format!("{label} is an upstream: roundsman does not run it, and cannot {verb} it")),
        None => Ok(()),
    };
    let whole = key.service.clone();
    let (name, request, hurts) = match letter {
        'r' => {
            running("reload")?;
            (format!("reload {label}"), Request::Reload { service, slot }, None)
        }
        'R' => {
            running("restart")?;
            let hurts = "open connections end, and clients wait until it is back";
            (format!("restart {label}"), Request::Restart { service, slot }, Some(hurts))
        }
        'x' if row.service.stopped => (format!("start {whole}"), Request::Start { service }, None),
        'x' => {
            let hurts = "clients are refused until it is started again";
            (format!("stop {whole}"), Request::Stop { service }, Some(hurts))
        }
        'd' => {
            let drained = match row.subject {
                Subject::Service => return Err(format!("drain: select a slot or an upstream of {whole}")),
                Subject::Slot(slot) => slot.drain,
                Subject::Upstream(upstream) => upstream.drain,
            };
            match drained {
                true => (format!("undrain {label}"), Request::Undrain { service, slot, upstream }, None),
                false => (format!("drain {label}"), Request::Drain { service, slot, upstream, force: false }, None),
            }
        }
        '-' => {
            let hurts = "the worker of the last slot is drained and stopped";
            (format!("scale {whole} -1"), Request::Scale { service, to: Change::By(-1) }, Some(hurts))
        }
        _ => (format!("scale {whole} +1"), Request::Scale { service, to: Change::By(1) }, None),
    };
    Ok(Order { key, name, request, hurts })
}
