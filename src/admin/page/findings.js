// What is wrong, since when, and what to do about it.
const UNITS = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
function duration(seconds) {
  const at = UNITS.findIndex(([unit]) => seconds >= unit);
  if (at < 0) return '0 s';
  const [unit, name] = UNITS[at], next = UNITS[at + 1];
  const rest = next && seconds < 10 * unit ? Math.floor((seconds % unit) / next[0]) : 0;
  return Math.floor(seconds / unit) + ' ' + name + (rest ? ' ' + rest + ' ' + next[1] : '');
}
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false });
function number(value) {
  if (value < 10) return String(Math.round(value * 10) / 10);
  return Math.round(value).toLocaleString('en').replace(/,/g, '\u202f');
}
function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (value >= 1000 && at < 4) { value /= 1024; at++; }
  return (value < 10 && at > 1 ? Math.round(value * 10) / 10 : Math.round(value)) + '\u00a0' + units[at];
}
const percent = (value) => (value < 10 ? Math.round(value * 10) / 10 : Math.round(value)) + '\u00a0%';
// A latency bucket by its upper bound: 8 µs and its doublings; the last one has none.
const BUCKETS = 18;
function waited(bucket) {
  if (!bucket) return '–';
  if (bucket >= BUCKETS) return '>\u00a00.3\u00a0s';
  const us = 8.192 * 2 ** (bucket - 1);
  const round = (value) => (value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
  return us < 1000 ? Math.round(us) + '\u00a0µs' : round(us / 1000) + '\u00a0ms';
}
const several = (count, one, more) => count + ' ' + (count === 1 ? one : more || one + 's');
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] || 0;

const isLine = (service) => service.held && (service.longest_wait_ms >= 250 || !service.slots.some((slot) => slot.state === 'online'));
const line = (service) => several(service.held, 'client waits', 'clients wait') + ' for a worker, the first of them for ' + waitedFor(service.longest_wait_ms);
const waitedFor = (ms) => (ms < 950 ? ms + ' ms' : ms < 9950 ? Math.round(ms / 100) / 10 + ' s' : duration(ms / 1000));

// States in words.
const STATES = { waiting: 'down and starts again soon', launching: 'starting', errored: 'given up' };
const LEVELS = {
  online: 'good', launching: 'warn', draining: 'warn', stopping: 'warn', waiting: 'bad', errored: 'bad', gone: 'none',
};
// How long slots have been as they are: the page sees that itself.
const seen = new Map();
function since(key, value) {
  const known = seen.get(key);
  if (known && known.value === value) return known.at;
  seen.set(key, { value, at: feed.state.at });
  return feed.state.at;
}

// Why a slot is slow beside the others, by its points; null when it is not.
function slow(point, others) {
  const p99 = POINT.p99, cpu = POINT.cpu;
  const usual = median(others.map((other) => other[p99]).filter((bucket) => bucket));
  // Eight times as long, and a millisecond at least.
  if (others.length && point[p99] >= Math.max(usual + 3, 9)) {
    return { column: 'p99', text: 'connections wait ' + waited(point[p99]) + ' for it (p99)' + (usual ? ', ' + waited(usual) + ' for the others' : '') };
  }
  const busy = median(others.map((other) => other[cpu]));
  if (others.length && point[cpu] >= 80 && point[cpu] >= busy + 40) {
    return { column: 'cpu', text: 'it uses ' + percent(point[cpu]) + ' of a CPU, the others ' + percent(busy) };
  }
  return null;
}

// The points of a service's slots, the latest first.
function* pointsBack(name) {
  for (let at = feed.columns.length - 1; at >= 0; at--) {
    const service = feed.columns[at].services.find((one) => one.name === name);
    if (!service) return;
    yield [feed.columns[at].at, service.slots];
  }
}

// Since when something has been so of a slot's point and the others', by the history; a moment without it is not its end.
function slotSince(name, slot, test) {
  let first = null, missed = 0;
  for (const [at, points] of pointsBack(name)) {
    if (!points[slot]) break;
    if (test(points[slot], points.filter((_, other) => other !== slot))) [first, missed] = [at, 0];
    else if (++missed > 2) break;
  }
  return first;
}

// Turns pass over a slot that is slow: it has few connections, and those for long.
const usualRate = (points) => median(points.map((point) => point[POINT.rate]).filter((rate) => rate));
const isBehind = (point, others) => point[POINT.rate] * 3 <= usualRate(others) && point[POINT.open] > 0;
function lags(service, slot) {
  if (!['rr', 'least-conn'].includes(service.policy) || slot.uptime_s < 12) return null;
  const recent = [...pointsBack(service.name)].slice(0, 4).map(([, points]) => points).concat([service.slots.map((one) => one.now)]);
  const mean = (at) => [POINT.rate, POINT.open].map((key) => recent.reduce((sum, points) => sum + (points[at] ? points[at][key] : 0), 0) / recent.length);
  const others = service.slots.filter((other) => other !== slot && other.state === 'online').map((other) => mean(other.slot));
  const [rate, open] = mean(slot.slot), usual = usualRate(others);
  if (recent.length < 4 || usual < 2 || rate * 3 > usual || open < 0.5 || open < 2 * median(others.map((other) => other[1]))) return null;
  const time = rate ? ', ' + number(1000 * open / rate) + ' ms each' : '';
  return { column: 'rate', text: 'it serves ' + number(rate) + ' connections a second' + time + ', the others ' + number(usual) };
}

function lastEvent(name, slot, test, within) {
  const recent = (event) => event.service === name && (slot === null || event.slot === slot) && test(event)
    && (!within || feed.state.at - event.at < within);
  return feed.events.findLast(recent);
}

// Each: level, service, slot, text, since, commands, and the column of the table that it is about.
function findings() {
  const found = [], state = feed.state;
  if (!state) return found;
  if (state.stopping) found.push({ level: 'warn', text: 'The daemon is stopping.', commands: [] });
  for (const service of state.services) {
    const name = service.name;
    const add = (level, slot, text, more) => found.push({ level, service: name, slot, text, commands: [], ...more });
    const online = service.slots.filter((slot) => slot.state === 'online').length;
    if (service.stopped) {
      add('note', null, 'is stopped: clients are refused', { commands: ['start ' + name], action: 'start' });
      continue;
    }
    if (!service.slots.length) add('warn', null, 'has no slots', { commands: ['scale 1 ' + name] });
    else if (!online && service.sick) add('bad', null, 'has no worker online: its clients wait', { commands: ['logs ' + name] });
    else if (service.sick && service.upstreams.every((one) => one.up)) add('bad', null, 'has nothing online that is not drained: its clients wait', { commands: ['undrain ' + name], action: 'undrain' });
    for (const slot of service.slots) slotFindings(service, slot, add);
    const { server, limit_reached: limit } = service;
    if (server && server.state !== 'online') {
      add('bad', null, 'its server is ' + (STATES[server.state] || server.state) + (server.last_exit ? ': ' + server.last_exit : ''), { since: since(name + '/server', server.state), commands: ['logs ' + name] });
    }
    // A short line is what a limit is for.
    if (isLine(service)) {
      const first = Math.min(since(name + '/held', true), state.at - service.longest_wait_ms);
      add(online ? 'warn' : 'bad', null, line(service), { since: first, commands: online ? ['scale +1 ' + name, 'logs ' + name] : ['logs ' + name] });
    } else seen.delete(name + '/held');
    if (limit) add('warn', null, 'accepts no client at the moment: --' + limit + ' is reached', { since: since(name + '/limit', limit), commands: ['ls'] });
    else seen.delete(name + '/limit');
    const reset = lastEvent(name, null, (event) => event.text.startsWith('connections reset'), 300000);
    if (reset) add('bad', null, 'clients were reset: no worker took them in time', { since: reset.at, commands: ['scale +1 ' + name] });
    for (const { addr, drain, weight } of service.upstreams) {
      if (drain) add('note', null, 'upstream ' + addr + ' is drained: it gets no new connections', { commands: ['undrain ' + name + '@' + addr], action: 'undrain', upstream: addr });
      else if (weight === 0) add('note', null, 'upstream ' + addr + ' has weight 0: it gets no new connections', { commands: ['weight ' + name + '@' + addr + ' 1'] });
    }
    for (const upstream of service.upstreams.filter((one) => !one.up)) {
      const down = lastEvent(name, null, (event) => event.text.startsWith('upstream down') && event.text.includes(upstream.addr));
      const more = upstream.last_error ? ': ' + upstream.last_error : '';
      const all = service.upstreams.every((one) => !one.up);
      add(all ? 'bad' : 'warn', null, 'upstream ' + upstream.addr + ' is down' + more, { since: down && down.at, upstream: upstream.addr, hint: 'start the server there, or', commands: ['drain ' + name + '@' + upstream.addr], action: 'drain' });
    }
    if (service.waiting_for_upstream) add('bad', null, several(service.waiting_for_upstream, 'client waits', 'clients wait') + ' for an upstream', {});
  }
  const order = ['bad', 'warn', 'note'];
  return found.sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level));
}

// Findings that differ in their slot alone are one line.
function grouped(found) {
  const groups = new Map();
  for (const one of found) {
    const key = [one.level, one.service, one.text, one.slot === null].join('\n');
    const group = groups.get(key);
    if (!group) groups.set(key, { ...one, slots: [one.slot] });
    else {
      group.slots.push(one.slot);
      group.since = one.since && group.since ? Math.min(one.since, group.since) : group.since;
    }
  }
  return [...groups.values()];
}

// 0, 1, 2, 5 as "0–2, 5".
function ranges(numbers) {
  const parts = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else parts.push([number, number]);
  }
  return parts.map(([from, to]) => (from === to ? from : from + (to === from + 1 ? ', ' : '–') + to)).join(', ');
}

// How often each slot's queue went to others in the last minute.
function stalls(name) {
  const counts = new Map();
  for (const event of feed.events) {
    if (event.service === name && event.text.startsWith('worker stalled') && feed.state.at - event.at < 60000) {
      counts.set(event.slot, (counts.get(event.slot) || 0) + 1);
    }
  }
  return counts;
}

function slotFindings(service, slot, add) {
  const name = service.name, at = slot.slot, label = name + '/' + at;
  const logs = 'logs ' + label, why = slot.last_exit ? ': ' + slot.last_exit : '';
  const begin = since(label + '/state', slot.state);
  const ended = lastEvent(name, at, (event) => event.text.includes('exited') || event.text.startsWith('slot given up'));
  const crashes = feed.events.filter((event) => event.service === name && event.slot === at && /^(server|relay worker) exited/.test(event.text) && feed.state.at - event.at < 300000);
  if (slot.state === 'errored') {
    add('bad', at, 'was given up' + why, { since: ended && ended.at, column: 'state', commands: [logs, 'restart ' + label], action: 'restart' });
  } else if (crashes.length > 1) {
    add(slot.state === 'online' && crashes.length < 3 ? 'warn' : 'bad', at, 'exited ' + crashes.length + ' times in 5 minutes and was started again' + why, { since: crashes[0].at, column: slot.state === 'online' ? 'restarts' : 'state', commands: [logs] });
  } else if (slot.state === 'waiting' || (slot.state === 'launching' && crashes.length)) {
    add('bad', at, 'is down and starts again soon' + why, { since: ended && ended.at, column: 'state', commands: [logs] });
  } else if (slot.state === 'gone' && !slot.finished) {
    add('warn', at, 'is empty', { since: begin, column: 'state', commands: [logs] });
  } else if (slot.state === 'launching' && feed.state.at - begin > 10000) {
    add('warn', at, 'is not ready yet' + (slot.reason ? ': ' + slot.reason : ''), { since: begin, column: 'state', commands: [logs] });
  } else if (crashes.length && slot.restarts) {
    add('warn', at, 'was restarted' + (why || ': it exited'), { since: crashes[0].at, column: 'restarts', commands: [logs] });
  }
  if (slot.state !== 'online') return;
  if (slot.drain) add('note', at, 'is drained: it gets no new connections', { commands: ['undrain ' + label], action: 'undrain' });
  else if (slot.weight === 0) add('note', at, 'has weight 0: it gets no new connections', { commands: ['weight ' + label + ' 1'] });
  // On a machine that is too busy all of them are late at times: that is no finding.
  const late = stalls(name), usual = median(service.slots.filter((other) => other !== slot).map((other) => late.get(other.slot) || 0));
  const stall = (late.get(at) || 0) >= 3 + 3 * usual;
  const others = service.slots.filter((other) => other !== slot && other.state === 'online').map((other) => other.now);
  const known = slow(slot.now, others), reason = known || lags(service, slot);
  if (reason) {
    add('warn', at, 'is slow: ' + reason.text, { since: slotSince(name, at, known ? slow : isBehind), column: reason.column, hot: true, commands: [logs, 'reload ' + label], action: 'reload' });
  } else if (stall) {
    add('warn', at, 'often takes its connections too late; others get them (' + late.get(at) + ' times in a minute)', { column: 'p99', hot: true, commands: [logs] });
  }
  if (!slot.pending) seen.delete(label + '/pending');
  else if (feed.state.at - since(label + '/pending', true) > 3000) {
    add('warn', at, 'is stuck: it does not take ' + several(slot.pending, 'connection') + ' that it was given', { since: since(label + '/pending', true), column: 'pending', hot: true, commands: [logs, 'reload ' + label], action: 'reload' });
  }
  if (service.max_memory && slot.now[POINT.memory] > 0.9 * service.max_memory) {
    add('warn', at, 'uses ' + bytes(slot.now[POINT.memory]) + ' of ' + bytes(service.max_memory) + ' (--max-memory)', { column: 'memory', commands: ['reload ' + label], action: 'reload' });
  }
}
