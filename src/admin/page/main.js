// The page as a whole.
const $ = (id) => document.getElementById(id);
const ICONS = { bad: '✕', warn: '!', note: 'i' };
const WORDS = { bad: 'problem: ', warn: 'warning: ', note: 'note: ' };
const services = new Map();

function say(text) {
  put($('said'), text);
  $('said').hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $('said').hidden = true; }, 12000);
}

// Asks in a dialog; for a text when there is a `field`, its title, type and value.
function ask(title, text, yes, field) {
  const dialog = $('dialog'), input = $('given');
  put($('dialog-title'), title);
  put($('dialog-text'), text);
  put($('dialog-yes'), yes);
  $('dialog-label').hidden = !field;
  if (field) {
    [$('dialog-field').textContent, input.type, input.value] = field;
  }
  dialog.returnValue = 'no';
  dialog.showModal();
  (field ? input : $('dialog-yes')).focus();
  return new Promise((done) => dialog.addEventListener('close', () => {
    done(dialog.returnValue === 'yes' && (field ? input.value.trim() : true));
    input.value = '';
  }, { once: true }));
}
$('given').addEventListener('keydown', (event) => {
  if (event.key === 'Enter') { event.preventDefault(); $('dialog').close('yes'); }
});

async function unlock() {
  const given = await ask('Token', 'The text in the file of --admin-token-file. It is kept until this page is closed or loaded again.', 'Use it', ['Token', 'password', '']);
  if (!given) return false;
  token = given;
  if (running) running.abort();
  wait = 300;
  say('Token entered.');
  return true;
}
$('unlock').addEventListener('click', async () => {
  if (!token) return unlock();
  token = '';
  if (running) running.abort();
});

const VERBS = {
  reload: ['Reload', 'Replaces the workers one by one; no connection is lost.'],
  restart: ['Restart', 'Ends all workers and starts them again.'],
  stop: ['Stop', 'Ends all workers; clients are refused until it is started again.'],
  start: ['Start', ''],
  drain: ['Drain', ''],
  undrain: ['Undrain', ''],
};
const labelOf = ({ service, slot, upstream }) => service + (upstream ? '@' + upstream : slot === undefined ? '' : '/' + slot);
// `of`: a service, or a slot or upstream of it.
async function act(verb, of) {
  const [name, text] = VERBS[verb], what = name + ' ' + labelOf(of);
  if (!token && !await unlock()) return;
  const asked = of.slot === undefined ? text : 'Ends this worker and starts it again.';
  if ((verb === 'stop' || verb === 'restart') && !await ask(what + '?', asked, name)) return;
  order({ cmd: verb, ...of }, what);
}
async function weigh(of, before) {
  if (!token && !await unlock()) return;
  const what = 'Weight of ' + labelOf(of);
  const given = await ask(what, 'The share of new connections beside the others; 0: it gets none.', 'Set it', ['Weight, 0 to 256', 'number', before ?? 1]);
  if (given) order({ cmd: 'weight', ...of, weight: Number(given) }, what);
}
async function scale(service, by) {
  if (!token && !await unlock()) return;
  order({ cmd: 'scale', service, to: { by } }, 'Scale ' + service + (by > 0 ? ' up' : ' down'));
}
function button(text, label, press, name) {
  const node = make('button', { type: 'button', 'aria-label': label, class: name || '' }, text);
  node.addEventListener('click', press);
  return node;
}

class Service {
  constructor(name) {
    this.name = name;
    this.picked = null;
    // A number for a slot, an address for an upstream.
    const pick = (one) => { this.picked = this.picked === one ? null : one; show(); };
    this.title = make('h2', { id: 'service-' + name }, name);
    this.pill = make('span', { class: 'pill' });
    this.about = make('div', { class: 'about' });
    this.verbs = make('div', { class: 'do' });
    this.plots = new Plots();
    this.strip = new Strip(pick);
    this.slots = new Slots(name, pick);
    this.upstreams = new Upstreams(name, pick);
    this.scroll = make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Slots of ' + name }, this.slots.node);
    this.chosen = make('p', { class: 'do chosen' });
    this.none = make('p', { class: 'none' }, 'No slots.');
    this.node = make('section', { 'aria-labelledby': 'service-' + name },
      make('div', { class: 'head' }, this.title, this.pill, this.verbs), this.about,
      this.plots.node, this.plots.keys, this.strip.node, this.chosen, this.scroll, this.none, this.upstreams.node);
  }

  show(service, found) {
    const online = service.slots.filter((slot) => slot.state === 'online').length, all = service.slots.length;
    put(this.pill, service.stopped ? 'stopped' : online + ' of ' + all + ' online');
    mark(this.pill, 'pill ' + (service.stopped ? '' : service.sick ? 'bad' : online < all ? 'warn' : 'good'));
    const facts = [service.policy, 'by ' + service.via, service.listen.length ? 'listens on ' + service.listen.join(', ') : '',
      service.held ? line(service) : '', service.shed ? number(service.shed) + ' reset' : '', ...recycling(service),
      service.moved ? several(number(service.moved), 'idle connection') + ' moved' : '',
      service.reloads ? several(service.reloads, 'reload') : '', service.command ? 'runs ' + service.command : '', service.cwd ? 'in ' + service.cwd : ''].filter(Boolean);
    if (this.facts !== facts.join('\n')) {
      this.facts = facts.join('\n');
      const short = (fact) => (fact.length > 300 ? fact.slice(0, 300) + '…' : fact);
      this.about.replaceChildren(...facts.map((fact) => make('span', {}, short(fact))));
    }
    this.showVerbs(service);
    const flags = new Map();
    for (const { slot, level, column } of found) {
      if (slot === undefined || slot === null) continue;
      const flag = flags.get(slot) || { any: level };
      if (column) flag[column] = level;
      flags.set(slot, flag);
    }
    const { picked } = this, one = service.slots[picked] || service.upstreams.find((one) => one.addr === picked);
    if (!one) this.picked = null;
    const hot = found.filter((one) => one.hot).map((one) => one.slot).slice(0, 4);
    this.plots.show(service, typeof this.picked === 'number' ? [this.picked] : [...new Set(hot)]);
    this.strip.show(service.slots, flags, this.picked);
    this.slots.show(service.slots, flags, this.picked);
    this.showChosen(one);
    this.scroll.hidden = !all;
    this.none.hidden = all > 0;
    this.upstreams.show(service.upstreams, this.picked);
  }

  // What can be done with the slot or upstream that was chosen.
  showChosen(one) {
    const { name, picked } = this;
    this.chosen.hidden = !one;
    const kind = one && [picked, feed.token, one.drain, one.weight].join();
    if (!one || this.chosenKind === kind) return;
    this.chosenKind = kind;
    const isSlot = typeof picked === 'number', of = isSlot ? { service: name, slot: picked } : { service: name, upstream: picked }, label = labelOf(of);
    const verbs = [...(isSlot ? ['reload', 'restart'] : []), one.drain ? 'undrain' : 'drain'];
    const does = verbs.map((verb) => (feed.token ? button(VERBS[verb][0], VERBS[verb][0] + ' ' + label, () => act(verb, of)) : make('code', {}, 'roundsman ' + verb + ' ' + label)));
    if (feed.token) does.push(button('Weight', 'Weight of ' + label, () => weigh(of, one.weight)));
    if (isSlot) does.push(make('code', {}, 'roundsman logs ' + label));
    this.chosen.replaceChildren(make('b', {}, isSlot ? 'Slot ' + picked : picked), ...does);
  }

  showVerbs(service) {
    const kind = (feed.token ? 'buttons' : 'commands') + service.stopped;
    if (this.kind === kind) return;
    this.kind = kind;
    const { name } = this;
    const verb = (verb) => button(VERBS[verb][0], VERBS[verb][0] + ' ' + name, () => act(verb, { service: name }), verb === 'start' ? 'main' : '');
    if (!feed.token) this.verbs.replaceChildren('To act:', make('code', {}, 'roundsman reload ' + name));
    else if (service.stopped) this.verbs.replaceChildren(verb('start'));
    else {
      this.verbs.replaceChildren(verb('reload'), verb('restart'), button('− slot', 'One slot less for ' + name, () => scale(name, -1)),
        button('+ slot', 'One slot more for ' + name, () => scale(name, 1)), verb('stop'));
    }
  }
}

// Of --max-age and --max-served.
function recycling({ max_age_s: age, max_served: served, recycled }) {
  if (!recycled) return [];
  const limits = [age && 'for ' + duration(age), served && 'for ' + several(number(served), 'connection')].filter(Boolean);
  const done = [recycled.age && number(recycled.age) + ' by age', recycled.served && number(recycled.served) + ' by connections'].filter(Boolean);
  return ['workers serve ' + limits.join(' or ') + ', recycled: ' + (done.join(', ') || '0')];
}

function finding(one) {
  const slots = one.slots.filter((slot) => slot !== undefined && slot !== null);
  const where = !one.service ? '' : slots.length > 1 ? one.service + ' slots ' + ranges(slots) + ':' : one.service + (slots.length ? '/' + slots[0] : '');
  const text = make('span', {}, make('span', { class: 'word' }, WORDS[one.level]), where ? make('b', {}, where) : '', where ? ' ' + one.text : one.text);
  if (one.since) text.append(make('span', { class: 'since' }, ' · since ' + clock(one.since) + ' (' + duration((feed.state.at - one.since) / 1000) + ')'));
  const item = make('li', { class: one.level }, make('span', { 'aria-hidden': 'true' }, ICONS[one.level]), text);
  const does = one.commands.map((command) => make('code', {}, 'roundsman ' + command));
  if (one.action && feed.token && slots.length < 2) {
    const of = { service: one.service, ...(slots.length && { slot: slots[0] }), ...(one.upstream && { upstream: one.upstream }) };
    const label = VERBS[one.action][0] + ' ' + labelOf(of);
    does.push(button(label, label, () => act(one.action, of)));
  }
  if (does.length) item.append(make('span', { class: 'do' }, 'to do: ' + (one.hint || ''), ...does));
  return item;
}

// The list changes only when its words do, so that a button in it keeps the focus.
let listed = '';
function showVerdict(all) {
  const found = grouped(all);
  const { lost } = feed, worst = lost ? 'bad' : found.length ? found[0].level : 'good';
  const wrong = found.filter((one) => one.level !== 'note').length;
  mark($('verdict'), worst);
  let title = 'Nothing is wrong';
  if (lost) title = 'No connection to the daemon since ' + clock(lost.since) + ': ' + lost.why;
  else if (wrong) title = several(wrong, 'thing is wrong', 'things are wrong');
  put($('verdict-title'), title);
  const most = found.slice(0, 12);
  const key = JSON.stringify([most.map((one) => [one.level, one.service, one.slots, one.text, one.since && duration((feed.state.at - one.since) / 1000)]), feed.token]);
  if (key === listed) return;
  listed = key;
  const items = most.map(finding);
  if (found.length > most.length) items.push(make('li', {}, make('span', {}, '…'), make('span', {}, 'and ' + (found.length - most.length) + ' more')));
  $('findings').replaceChildren(...items);
}

function show() {
  const { state, lost } = feed;
  mark($('live'), lost ? 'off' : '');
  put($('live'), lost ? 'not connected' : 'live ' + clock(state.at));
  const found = findings();
  showVerdict(found);
  $('unlock').hidden = !feed.token;
  put($('unlock'), token ? 'Forget the token' : 'Enter token');
  if (!state) return;
  const names = state.services.map((service) => service.name);
  document.title = (found.filter((one) => one.level === 'bad').length || lost ? '✕ ' : found.length ? '! ' : '') + names.join(', ') + ' – roundsman';
  put($('facts'), state.version + ' · pid ' + state.pid + ' · up ' + duration(state.uptime_s)
    + (feed.trusted ? '' : ' · commands and paths are shown on the daemon’s machine, or with the token'));
  for (const [name, service] of services) if (!names.includes(name)) { service.node.remove(); services.delete(name); }
  for (const service of state.services) {
    let one = services.get(service.name);
    if (!one) {
      one = new Service(service.name);
      services.set(service.name, one);
      $('services').append(one.node);
    }
    one.show(service, found.filter((finding) => finding.service === service.name));
  }
  showEvents();
  const last = feed.events.at(-1);
  put($('last'), last ? 'Last event: ' + clock(last.at) + ' ' + place(last) + ' ' + last.text : 'No event yet.');
}

stay();
