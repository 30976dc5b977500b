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

const LEVELS = {
  online: 'good', launching: 'warn', draining: 'warn', stopping: 'warn', waiting: 'bad', errored: 'bad', gone: 'none',
};
// How long slots have been as they are: the page sees that itself.
const seen = new Map();
function since(key, value) {
  const known = seen.get(key);
  if (known && known.value === value) return known.at;
  seen.set(key, { value, at: Date.now() });
  return Date.now();
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

// Since when a slot has been slow, by the history.
function slowSince(name, slot) {
  let first = null;
  for (let at = feed.columns.length - 1; at >= 0; at--) {
    const service = feed.columns[at].services.find((one) => one.name === name);
    const point = service && service.slots[slot];
    if (!point || !slow(point, service.slots.filter((_, other) => other !== slot))) break;
    first = feed.columns[at].at;
  }
  return first;
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
    for (const slot of service.slots) slotFindings(service, slot, add);
    const waiting = service.held;
    if (waiting) add(online ? 'warn' : 'bad', null, several(waiting, 'client waits', 'clients wait') + ' for a worker', { since: since(name + '/held', true), commands: ['ls'] });
    else seen.delete(name + '/held');
    const reset = lastEvent(name, null, (event) => event.text.startsWith('connections reset'), 300000);
    if (reset) add('bad', null, 'clients were reset: no worker took them in time', { since: reset.at, commands: ['scale +1 ' + name] });
    for (const upstream of service.upstreams.filter((one) => !one.up)) {
      const down = lastEvent(name, null, (event) => event.text.startsWith('upstream down') && event.text.includes(upstream.addr));
      const more = upstream.last_error ? ': ' + upstream.last_error : '';
      const all = service.upstreams.every((one) => !one.up);
      add(all ? 'bad' : 'warn', null, 'upstream ' + upstream.addr + ' is down' + more, { since: down && down.at, upstream: upstream.addr, commands: ['logs ' + name] });
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
  if (slot.state === 'errored') {
    add('bad', at, 'was given up' + why, { since: ended && ended.at, column: 'state', commands: [logs, 'restart ' + label], action: 'restart' });
  } else if (slot.state === 'waiting') {
    add('bad', at, 'is down and starts again soon' + why, { since: ended && ended.at, column: 'state', commands: [logs] });
  } else if (slot.state === 'gone' && !slot.finished) {
    add('warn', at, 'is empty', { since: begin, column: 'state', commands: [logs] });
  } else if (slot.state === 'launching' && Date.now() - begin > 10000) {
    add('warn', at, 'is not ready yet' + (slot.reason ? ': ' + slot.reason : ''), { since: begin, column: 'state', commands: [logs] });
  } else if (slot.state === 'online' && slot.restarts && ended && slot.uptime_s < 300 && feed.state.at - ended.at < 300000) {
    const times = slot.restarts > 1 ? ', ' + slot.restarts + ' times in all' : '';
    add('warn', at, 'was restarted' + (why || ': it exited') + times, { since: ended.at, column: 'restarts', commands: [logs] });
  }
  if (slot.state !== 'online') return;
  if (slot.drain) add('note', at, 'is drained: it gets no new connections', { commands: ['undrain ' + label], action: 'undrain' });
  // On a machine that is too busy all of them are late at times: that is no finding.
  const late = stalls(name), usual = median(service.slots.filter((other) => other !== slot).map((other) => late.get(other.slot) || 0));
  const stall = (late.get(at) || 0) >= 3 + 3 * usual;
  const others = service.slots.filter((other) => other !== slot && other.state === 'online').map((other) => other.now);
  const reason = slow(slot.now, others);
  if (reason) {
    add('warn', at, 'is slow: ' + reason.text, { since: slowSince(name, at), column: reason.column, hot: true, commands: [logs, 'reload ' + label], action: 'reload' });
  } else if (stall) {
    add('warn', at, 'often takes its connections too late; others get them (' + late.get(at) + ' times in a minute)', { column: 'p99', hot: true, commands: [logs] });
  }
  if (!slot.pending) seen.delete(label + '/pending');
  else if (Date.now() - since(label + '/pending', true) > 3000) {
    add('warn', at, 'does not take ' + several(slot.pending, 'connection') + ' that it was given', { since: since(label + '/pending', true), column: 'pending', hot: true, commands: [logs] });
  }
  if (service.max_memory && slot.now[POINT.memory] > 0.9 * service.max_memory) {
    add('warn', at, 'uses ' + bytes(slot.now[POINT.memory]) + ' of ' + bytes(service.max_memory) + ' (--max-memory)', { column: 'memory', commands: ['reload ' + label], action: 'reload' });
  }
}
