// The plots. One state for all: range of steps, smoothing, kind of scale. Drawn by uPlot as they come into view.

const VIEW = { range: null, smoothing: 0, log: false };
const PLOTS = [];
const SYNC = { key: 'rldk', scales: ['x', null], filters: { pub: (type) => type === 'mousemove' || type === 'mouseleave' } };
const HUES = ['--hue-1', '--hue-2', '--hue-3', '--hue-4', '--hue-5', '--hue-6'];
const OUTLINES = 24; // alerts that are also outlined in plots of other metrics, before they become a fence

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const unitOf = (name) => (METRICS.get(name) || {}).unit || '';
const titleOf = (name) => (METRICS.get(name) || {}).name || name;
const firstSeen = (numbers) => numbers.find((value) => value !== null && value !== undefined);

// Where and how a curve ended, if its last value was not finite.
function lastGap(name) {
  const curve = CURVES.get(name), gap = curve.gaps[curve.gaps.length - 1];
  const last = DATA.steps[curve.s].findLast((step, at) => curve.v[at] !== null);
  return gap && (last === undefined || gap[1] > last) ? { since: gap[0], kind: gap[3] === 'mixed' ? 'not finite' : gap[3] === 'nan' ? 'NaN' : gap[3] } : null;
}

// What is averaged: of a thinned curve the means of its buckets (each stands at its bucket's second point), else the values.
function averages(name) {
  const { v, m } = CURVES.get(name);
  if (!m.length) return v;
  let count = 0;
  return v.map((value) => {
    if (value === null) return null;
    count += 1;
    return count % 2 ? undefined : m[count / 2 - 1];
  });
}

// An average that forgets, as trackers draw it: the weight of what came before is the slider's.
function smoothed(values, weight) {
  let mean = 0, mass = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

class Plot {
  constructor(panel, index) {
    this.names = panel.names.filter((name) => CURVES.has(name));
    this.panel = panel;
    this.chart = null;
    this.alerts = DATA.alerts.map((alert, at) => ({ alert, at })).filter(({ alert }) => this.names.includes(alert.key));
    this.unit = unitOf(this.names[0]);
    const saysIt = this.unit.toLowerCase() === panel.title.toLowerCase();
    this.marks = make('div', { class: 'marks' });
    this.canvas = make('div', { class: 'canvas' });
    this.legend = make('div', { class: 'legend' });
    this.note = make('p', { class: 'note' });
    this.node = make('figure', { class: 'plot', id: `plot-${index}`, 'aria-label': this.words() },
      make('figcaption', {}, make('h4', {}, make('bdi', {}, panel.title)), this.unit && !saysIt && make('span', { class: 'unit', title: this.unit }, this.unit)),
      this.marks, this.canvas, this.legend, this.note);
    this.node.plot = this;
    this.hues = this.names.map((name, at) => {
      // An evaluation has the colour of its training twin.
      const twin = name.startsWith('eval_') ? this.names.indexOf(name.slice(5)) : -1;
      return HUES[(twin >= 0 ? twin : at) % HUES.length];
    });
    PLOTS.push(this);
    // Before it is drawn it is as high as afterwards: nothing on the page jumps.
    this.say(false, true, 0);
    this.read(null);
  }

  words() {
    const parts = this.names.map((name) => {
      const row = METRICS.get(name) || {};
      const odd = row.nonfinite ? `, ${row.nonfinite} not finite` : '';
      return `${titleOf(name)} from ${number(row.first)} to ${number(row.last)}, lowest ${number(row.min)}, highest ${number(row.max)}${odd}`;
    });
    return `Plot of ${parts.join('; ')}. ${many(this.alerts.length, 'alert')}.`;
  }

  // x and one column a curve, then one a smoothed curve; steps are joined, since not everything is logged at every step.
  columns() {
    const soft = VIEW.smoothing > 0 ? this.names.filter((name) => !name.startsWith('eval_')) : [];
    const table = (name, values) => [DATA.steps[CURVES.get(name).s], values];
    const tables = [
      ...this.names.map((name) => table(name, CURVES.get(name).v)),
      ...soft.map((name) => table(name, smoothed(averages(name), VIEW.smoothing))),
    ];
    return tables.length > 1 ? uPlot.join(tables) : tables[0];
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    if (this.chart) this.chart.destroy();
    const data = this.columns();
    const values = data.slice(1);
    const own = this.names.length;
    const positive = values.some((column) => column.some((value) => value > 0));
    const log = VIEW.log && positive;
    let hidden = 0;
    const columns = log ? values.map((column, at) => column.map((value) => {
      if (value === null || value === undefined || value > 0) return value;
      hidden += at < own;
      return null;
    })) : values;
    this.say(log, positive, hidden);
    const ink = css('--muted'), line = css('--grid');
    const series = [{}];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 }, font: '11px system-ui, sans-serif', gap: 4 };
    this.names.forEach((name, at) => {
      const evaluation = name.startsWith('eval_');
      const colour = css(this.hues[at]);
      const soft = VIEW.smoothing > 0 && !evaluation;
      const filled = columns[at].reduce((count, value) => count + (value !== null && value !== undefined), 0);
      // Evaluations are few and far between: joined by a dashed line, each a dot.
      series.push({
        stroke: colour, width: evaluation ? 1.5 : soft ? 1 : 1.6, alpha: soft ? 0.28 : 1, dash: evaluation ? [5, 4] : undefined,
        points: { show: evaluation && filled < 200 ? true : filled < 3 ? true : undefined, size: 6, fill: evaluation ? css('--card') : colour, stroke: colour },
      });
    });
    this.names.forEach((name, at) => {
      if (VIEW.smoothing > 0 && !name.startsWith('eval_')) series.push({ stroke: css(this.hues[at]), width: 2, points: { show: false } });
    });
    this.chart = new uPlot({
      width, height: 188, padding: [6, 10, 0, 0], legend: { show: false },
      cursor: {
        sync: SYNC, drag: { x: true, y: false, setScale: false }, y: false, points: { size: 7, width: 2 },
        dataIdx: (chart, at, index) => nearest(chart.data[at], index),
      },
      scales: {
        x: { time: false, range: () => VIEW.range || FULL },
        y: { distr: log ? 3 : 1, range: (chart, low, high) => ends(low, high, log) },
      },
      axes: [
        { ...axis, size: 26, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7, 1e8, 1e9, 1e12, 1e15], values: (chart, ticks) => ticks.map(shortStep) },
        { ...axis, ...(log ? { splits: (chart, at, low, high) => decades(low, high), filter: (chart, ticks) => ticks } : {}), size: (chart, ticks) => Math.max(34, 12 + 6.3 * Math.max(0, ...(ticks || []).map((tick) => tick.length))), values: (chart, ticks) => labels(ticks, this.unit) },
      ],
      series,
      hooks: {
        drawAxes: [(chart) => this.under(chart)], draw: [(chart) => this.over(chart)],
        setCursor: [(chart) => this.read(chart)], setSelect: [(chart) => this.select(chart)],
        ready: [(chart) => chart.over.addEventListener('dblclick', () => zoom(null))],
      },
    }, [data[0], ...columns], this.canvas);
    this.read(this.chart);
  }

  // Outlines of alerts, behind the curves.
  under(chart) {
    const own = new Set(this.alerts.map(({ at }) => at));
    const all = DATA.alerts.length <= OUTLINES ? DATA.alerts.map((alert, at) => ({ alert, at })) : this.alerts;
    const { ctx, bbox } = chart;
    ctx.save();
    for (const { alert, at } of all) {
      const x = Math.round(chart.valToPos(alert.step, 'x', true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.strokeStyle = css(`--${severityOf(alert)}`);
      ctx.globalAlpha = own.has(at) ? 0.9 : 0.4;
      ctx.lineWidth = devicePixelRatio * (own.has(at) ? 1.25 : 1);
      ctx.setLineDash(own.has(at) ? [] : [3 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  // Where a curve was not finite, along the foot; and the flags of the alerts.
  over(chart) {
    const { ctx, bbox } = chart;
    const height = 4 * devicePixelRatio;
    ctx.save();
    ctx.fillStyle = css('--critical');
    for (const name of this.names) {
      for (const [first, last] of CURVES.get(name).gaps) {
        const from = Math.max(bbox.left, chart.valToPos(first, 'x', true));
        const to = Math.min(bbox.left + bbox.width, chart.valToPos(last, 'x', true));
        if (to < from) continue;
        ctx.fillRect(from - devicePixelRatio, bbox.top + bbox.height - height, to - from + 2 * devicePixelRatio, height);
      }
    }
    ctx.restore();
    this.flag(chart);
  }

  flag(chart) {
    const left = chart.bbox.left / devicePixelRatio, width = chart.bbox.width / devicePixelRatio;
    const flags = [];
    for (const { alert, at } of [...this.alerts].sort((one, two) => one.alert.step - two.alert.step)) {
      const x = chart.valToPos(alert.step, 'x');
      if (x < -1 || x > width + 1) continue;
      const before = flags[flags.length - 1];
      if (before && x - before.x < 24) before.items.push({ alert, at });
      else flags.push({ x, items: [{ alert, at }] });
    }
    const nodes = flags.map(({ x, items }) => {
      const worst = items.reduce((one, two) => (RANK[severityOf(two.alert)] > RANK[severityOf(one.alert)] ? two : one));
      const more = items.length > 1 ? ` and ${items.length - 1} more here` : '';
      const flag = make('button', {
        type: 'button', class: `flag ${severityOf(worst.alert)}`, 'data-alert': worst.at + 1,
        title: `${worst.alert.name}, step ${worst.alert.step}${more}`,
        'aria-label': `${worst.alert.severity}: ${worst.alert.name} at step ${worst.alert.step}${more}. Go to the alert.`,
        on: { click: () => goToAlert(worst.at) },
      }, worst.at + 1, items.length > 1 && `+${items.length - 1}`);
      flag.style.left = `${left + x}px`;
      return flag;
    });
    this.marks.replaceChildren(...nodes);
  }

  // The values under the cursor; without one, the last.
  read(chart) {
    const idx = chart && chart.cursor.idx, away = idx === null || idx === undefined || chart.cursor.left < 0;
    const nodes = this.names.map((name, at) => {
      const column = chart ? chart.data[at + 1] : CURVES.get(name).v;
      const where = away ? nearest(column, column.length - 1) : nearest(column, idx);
      // Of a thinned curve the last point is an extreme of its last bucket, and not the last value.
      const { last } = METRICS.get(name) || {};
      const value = away && typeof last === 'number' ? last : where === null || where === undefined ? null : column[where];
      const gap = away ? lastGap(name) : null;
      const key = make('i', { class: name.startsWith('eval_') ? 'key dashed' : 'key' });
      key.style.setProperty('--key', `var(${this.hues[at]})`);
      return make('span', { class: 'item' }, key, make('bdi', {}, titleOf(name)), make('b', { class: gap && 'odd' }, gap ? gap.kind : inUnit(value, this.unit)),
        !away && value !== null && make('span', { class: 'at' }, `step ${number(Math.round(chart.data[0][where]))}`));
    });
    this.legend.replaceChildren(...nodes);
  }

  select(chart) {
    const { left, width } = chart.select;
    if (width < 4) return;
    const from = chart.posToVal(left, 'x'), to = chart.posToVal(left + width, 'x');
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    zoom([from, to]);
  }

  say(log, positive, hidden) {
    const parts = [];
    for (const name of this.names) {
      const gaps = CURVES.get(name).gaps;
      if (!gaps.length) continue;
      const count = gaps.reduce((sum, gap) => sum + gap[2], 0);
      const kinds = [...new Set(gaps.map((gap) => gap[3]))].map((kind) => (kind === 'mixed' ? 'NaN or infinite' : kind === 'nan' ? 'NaN' : kind));
      parts.push(`${titleOf(name)} was ${kinds.join(' or ')} ${count === 1 ? 'once' : `${grouped.format(count)} times`}, from step ${number(gaps[0][0])}: marked at the foot.`);
    }
    if (VIEW.log && !positive) parts.push('No value above 0: the scale stays linear.');
    if (log && hidden) parts.push(`${many(hidden, 'point')} at or below 0 cannot be drawn on this scale.`);
    this.note.textContent = parts.join(' ');
  }
}

function nearest(column, index) {
  if (index === null || index === undefined) return index;
  for (let away = 0; away < column.length; away += 1) {
    const before = column[index - away], after = column[index + away];
    if (before !== null && before !== undefined) return index - away;
    if (after !== null && after !== undefined) return index + away;
  }
  return null;
}

// The numbers beside an axis, with as many digits as it takes to tell them apart.
function labels(ticks, unit) {
  for (let digits = 3; ; digits += 1) {
    const found = ticks.map((tick) => (tick === null ? '' : inUnit(tick, unit, digits)));
    if (digits >= 9 || new Set(found).size === ticks.length) return found;
  }
}

const LARGEST = 1e300;

function ends(low, high, log) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return log ? [0.1, 10] : [0, 1];
  if (log) return low === high ? [low / 3, high * 3] : [low / 1.15, high * 1.15];
  const size = Math.max(Math.abs(low), Math.abs(high));
  // A difference that rounding leaves between equal values is no range.
  const pad = high - low > size * 1e-9 ? (high - low) * 0.07 : size * 0.1 || 1;
  // Nothing goes below zero that never did: room under it would look like values.
  return [low >= 0 && low - pad < 0 ? 0 : Math.max(-LARGEST, low - pad), Math.min(LARGEST, high + pad)];
}

// The places of a logarithmic axis: powers of ten, with 2 and 5 between them where there is room.
function decades(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  if (!Number.isFinite(first) || !Number.isFinite(last)) return [];
  const every = Math.max(1, Math.ceil((last - first) / 6));
  const found = [];
  for (let power = first; power <= last; power += every) {
    for (const digit of last - first <= 1 ? [1, 1.5, 2, 3, 5, 7] : last - first <= 3 ? [1, 2, 5] : [1]) {
      const place = Number(`${digit}e${power}`);
      if (place >= low && place <= high) found.push(place);
    }
  }
  return found;
}

function shortStep(step) {
  if (step === null || !Number.isInteger(step)) return '';
  if (Math.abs(step) >= 1e6) return `${Number((step / 1e6).toPrecision(6))}M`;
  return Math.abs(step) >= 1e4 ? `${Number((step / 1e3).toPrecision(6))}k` : String(step);
}

// Shows the same steps in all plots; null is all of them.
function zoom(range) {
  if (range) {
    const low = Math.max(FULL[0], Math.min(...range)), high = Math.min(FULL[1], Math.max(...range));
    VIEW.range = high > low ? [low, high] : null;
  } else VIEW.range = null;
  for (const plot of PLOTS) if (plot.chart) plot.chart.setData(plot.chart.data, true);
  document.dispatchEvent(new CustomEvent('rldk-zoom'));
}

function redraw() {
  for (const plot of PLOTS) if (plot.chart) plot.draw();
}

const watcher = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    if (!target.plot.chart) target.plot.draw();
  }
}, { rootMargin: '400px' });

const resizer = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    const chart = target.parentElement.plot.chart;
    if (chart && target.clientWidth && Math.abs(chart.width - target.clientWidth) > 1) chart.setSize({ width: target.clientWidth, height: chart.height });
  }
});

function addPlot(panel, place, index) {
  const plot = new Plot(panel, index);
  place.append(plot.node);
  watcher.observe(plot.node);
  resizer.observe(plot.canvas);
  return plot;
}
