// Stands in for the daemon in a browser: `fetch('events')` gives a made-up daemon, with the same numbers each time.
// SCENARIO, set before this, is one of the names below.
(() => {
  const NOW = Date.UTC(2026, 2, 14, 15, 9, 26);
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const slotAt = (at, more) => ({
    slot: at, state: 'online', pid: 4000 + at, generation: 1, restarts: 0, uptime_s: 86400 * 2 + 3600 * at, open: 12 + (at % 3), pending: 0,
    connections: 1200000 + 31 * at, rescued: 0, ...more,
  });
  const point = (slot, at) => {
    const wave = 1 + 0.25 * Math.sin(at / 11) + 0.1 * random();
    if (slot.state !== 'online') return [0, 0, 0, 0, 0, 0];
    const slow = slot.slow && at > 110;
    return [Math.round(42 * wave * (slow ? 0.4 : 1) * 10) / 10, Math.round(12 * wave * (slow ? 3 : 1)), Math.round((slow ? 97 : 21 * wave) * 10) / 10,
      Math.round((61 + 4 * random() + (slot.slow ? at / 8 : 0)) * 1048576), slow ? 12 : 2, slow ? 15 : 4 + (random() < 0.3)];
  };
  const sum = (points) => points.reduce((all, one) => [all[0] + one[0], all[1] + one[1], all[2] + one[2], all[3] + one[3], Math.max(all[4], one[4] && 2), Math.max(all[5], one[5] && 5)], [0, 0, 0, 0, 0, 0])
    .map((value) => Math.round(value * 10) / 10);
  const service = (name, slots, more) => ({
    name, policy: 'rr', via: 'direct', listen: ['0.0.0.0:8080'], held: 0, shed: 0, waiting_for_upstream: 0, reloads: 3, stopped: false, sick: false,
    upstreams: [], max_memory: null, command: 'node app.js', why: 'the command can be preloaded', cwd: '/srv/shop', slots, ...more,
  });
  const many = (count) => Array.from({ length: count }, (_, at) => slotAt(at));
  const log = (ago, level, where, slot, text) => ({ at: NOW - ago * 1000, level, service: where, slot, text });
  const upstream = (addr, up, more) => ({ addr, up, open: 3, connections: 81000, bytes_in: 5e8, bytes_out: 9e9, errors: 0, last_error: null, last_error_s: null, ...more });

  const scenarios = {
    nothing: () => ({ services: [service('shop', [], { sick: true })], events: [] }),
    one: () => ({ services: [service('shop', many(1))], events: [log(172800, 'info', 'shop', 0, 'worker online pid=4000 took=310ms')] }),
    eight: () => {
      const slots = many(8);
      Object.assign(slots[3], { slow: true });
      Object.assign(slots[5], { state: 'waiting', pid: null, restarts: 4, generation: 5, open: 0, uptime_s: 0, last_exit: 'exit code 1', reason: 'server: exit code 1' });
      const shop = service('shop', slots);
      const mail = service('mail', many(2), { via: 'relay', policy: 'least-conn', listen: ['[::]:25'], command: null, why: 'an upstream is given',
        upstreams: [upstream('10.0.0.5:25', true), upstream('10.0.0.6:25', false, { open: 0, errors: 12, last_error: 'Connection refused', last_error_s: 2 })] });
      return { services: [shop, mail], events: [
        log(7200, 'info', 'shop', null, 'reloading slots=8'), log(7190, 'info', 'shop', null, 'reloaded took=9.8s'),
        log(94, 'warn', 'mail', null, 'upstream down upstream=10.0.0.6:25 error=Connection refused'),
        log(31, 'warn', 'shop', 5, 'server exited pid=4005 status="exit code 1" restart_in=100ms'),
        log(30, 'info', 'shop', 5, 'server started pid=4205'),
        log(12, 'warn', 'shop', 5, 'server exited pid=4205 status="exit code 1" restart_in=15s')] };
    },
    'sixty-four': () => {
      const slots = many(64);
      Object.assign(slots[17], { slow: true });
      for (const at of [40, 41]) Object.assign(slots[at], { state: 'errored', pid: null, restarts: 10, open: 0, uptime_s: 0, last_exit: 'killed by SIGSEGV' });
      return { services: [service('shop', slots)], events: [40, 41].map((at) => log(300, 'error', 'shop', at, 'slot given up: it exited too often in a row')) };
    },
    // A line, weights, drains, recycling, a server that all share.
    trouble: () => {
      const slots = many(3);
      Object.assign(slots[0], { weight: 4 });
      Object.assign(slots[1], { drain: true, open: 2 });
      Object.assign(slots[2], { state: 'launching', pid: 4302, generation: 9, restarts: 8, uptime_s: 0, open: 0, last_exit: 'killed by SIGSEGV' });
      const shop = service('shop', slots, { held: 31, longest_wait_ms: 4210, limit_reached: 'max-conns', max_age_s: 7200, max_served: 50000, recycled: { age: 12, served: 340 } });
      const mail = service('mail', many(1), { via: 'relay', policy: 'least-conn', listen: ['[::]:25'], command: 'mailer --all', held: 2, longest_wait_ms: 40,
        server: { state: 'waiting', restarts: 3, uptime_s: 0, last_exit: 'exit code 70' },
        upstreams: [upstream('10.0.0.5:25', true, { drain: true, weight: 1 }), upstream('10.0.0.6:25', true, { weight: 3 }), upstream('10.0.0.7:25', true, { weight: 1, backup: true })] });
      return { services: [shop, mail], events: [
        log(600, 'info', 'shop', 0, 'slot 0: weight 4, before 1'), log(300, 'info', 'mail', null, 'upstream drained upstream=10.0.0.5:25 open=3'),
        log(240, 'info', 'shop', 1, 'slot drained open=11'),
        ...[65, 47, 29, 11].map((ago) => log(ago, 'warn', 'shop', 2, 'server exited pid=4298 status="killed by SIGSEGV" restart_in=2s'))] };
    },
    markup: () => {
      const bad = '<img src=x onerror="window.hacked=1"><b>fett</b> & "日本" ‮rtl';
      const slots = many(2);
      Object.assign(slots[1], { state: 'errored', last_exit: bad, reason: bad + ' b'.repeat(5000) });
      return { services: [service('<script>window.hacked=1</script>', slots, { command: bad, cwd: '/srv/Größe/日本/' + 'a'.repeat(10000), listen: [bad],
        upstreams: [upstream(bad, false, { last_error: bad, last_error_s: 1 })] })], events: [log(5, 'error', '<i>x', 1, bad)] };
    },
  };

  const { services, events, trusted = true } = scenarios[window.SCENARIO]();
  const encode = (kind, data) => 'event: ' + kind + '\ndata: ' + JSON.stringify(data) + '\n\n';
  let text = encode('hello', { trusted, mayAct: false, token: true });
  for (let at = 0; at < 180; at++) {
    const of = (one) => { const slots = one.slots.map((slot) => point(slot, at)); return { name: one.name, all: sum(slots), slots }; };
    text += encode('column', { at: NOW - (180 - at) * 5000, services: services.map(of) });
  }
  events.forEach((event, number) => { text += encode('log', { number, ...event }); });
  const now = services.map((one) => {
    const slots = one.slots.map((slot) => { const now = point(slot, 180); return { ...slot, open: now[1], now }; });
    return { ...one, slots, now: sum(slots.map((slot) => slot.now)) };
  });
  text += encode('state', { at: NOW, version: '0.2.0', pid: 3999, uptime_s: 200000, stopping: false, services: now });
  window.asked = [];
  window.fetch = async (path, options) => {
    window.asked.push([path, options.method || 'GET', options.body || '']);
    if (path !== 'events') return new Response('{"done":"reloaded 8 slots in 9.8s"}');
    const bytes = new TextEncoder().encode(text);
    // In pieces that end anywhere, in the middle of letters, too.
    return new Response(new ReadableStream({ start(to) { for (let at = 0; at < bytes.length; at += 4093) to.enqueue(bytes.slice(at, at + 4093)); } }));
  };
})();
