#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn daemon(services: usize, slots: usize, connections: u64) -> Daemon {
    let slot = |at: usize| {
        json!({"slot": at, "state": "online", "pid": 1, "server_pid": null, "generation": 1, "restarts": 0, "uptime_s": 1,
            "open": 3, "pending": 0, "connections": connections, "rescued": 0, "rss_bytes": 10 << 20, "cpu": 12.34,
            "reason": null, "last_exit": null})
    };
    let service = |n: usize| {
        json!({"name": format!("s{n}"), "command": null, "policy": "rr", "via": "relay", "via_reason": "", "listen": [],
            "held": 0, "shed": 0, "slots": (0..slots).map(slot).collect::<Vec<_>>()})
    };
    let services: Vec<_> = (0..services).map(service).collect();
    serde_json::from_value(json!({"version": "1", "pid": 1, "uptime_s": 1, "services": services})).unwrap()
}

#[test]
fn a_point_has_the_rate_the_waits_and_the_sums() {
    let (mut history, start) = (History::default(), Instant::now());
    let mut state = daemon(1, 2, 100);
    history.sample(&state, start);
    assert!(history.since(0).0.is_empty(), "nothing to compare with");
    for slot in &mut state.services[0].slots {
        slot.connections += 50;
        slot.counts.latencies[0] = 98;
        slot.counts.latencies[12] = 2;
    }
    history.sample(&state, start + MIN_STEP);
    let (columns, next) = history.since(0);
    assert_eq!((columns.len(), next), (1, 1));
    let series = &columns[0].services[0];
    let slot = Point { rate: 10.0, open: 3, memory: 10 << 10, cpu: 123, p50: 1, p99: 13 };
    assert_eq!((series.slots[0], series.slots[1]), (slot, slot));
    assert_eq!(series.all, Point { rate: 20.0, open: 6, memory: 20 << 10, cpu: 246, ..slot });
    // Taken back from one worker for another: no negative rate.
    state.services[0].slots[0].connections -= 10;
    history.sample(&state, start + MIN_STEP * 2);
    assert_eq!(history.since(1).0[0].services[0].slots[0].rate, 0.0);
    assert_eq!(history.since(7).0.len(), 0);
}

#[test]
fn what_is_shown_now_covers_one_to_two_steps() {
    let (mut history, start) = (History::default(), Instant::now());
    history.sample(&daemon(1, 1, 0), start);
    assert_eq!(history.now(&daemon(1, 1, 20), start + MIN_STEP / 5)[0].all.rate, 20.0);
    history.sample(&daemon(1, 1, 50), start + MIN_STEP);
    assert_eq!(history.now(&daemon(1, 1, 60), start + MIN_STEP * 6 / 5)[0].all.rate, 10.0);
    // A service and a slot that were not there before.
    let now = history.now(&daemon(2, 2, 60), start + MIN_STEP * 6 / 5);
    assert_eq!((now.len(), now[1].all.rate, now[0].slots[1].rate), (2, 0.0, 0.0));
}

#[test]
fn fifteen_minutes_are_kept_in_bounded_memory_whatever_the_number_of_slots() {
    for (services, slots, columns) in
        [(1, 0, 181), (1, 8, 181), (1, 64, 181), (1, 1024, 76), (100, 64, 40), (200, 4, 40)]
    {
        let (mut history, start) = (History::default(), Instant::now());
        let state = daemon(services, slots, 1);
        for n in 0..1250 {
            history.sample(&state, start + MIN_STEP / 5 * n);
        }
        let kept: usize = history.columns.iter().map(|(_, column)| column.points()).sum();
        assert!(kept == history.points && kept <= MAX_POINTS, "{services} {slots}: {kept}");
        let of_base =
            |base: &Option<Base>| base.as_ref().map_or(0, |base| base.services.iter().map(|(_, c)| c.len()).sum());
        let counters: usize = of_base(&history.last) + of_base(&history.before);
        let bytes = kept * size_of::<Point>() + counters * size_of::<Counters>();
        assert!(bytes <= 2_000_000, "{services} {slots}: {bytes}");
        let found = history.columns.len();
        assert!(found.abs_diff(columns) <= 2, "{services} {slots}: {found} columns");
    }
}

#[test]
fn many_slots_at_once_push_out_what_is_oldest() {
    let (mut history, start) = (History::default(), Instant::now());
    for n in 0..180 {
        history.sample(&daemon(1, 400, 1), start + MIN_STEP * n);
    }
    let (_, before) = history.since(0);
    for n in 180..360 {
        history.sample(&daemon(1, 1500, 1), start + MIN_STEP * n);
    }
    let (columns, after) = history.since(0);
    assert!(after > before && history.points <= MAX_POINTS, "{}", history.points);
    assert_eq!(columns.last().unwrap().services[0].slots.len(), 1500);
}

#[test]
fn with_a_fixed_step_many_slots_only_shorten_it() {
    let mut history = History::every(Duration::from_secs(1));
    let start = Instant::now();
    for second in 0..200 {
        history.sample(&daemon(1, 1000, second), start + Duration::from_secs(second));
    }
    let (columns, next) = history.since(0);
    assert_eq!((columns.len(), next), (MAX_POINTS / 1010, 199));
    let now = history.now(&daemon(1, 1000, 209), start + Duration::from_secs(200));
    assert_eq!(now[0].slots[0].rate, 10.0);
}

#[test]
fn waits_travel_with_the_state() {
    let mut state = daemon(1, 1, 0);
    state.services[0].slots[0].counts.latencies[17] = 7;
    let text = serde_json::to_string(&state).unwrap();
    let read: Daemon = serde_json::from_str(&text).unwrap();
    assert_eq!(read.services[0].slots[0].counts.latencies[17], 7);
    // Of a version with fewer buckets, or none.
    let text = text.replace(",0,7]", "]");
    assert!(serde_json::from_str::<Daemon>(&text).is_ok());
    assert_eq!((bound(0), bound(18)), (None, None));
    assert_eq!(bound(1), Some(Duration::from_nanos(8192)));
}
