// The page, put together.

const THEME = { choice: 'auto' };

function setTheme(choice) {
  THEME.choice = choice;
  if (choice === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  for (const button of document.querySelectorAll('[data-theme-choice]')) button.setAttribute('aria-checked', String(button.dataset.themeChoice === choice));
  redraw();
}

function toolbar() {
  const steps = (label, end) => {
    const input = make('input', { type: 'number', step: 'any', min: FULL[0], max: FULL[1], id: `zoom-${label}`, 'aria-label': `Steps ${label}` });
    input.addEventListener('change', () => {
      const range = [...(VIEW.range || FULL)];
      range[end] = input.value === '' ? FULL[end] : Number(input.value);
      zoom(range);
    });
    return input;
  };
  const from = steps('from', 0), to = steps('to', 1);
  const reset = make('button', { type: 'button', id: 'zoom-reset', disabled: true, on: { click: () => zoom(null) } }, 'Show all steps');
  const share = make('output', { for: 'smoothing' }, 'off');
  const slider = make('input', { type: 'range', id: 'smoothing', min: 0, max: 0.98, step: 0.02, value: 0, on: { input: (event) => {
    VIEW.smoothing = Number(event.target.value);
    share.textContent = VIEW.smoothing ? VIEW.smoothing.toFixed(2) : 'off';
    redraw();
  } } });
  const log = make('input', { type: 'checkbox', id: 'log', on: { change: (event) => { VIEW.log = event.target.checked; redraw(); } } });
  const show = () => {
    const [low, high] = VIEW.range || FULL;
    from.value = Math.ceil(low);
    to.value = Math.floor(high);
    reset.disabled = !VIEW.range;
  };
  document.addEventListener('rldk-zoom', show);
  show();
  return make('div', { class: 'tools', role: 'toolbar', 'aria-label': 'How the plots are drawn' },
    make('label', { class: 'tool' }, 'Smoothing', slider, share), make('label', { class: 'tool' }, log, 'Log scale'),
    make('span', { class: 'tool' }, 'Steps', from, 'to', to, reset));
}

function showPlots() {
  const section = byId('plots');
  heading('plots', 'plots-title', 'Plots', 'over the steps of the run');
  const panels = DATA.panels.filter((panel) => panel.names.some((name) => CURVES.has(name)));
  if (!panels.length) {
    section.append(make('div', { class: 'card empty' }, make('p', {}, DATA.metrics.length ? 'Nothing of this run has a curve.' : 'No metric was recorded, so there is nothing to draw.')));
    return;
  }
  const thin = DATA.thinned;
  section.append(toolbar(), make('p', { class: 'hint' }, 'Drag over a plot to zoom all of them, double-click to see all steps. A flag is an alert: click it to read it.',
    thin.curves ? ` ${thin.curves === 1 ? 'One curve has' : `${number(thin.curves)} curves have`} more values (up to ${number(thin.logged)}) than a plot has room for: drawn are the lowest and the highest of each bucket of up to ${number(thin.width)} logged values, in at most ${number(thin.buckets)} buckets. No spike is lost, and smoothing averages the means of the buckets. Every value is in ${DATA.run.files.metrics || 'metrics.csv'}.` : ''));
  // One unbroken grid; the first plot of a group carries its name.
  const grid = make('div', { class: 'grid' });
  section.append(grid);
  let group = null;
  panels.forEach((panel, at) => {
    const cell = make('div', { class: 'cell' }, panel.section === group ? make('div', { class: 'no-name' }) : make('h3', {}, panel.section));
    group = panel.section;
    grid.append(cell);
    addPlot(panel, cell, at + 1);
  });
}

function showNav() {
  const names = [['alerts', 'Alerts'], ['plots', 'Plots'], ['metrics', 'Metrics'], ['coverage', 'Judged'], ['run', 'Run']];
  byId('nav').append(...names.map(([id, title]) => make('a', { href: `#${id}` }, title)));
}

function forPrint() {
  const before = { theme: THEME.choice, open: [] };
  addEventListener('beforeprint', () => {
    before.theme = THEME.choice;
    setTheme('light');
    before.open = [...document.querySelectorAll('#coverage details:not([open]), #run details:not([open])')];
    for (const details of before.open) details.open = true;
    for (const plot of PLOTS) if (!plot.chart) plot.draw();
  });
  addEventListener('afterprint', () => {
    setTheme(before.theme);
    for (const details of before.open) details.open = false;
  });
}

showNav();
showVerdict();
showPlots();
showAlerts();
showMetrics();
showCoverage();
showRun();
forPrint();
byId('foot').append(make('p', {}, 'Made by rldk', DATA.run.updated && `, ${String(DATA.run.updated).slice(0, 19).replace('T', ' ')} UTC`,
  '. One file, no network: all that it shows is in it. Plots by uPlot (MIT).'));
for (const button of document.querySelectorAll('[data-theme-choice]')) button.addEventListener('click', () => setTheme(button.dataset.themeChoice));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
addEventListener('keydown', (event) => { if (event.key === 'Escape' && VIEW.range) zoom(null); });
if (/^#alert-\d+$/.test(location.hash)) goToAlert(Number(location.hash.slice(7)) - 1);
document.documentElement.dataset.ready = 'true';
