'use strict';
// What the daemon sends: the history as columns, events, and the state about once a second.
const POINT = { rate: 0, open: 1, cpu: 2, memory: 3, p50: 4, p99: 5 };
const SPAN = 15 * 60 * 1000, MAX_EVENTS = 200, MAX_SILENCE = 15000;
const feed = {
  state: null, columns: [], events: [], trusted: false, mayAct: false, token: false,
  // null while it is there, else since when and why it is not.
  lost: { since: Date.now(), why: 'connecting' },
};
// Only in memory: a reload of the page forgets it.
let token = '';
let running = null;

// Marks that turn text around would turn the page's own words, too.
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
const clean = (_, value) => (typeof value === 'string' ? value.replace(CONTROLS, '\ufffd') : value);

function received(kind, data) {
  if (kind === 'hello') {
    Object.assign(feed, { columns: [], events: [], trusted: data.trusted, mayAct: data.mayAct, token: data.token });
  } else if (kind === 'column') {
    feed.columns.push(data);
    while (feed.columns.length && feed.columns[0].at < data.at - SPAN) feed.columns.shift();
  } else if (kind === 'log') {
    feed.events.push(data);
    if (feed.events.length > MAX_EVENTS) feed.events.shift();
  } else if (kind === 'silent') {
    lose('the daemon’s control thread does not answer');
  } else if (kind === 'state') {
    feed.state = data;
    feed.lost = null;
    show();
  }
}

function lose(why) {
  feed.lost = { since: feed.lost ? feed.lost.since : Date.now(), why };
  show();
}

async function listen() {
  const stop = new AbortController();
  running = stop;
  let timer;
  const alive = () => { clearTimeout(timer); timer = setTimeout(() => stop.abort(), MAX_SILENCE); };
  try {
    alive();
    const headers = token ? { Authorization: 'Bearer ' + token } : {};
    const answer = await fetch('events', { headers, signal: stop.signal, cache: 'no-store' });
    if (!answer.ok) {
      const why = (await answer.text()).trim();
      if (answer.status === 401) { token = ''; say('That is not the token.'); }
      throw new Error(why || 'status ' + answer.status);
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error('the daemon has ended the connection');
      alive();
      text += value;
      for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
        const [kind, data] = text.slice(0, end).split('\n');
        received(kind.slice(7), JSON.parse(data.slice(6), clean));
      }
    }
  } catch (error) {
    if (running === stop) lose(error instanceof TypeError ? 'the daemon does not answer' : error.message);
  }
  clearTimeout(timer);
  stop.abort();
  if (running === stop) running = null;
}

// A page that nobody sees takes no place.
let wait = 1000;
async function stay() {
  for (;;) {
    if (!document.hidden) {
      const begin = Date.now();
      await listen();
      wait = Date.now() - begin > 5000 ? 1000 : Math.min(wait * 1.6, 8000);
    }
    await new Promise((done) => setTimeout(done, wait));
  }
}
let hiding;
document.addEventListener('visibilitychange', () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => running && running.abort(), 60000);
  else wait = 1000;
});

async function order(request, what) {
  say(what + ' …');
  const headers = { Authorization: 'Bearer ' + token, 'Content-Type': 'application/json' };
  try {
    const answer = await fetch('control', { method: 'POST', headers, body: JSON.stringify(request) });
    const text = await answer.text();
    let reply;
    try { reply = JSON.parse(text); } catch { reply = { error: text.trim() || 'status ' + answer.status }; }
    if (reply.done !== undefined) say(what + ': ' + (reply.done || 'done'));
    else if (reply.step !== undefined) say(what + ': ' + reply.step + '; it goes on, see the events');
    else say(what + ' failed: ' + reply.error);
  } catch {
    say(what + ' failed: the daemon does not answer');
  }
}
