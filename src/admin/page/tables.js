// Tables that change in place, so that focus and selection stay.
const quiet = (value, text) => [text, value ? '' : 'zero'];
// Title, text and class of a cell, value to sort by; `less`: left out where there is little room.
const COLUMNS = [
  { key: 'state', title: 'State', text: true, cell: (slot) => [(slot.finished ? 'finished' : slot.drain ? 'drained' : slot.state) + weighs(slot)], sort: (slot) => slot.state },
  { key: 'rate', title: 'Conn/s', cell: (slot) => quiet(slot.now[0], number(slot.now[0])), sort: (slot) => slot.now[0] },
  { key: 'open', title: 'Open', cell: (slot) => quiet(slot.open, (slot.estimate ? '~' : '') + number(slot.open)), sort: (slot) => slot.open },
  { key: 'pending', title: 'Pending', less: true, cell: (slot) => quiet(slot.pending, number(slot.pending)), sort: (slot) => slot.pending },
  { key: 'p50', title: 'Wait p50', less: true, cell: (slot) => quiet(slot.now[4], waited(slot.now[4])), sort: (slot) => slot.now[4] },
  { key: 'p99', title: 'Wait p99', cell: (slot) => quiet(slot.now[5], waited(slot.now[5])), sort: (slot) => slot.now[5] },
  { key: 'cpu', title: 'CPU', cell: (slot) => quiet(slot.now[2], percent(slot.now[2])), sort: (slot) => slot.now[2] },
  { key: 'memory', title: 'Memory', cell: (slot) => quiet(slot.now[3], bytes(slot.now[3])), sort: (slot) => slot.now[3] },
  { key: 'total', title: 'Served', less: true, cell: (slot) => quiet(slot.connections, number(slot.connections)), sort: (slot) => slot.connections },
  { key: 'up', title: 'Up', less: true, cell: (slot) => quiet(slot.uptime_s, slot.state === 'online' ? duration(slot.uptime_s) : '–'), sort: (slot) => slot.uptime_s },
  { key: 'generation', title: 'Gen', less: true, cell: (slot) => [String(slot.generation)], sort: (slot) => slot.generation },
  { key: 'restarts', title: 'Restarts', less: true, cell: (slot) => quiet(slot.restarts, String(slot.restarts)), sort: (slot) => slot.restarts },
  { key: 'why', title: 'Last exit, or why not online', text: true, cell: (slot) => [why(slot), 'why'] },
];

const weighs = ({ weight }) => (weight === undefined || weight === 1 ? '' : ', weight ' + weight);

function why(slot) {
  const { reason, last_exit: exit, state } = slot;
  if (state === 'online') return exit || '';
  return reason && exit && !reason.includes(exit) ? reason + ' (' + exit + ')' : reason || exit || '';
}

class Slots {
  // `pick`: called with the slot that was chosen.
  constructor(name, pick) {
    this.pick = pick;
    this.sorted = { key: 'slot', down: false };
    this.rows = new Map();
    this.body = make('tbody');
    const title = (key, text, extra) => {
      const button = make('button', { type: 'button' }, text);
      button.addEventListener('click', () => {
        const { sorted } = this;
        this.sorted = { key, down: sorted.key === key ? !sorted.down : key !== 'slot' };
        this.show(...this.shown);
      });
      return make('th', { scope: 'col', 'data-key': key, ...extra }, button);
    };
    const heads = COLUMNS.map((column) => {
      const extra = { class: (column.text ? 'text ' : '') + (column.less ? 'less' : '') };
      return column.sort ? title(column.key, column.title, extra) : make('th', { scope: 'col', class: 'text less' }, column.title);
    });
    this.head = make('tr', {}, title('slot', 'Slot', {}), ...heads);
    this.node = make('table', { class: 'slots' }, make('caption', { class: 'word' }, 'Slots of ' + name), make('thead', {}, this.head), this.body);
  }

  // `flags`: for each slot the level of each column that something is wrong with.
  show(slots, flags, picked) {
    this.shown = [slots, flags, picked];
    for (const slot of slots) if (!this.rows.has(slot.slot)) this.rows.set(slot.slot, this.row(slot.slot));
    for (const at of this.rows.keys()) if (!slots.some((slot) => slot.slot === at)) this.rows.delete(at);
    for (const slot of slots) this.fill(this.rows.get(slot.slot), slot, flags.get(slot.slot) || {}, picked === slot.slot);
    const { key, down } = this.sorted;
    for (const head of this.head.children) {
      if (head.dataset.key === key) head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    }
    const column = COLUMNS.find((column) => column.key === key), value = column ? column.sort : (slot) => slot.slot;
    const order = [...slots].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      const by = left < right ? -1 : left > right ? 1 : 0;
      return (down ? -by : by) || a.slot - b.slot;
    });
    const rows = order.map((slot) => this.rows.get(slot.slot).node);
    if (rows.length !== this.body.children.length || rows.some((row, at) => this.body.children[at] !== row)) {
      const focus = document.activeElement;
      this.body.replaceChildren(...rows);
      if (focus && this.body.contains(focus)) focus.focus({ preventScroll: true });
    }
  }

  row(at) {
    const button = make('button', { type: 'button', title: 'Show slot ' + at + ' in the plots' }, String(at));
    button.addEventListener('click', () => this.pick(at));
    const cells = COLUMNS.map(() => make('td'));
    const pill = make('span');
    cells[0].append(pill);
    return { node: make('tr', {}, make('th', { scope: 'row' }, button), ...cells), button, cells, pill };
  }

  fill(row, slot, flags, picked) {
    COLUMNS.forEach((column, at) => {
      const [text, name] = column.cell(slot), cell = row.cells[at];
      put(at ? cell : row.pill, text);
      const level = at ? flags[column.key] : '';
      mark(cell, [name, column.text && 'text', column.less && 'less', level].filter(Boolean).join(' '));
    });
    mark(row.pill, 'pill ' + (slot.finished || slot.drain || slot.weight === 0 ? 'none' : LEVELS[slot.state] || 'warn'));
    mark(row.node, picked ? 'picked' : '');
    row.button.setAttribute('aria-pressed', String(picked));
  }
}

// Small squares, to see many slots at a glance.
class Strip {
  constructor(pick) {
    this.pick = pick;
    this.buttons = new Map();
    this.node = make('div', { class: 'strip', role: 'group', 'aria-label': 'All slots' });
  }

  show(slots, flags, picked) {
    this.node.hidden = slots.length <= 16;
    if (this.node.hidden) return;
    const buttons = slots.map((slot) => {
      let button = this.buttons.get(slot.slot);
      if (!button) {
        button = make('button', { type: 'button' }, String(slot.slot));
        button.addEventListener('click', () => this.pick(slot.slot));
        this.buttons.set(slot.slot, button);
      }
      const flag = flags.get(slot.slot);
      mark(button, flag ? flag.any : LEVELS[slot.state] || 'warn');
      const label = 'slot ' + slot.slot + ': ' + slot.state + (flag ? ', see above' : '');
      if (button.title !== label) { button.title = label; button.setAttribute('aria-label', label); }
      button.setAttribute('aria-pressed', String(picked === slot.slot));
      return button;
    });
    if (buttons.length !== this.node.children.length) this.node.replaceChildren(...buttons);
  }
}

const UPSTREAM_COLUMNS = [
  { title: 'State', cell: (one) => [(one.up ? (one.drain ? 'drained' : 'up') : 'down') + (one.backup ? ', backup' : '') + weighs(one), one.up ? 'text' : 'text bad'] },
  { title: 'Open', cell: (one) => quiet(one.open, number(one.open)) },
  { title: 'Served', less: true, cell: (one) => quiet(one.connections, number(one.connections)) },
  { title: 'In', less: true, cell: (one) => [bytes(one.bytes_in)] },
  { title: 'Out', less: true, cell: (one) => [bytes(one.bytes_out)] },
  { title: 'Errors', cell: (one) => quiet(one.errors, number(one.errors)) },
  { title: 'Last error', cell: (one) => [one.last_error ? one.last_error + ', ' + duration(one.last_error_s) + ' ago' : '', 'text'] },
];

class Upstreams {
  // `pick`: called with the address that was chosen.
  constructor(name, pick) {
    this.pick = pick;
    this.rows = new Map();
    this.body = make('tbody');
    const heads = UPSTREAM_COLUMNS.map((column, at) => make('th', { scope: 'col', class: (at === 0 || at === 6 ? 'text' : '') + (column.less ? ' less' : '') }, column.title));
    const table = make('table', { class: 'slots' }, make('caption', { class: 'word' }, 'Upstreams of ' + name), make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'Upstream'), ...heads)), this.body);
    this.node = make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Upstreams of ' + name }, table);
  }

  show(upstreams, picked) {
    this.node.hidden = !upstreams.length;
    // One address may be there twice.
    const rows = upstreams.map((one, place) => {
      const key = place + one.addr;
      let row = this.rows.get(key);
      if (!row) {
        const button = make('button', { type: 'button' }, one.addr);
        button.addEventListener('click', () => this.pick(one.addr));
        row = { button, cells: UPSTREAM_COLUMNS.map(() => make('td')) };
        row.node = make('tr', {}, make('th', { scope: 'row' }, button), ...row.cells);
        this.rows.set(key, row);
      }
      UPSTREAM_COLUMNS.forEach((column, at) => {
        const [text, name] = column.cell(one);
        put(row.cells[at], text);
        mark(row.cells[at], [name, column.less && 'less'].filter(Boolean).join(' '));
      });
      mark(row.node, picked === one.addr ? 'picked' : '');
      row.button.setAttribute('aria-pressed', String(picked === one.addr));
      return row.node;
    });
    if (rows.length !== this.body.children.length || rows.some((row, at) => this.body.children[at] !== row)) this.body.replaceChildren(...rows);
  }
}

const place = (event) => event.service + (event.slot === null ? '' : '/' + event.slot);
let shownEvents = -1;
function showEvents() {
  const last = feed.events.at(-1), number = last ? last.number : -2;
  if (number === shownEvents) return;
  shownEvents = number;
  const body = document.querySelector('#events tbody');
  const rows = feed.events.map((event) => make('tr', { class: event.level },
    make('td', {}, make('time', { datetime: new Date(event.at).toISOString(), title: new Date(event.at).toLocaleString() }, clock(event.at))),
    make('td', {}, place(event)),
    make('td', {}, (event.level === 'info' ? '' : event.level + ': ') + event.text)));
  body.replaceChildren(...(rows.length ? rows.reverse() : [make('tr', {}, make('td', { colspan: '3' }, 'none yet'))]));
}
