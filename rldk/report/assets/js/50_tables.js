// All metrics, what each detector did, and what the run was.

const EXTRA = { place: null, count: 0 };
const STATES = {
  fired: ['Raised alerts', 'judged the run and spoke'],
  quiet: ['Quiet', 'judged the run and found nothing'],
  warming: ['Saw too little', 'saw their metric, but never what they need to judge'],
  unseen: ['Never saw their metric', 'their silence says nothing about the run'],
  failed: ['Broke', 'were left out after an error of their own'],
};

function plotMetric(key) {
  const there = PLOTS.find((plot) => plot.names.length === 1 && plot.names[0] === key && plot.own);
  if (there) return there;
  EXTRA.count += 1;
  const plot = addPlot({ title: titleOf(key), names: [key] }, EXTRA.place, `own-${EXTRA.count}`);
  plot.own = true;
  EXTRA.place.hidden = false;
  return plot;
}

function filterBox(label, call) {
  return make('input', { type: 'search', class: 'filter', placeholder: label, 'aria-label': label, on: { input: (event) => call(event.target.value.toLowerCase()) } });
}

function sifted(node, texts) {
  const rows = [...node.querySelectorAll('tbody tr')];
  return (wanted) => rows.forEach((row, at) => { row.hidden = !texts[at].includes(wanted); });
}

function showMetrics() {
  const rows = DATA.metrics;
  heading('metrics', 'metrics-title', 'All metrics', number(DATA.metrics_total));
  if (!rows.length) {
    byId('metrics').append(make('div', { class: 'card empty' }, make('p', {}, 'No metric was recorded.')));
    return;
  }
  const body = table(['metric', 'unit', 'logged', 'first', 'last', 'lowest', 'highest', 'mean', 'not finite', ''], rows.map((row) => [
    make('bdi', {}, row.name), row.unit, number(row.count), inUnit(row.first, row.unit), inUnit(row.last, row.unit), inUnit(row.min, row.unit),
    inUnit(row.max, row.unit), inUnit(row.mean, row.unit), row.nonfinite ? make('b', { class: 'odd' }, number(row.nonfinite)) : '',
    CURVES.has(row.key) && CURVES.get(row.key).v.length
      ? make('button', { type: 'button', class: 'link', 'aria-label': `Plot ${row.name}`, on: { click: () => go(plotMetric(row.key).node) } }, 'Plot') : '',
  ]), { class: 'numeric', label: 'All metrics' });
  const left = DATA.metrics_total - rows.length;
  EXTRA.place = make('div', { class: 'grid own', hidden: true });
  byId('metrics').append(make('details', { class: 'card' },
    make('summary', {}, `Statistics of ${many(rows.length, 'metric')}`, left > 0 && `; ${number(left)} more are not on this page`),
    left > 0 && make('p', { class: 'note' }, `This run logged ${number(DATA.metrics_total)} distinct names. ${number(left)} are left out here: their statistics are in ${DATA.run.files.report || 'final_report.json'}, their values in ${DATA.run.files.events || 'the event stream'} and ${DATA.run.files.metrics || 'metrics.csv'}.`),
    filterBox('Find a metric', sifted(body, rows.map((row) => row.name.toLowerCase()))), body), EXTRA.place);
}

function showCoverage() {
  const rows = DATA.coverage;
  const count = (state) => rows.filter((row) => row.state === state).length;
  heading('coverage', 'coverage-title', 'What was judged', `${count('fired') + count('quiet')} of ${rows.length} detectors`);
  if (!rows.length) {
    byId('coverage').append(make('div', { class: 'card empty' }, make('p', {}, 'No detector was armed: nothing on this page judges the run.')));
    return;
  }
  const groups = Object.entries(STATES).filter(([state]) => count(state)).map(([state, [title, meaning]]) => {
    const those = rows.filter((row) => row.state === state);
    const silent = state === 'unseen' || state === 'warming';
    return make('details', { class: `card state ${state}`, open: state === 'fired' || silent },
      make('summary', {}, make('b', {}, title), make('span', { class: 'count' }, those.length), make('span', { class: 'soft' }, meaning)),
      table(['detector', 'watches', silent ? 'to be judged it needs' : 'judged'], those.map((row) => [
        make('span', {}, row.name, make('code', {}, row.code)), make('bdi', {}, (row.watches || []).join(', ')),
        silent ? row.needs || 'its metric in the log' : `${many(row.events_judged, 'event')}${row.episodes ? `, ${many(row.episodes, 'episode')}` : ''}`,
      ]), { label: title }));
  });
  byId('coverage').append(...groups);
}

function shown(value) {
  if (value === null || value === undefined) return 'none';
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

function pairs(title, rows, note, search) {
  if (!rows.length) return '';
  const body = table(null, rows.map(([name, value]) => [make('bdi', {}, name), make('span', { class: 'mono' }, shown(value))]), { class: 'pairs', label: title });
  return make('details', { class: 'card' }, make('summary', {}, make('b', {}, title), note && make('span', { class: 'soft' }, note)),
    search && filterBox('Find a setting', sifted(body, rows.map(([name, value]) => `${name} ${shown(value)}`.toLowerCase()))), body);
}

function showRun() {
  heading('run', 'run-title', 'The run');
  const trouble = Object.entries(DATA.record).filter(([name, value]) => name !== 'lost' || value.events || value.write_errors);
  const files = Object.entries(DATA.run.files);
  const repeat = pairs('How to run it again', DATA.reproduce, 'commit, seed, versions');
  if (repeat) repeat.open = true;
  const parts = [
    repeat, pairs('Configuration', DATA.arguments, `${number(DATA.arguments.length)} arguments of the trainer`, true),
    pairs("rldk's own settings", DATA.settings), pairs('Environment', DATA.environment, 'hardware and versions', true),
    pairs('What went wrong in the recording', trouble, ''),
    pairs('Corrected values', DATA.corrections.map((text, at) => [at + 1, text]), ''), pairs('Files', files, 'beside this page'),
  ].filter(Boolean);
  if (!DATA.arguments.length && !DATA.reproduce.length) {
    parts.unshift(make('div', { class: 'card empty' }, make('p', {}, 'There is no run.json beside this run: its configuration, commit and seed are not known.')));
  }
  byId('run').append(...parts);
}
