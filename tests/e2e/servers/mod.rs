//! Mostly waits: The table of servers: each of the list under rr and none, reloaded and killed; docs/servers.md has what passed.

mod cell;
mod document;
mod list;
mod talk;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use list::families;

/// `SERVERS_NAMED=nginx,Puma` runs these alone; `UPDATE_DOCS=1` writes what passed into the document.
#[test]
#[ignore = "long: tests/run --all"]
fn each_server_of_the_list_is_served_reloaded_and_killed() {
    let families = families();
    let named = std::env::var("SERVERS_NAMED").ok();
    let wanted = |name: &str| named.as_ref().is_none_or(|named| named.split(',').any(|part| part == name));
    let all = families.iter().flat_map(|family| family.server.iter().map(move |server| (family, server)));
    let todo: Vec<_> = all.filter(|(_, server)| server.cannot.is_none() && wanted(&server.name)).collect();
    assert!(!todo.is_empty());
    let (queue, shown) = (Mutex::new(todo.into_iter()), Mutex::new(BTreeMap::new()));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some((family, server)) = queue.lock().unwrap().next() else { return };
                    match catch_unwind(AssertUnwindSafe(|| cell::shows(family, server))) {
                        Ok(row) => {
                            println!("{}: {} {:?} {:?}", server.name, row.delivery, row.seen, row.took);
                            shown.lock().unwrap().insert(server.name.clone(), row);
                        }
                        Err(_) => failed.lock().unwrap().push(server.name.clone()),
                    }
                }
            });
        }
    });
    let (shown, failed) = (shown.into_inner().unwrap(), failed.into_inner().unwrap());
    document::compare(&families, &shown);
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn the_document_names_the_servers_of_the_list() {
    let families = families();
    let text = document::read();
    let named: Vec<_> = document::named(&text);
    let listed: Vec<_> = families.iter().flat_map(|family| family.server.iter().map(|server| &*server.name)).collect();
    assert_eq!(named, listed, "docs/servers.md: {}", document::RENEW);
    assert!(text.contains(&document::introduction(&families)), "docs/servers.md: {}", document::RENEW);
}
