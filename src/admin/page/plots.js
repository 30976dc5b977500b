// The last minutes of a service: five plots with one time axis and one cursor.
const SVG = 'http://www.w3.org/2000/svg';
const MAX_LINES = 64;
// Events that are marked in the plots.
const MARKED = /exited|given up|upstream down|connections reset|reload failed|killed/;
const PLOTS = [
  { key: 'rate', title: 'Connections a second', unit: (value) => number(value) + '/s' },
  { key: 'p99', title: 'Wait for a worker (p99)', unit: waited, logarithmic: true },
  { key: 'open', title: 'Open connections', unit: number },
  { key: 'cpu', title: 'CPU', unit: percent, least: 10 },
  { key: 'memory', title: 'Memory', unit: bytes, binary: true },
];

function make(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const draw = (name, attributes) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
function put(node, text) { if (node.textContent !== text) node.textContent = text; }
function mark(node, name) { if (node.className !== name) node.className = name; }

// The next round number.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => value <= step * power * 1.0001);
}

class Plots {
  constructor() {
    this.cursor = null;
    this.node = make('div', { class: 'plots' });
    this.plots = PLOTS.map((plot) => {
      const value = make('output', {}), top = make('span', { class: 'top' });
      const svg = draw('svg', { viewBox: '0 0 1000 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
      const begin = make('span', {}), end = make('span', {});
      const box = make('div', { class: 'box' }, svg, top);
      const node = make('div', { class: 'plot', tabindex: '0', role: 'group' }, make('h3', {}, plot.title), value, box, make('div', { class: 'ends' }, begin, end));
      node.addEventListener('pointermove', (event) => {
        const { left, width } = box.getBoundingClientRect();
        this.point((event.clientX - left) / width);
      });
      node.addEventListener('pointerleave', () => this.point(null));
      node.addEventListener('blur', () => this.point(null));
      node.addEventListener('keydown', (event) => {
        const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
        if (step) { event.preventDefault(); this.point(Math.min(1, Math.max(0, (this.cursor ?? 1) + step))); }
        else if (event.key === 'Escape') this.point(null);
      });
      this.node.append(node);
      return { ...plot, node, value, top, svg, begin, end };
    });
    this.keys = make('p', { class: 'key' });
  }

  point(cursor) {
    this.cursor = cursor;
    if (this.shown) this.show(...this.shown);
  }

  // `hot`: numbers of the slots to be seen apart.
  show(service, hot) {
    this.shown = [service, hot];
    const now = feed.state.at;
    const times = [], all = [], slots = service.slots.map(() => []);
    for (const column of feed.columns) {
      const one = column.services.find((other) => other.name === service.name);
      if (!one || column.at > now) continue;
      times.push(column.at);
      all.push(one.all);
      slots.forEach((points, at) => points.push(one.slots[at] || null));
    }
    times.push(now);
    all.push(service.now);
    slots.forEach((points, at) => points.push(service.slots[at].now));
    const length = now - times[0];
    const span = [2, 5, 15].map((minutes) => minutes * 60000).find((span) => span >= length) || SPAN;
    const from = now - span, x = (at) => ((at - from) / span) * 1000;
    const at = this.cursor === null ? times.length - 1 : nearest(times, from + this.cursor * span);
    const marks = feed.events.filter((event) => event.service === service.name && event.at > from && MARKED.test(event.text));
    for (const plot of this.plots) {
      const index = POINT[plot.key], values = all.map((point) => point[index]);
      const shown = hot.map((slot) => slots[slot]).filter((points) => points);
      const most = Math.max(plot.least || 0, ...values, ...shown.flat().map((point) => (point ? point[index] : 0)));
      const top = plot.logarithmic ? BUCKETS : plot.binary ? binaryTop(most) : round(Math.max(most, 1));
      const y = (value) => 100 - (Math.min(value, top) / top) * 100;
      const line = (points) => path(points.map((point, at) => (point === null || (plot.logarithmic && !point[index]) ? null : [x(times[at]), y(point[index])])));
      const parts = [];
      const grid = plot.logarithmic ? [8, 13] : [top / 2];
      for (const value of grid) parts.push(draw('path', { class: 'grid', d: 'M0 ' + y(value) + 'H1000' }));
      for (const event of marks) parts.push(draw('path', { class: 'mark', d: 'M' + x(event.at).toFixed(1) + ' 0V100' }));
      if (plot.logarithmic && slots.length > 1 && slots.length <= MAX_LINES) for (const points of slots) parts.push(draw('path', { class: 'one', d: line(points) }));
      const d = line(all);
      if (!plot.logarithmic && d) parts.push(draw('path', { class: 'area', d: d + 'V100H' + x(times[0]).toFixed(1) + 'Z' }));
      parts.push(draw('path', { class: 'all', d }));
      for (const points of shown) parts.push(draw('path', { class: 'hot', d: line(points) }));
      if (this.cursor !== null) parts.push(draw('path', { class: 'cursor', d: 'M' + x(times[at]).toFixed(1) + ' 0V100' }));
      plot.svg.replaceChildren(...parts);
      put(plot.value, plot.unit(values[at]));
      put(plot.top, plot.logarithmic ? '0.5 s' : plot.unit(top));
      put(plot.begin, this.cursor === null ? span / 60000 + ' min ago' : clock(times[at]));
      put(plot.end, this.cursor === null ? 'now' : '');
      const low = plot.unit(Math.min(...values)), high = plot.unit(Math.max(...values));
      plot.node.setAttribute('aria-label', plot.title + ' ' + (this.cursor === null ? 'now ' : 'at ' + clock(times[at]) + ' ') + plot.unit(values[at])
        + '; in the last ' + duration(length / 1000) + ' ' + low + ' to ' + high + '. Arrow keys move through time.');
    }
    const keys = [['', 'all slots']];
    if (hot.length) keys.push(['is-hot', 'slot ' + hot.join(', ')]);
    if (slots.length > 1 && slots.length <= MAX_LINES) keys.push(['is-one', 'each slot (wait)']);
    if (marks.length) keys.push(['is-mark', several(marks.length, 'exit or failure', 'exits or failures')]);
    this.keys.replaceChildren(...keys.map(([name, text]) => make('span', { class: name }, text)));
  }
}

function binaryTop(most) {
  let top = 1 << 20;
  while (top < most) top *= top.toString(2).match(/^11/) ? 4 / 3 : 1.5;
  return top;
}

function nearest(times, wanted) {
  let best = 0;
  times.forEach((at, n) => { if (Math.abs(at - wanted) < Math.abs(times[best] - wanted)) best = n; });
  return best;
}

// A line with gaps where there is nothing.
function path(points) {
  let text = '', pen = false;
  for (const point of points) {
    if (point) text += (pen ? 'L' : 'M') + point[0].toFixed(1) + ' ' + point[1].toFixed(1);
    pen = point !== null;
  }
  return text;
}
