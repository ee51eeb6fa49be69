// The data, the one way in which it enters the page (as text), and numbers for people.

const DATA = JSON.parse(document.getElementById('data').textContent);
const CURVES = new Map(Object.entries(DATA.curves));
const METRICS = new Map(DATA.metrics.map((row) => [row.key, row]));
// The first and the last step of the run; the plots have some room to either side of a single one.
const FULL = (() => {
  let low = Infinity, high = -Infinity;
  for (const steps of DATA.steps) if (steps.length) { low = Math.min(low, steps[0]); high = Math.max(high, steps[steps.length - 1]); }
  if (low > high) return [0, 1];
  return low === high ? [low - 1, high + 1] : [low, high];
})();
// What was logged twice at one step are two points, side by side: the plots know each place on the axis once.
for (const steps of DATA.steps) for (let at = 1; at < steps.length; at += 1) if (steps[at] <= steps[at - 1]) steps[at] = steps[at - 1] + 1e-4;
const SVG = 'http://www.w3.org/2000/svg';

const byId = (id) => document.getElementById(id);

// Makes an element. Strings among the children become text, never markup.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === '') continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

const grouped = new Intl.NumberFormat('en');

function number(value, digits = 4) {
  if (value === null || value === undefined) return 'n/a';
  if (typeof value !== 'number') return String(value);
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return size >= 10000 ? grouped.format(value) : String(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 2).replace(/\.?0+e/, 'e').replace('e+', 'e');
  const short = Number(value.toPrecision(digits));
  return size >= 10000 ? grouped.format(short) : String(short);
}

const BYTES = ['B', 'kB', 'MB', 'GB', 'TB'];

// A value in its unit: bytes become MB or GB, all else stays as it was logged.
function inUnit(value, unit, digits = 3) {
  if (unit !== 'bytes' || typeof value !== 'number') return number(value, digits + 1);
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.abs(value) || 1) / 3)));
  return `${number(Number((value / 1000 ** power).toPrecision(digits)), digits)} ${BYTES[power]}`;
}

function duration(seconds) {
  if (typeof seconds !== 'number') return 'n/a';
  if (seconds < 90) return `${number(Number(seconds.toPrecision(3)))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const many = (count, noun) => `${number(count)} ${noun}${count === 1 ? '' : 's'}`;

function heading(section, id, text, note) {
  byId(section).append(make('h2', { id }, text, note && make('span', { class: 'count' }, note)));
}

// Goes to a part of the page, opens what hides it, and shows where it is.
function go(target) {
  const node = typeof target === 'string' ? byId(target) : target;
  if (!node) return;
  for (let at = node; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true;
  node.scrollIntoView({ block: node.offsetHeight > innerHeight * 0.7 ? 'start' : 'center', behavior: 'auto' });
  node.setAttribute('tabindex', '-1');
  node.focus({ preventScroll: true });
  node.classList.remove('flash');
  void node.offsetWidth;
  node.classList.add('flash');
}

function table(head, rows, attributes) {
  const cell = (tag, item, more) => (item instanceof Node ? make(tag, more, item) : make(tag, more, item));
  return make('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': (attributes || {}).label },
    make('table', { class: (attributes || {}).class },
      head && make('thead', {}, make('tr', {}, head.map((title) => make('th', { scope: 'col' }, title)))),
      make('tbody', {}, rows.map((row) => make('tr', {}, row.map((item, at) => (
        at === 0 ? cell('th', item, { scope: 'row' }) : cell('td', item))))))));
}
