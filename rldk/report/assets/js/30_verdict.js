// The verdict, what it rests on, and the numbers that a person looks at first.

// The whole run in the size of a word; where a curve was not finite, there is nothing.
function sparkline(name) {
  const steps = DATA.steps[CURVES.get(name).s], shown = averages(name);
  let low = Infinity, high = -Infinity;
  for (const value of shown) if (value !== null && value !== undefined) { low = Math.min(low, value); high = Math.max(high, value); }
  let path = '', down = false;
  shown.forEach((value, at) => {
    if (value === undefined) return;
    if (value === null) { down = false; return; }
    const x = (100 * (steps[at] - FULL[0])) / (FULL[1] - FULL[0]), y = 25 - (22 * (value - low)) / (high - low || 1);
    path += `${down ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`;
    down = true;
  });
  const line = document.createElementNS(SVG, 'path');
  line.setAttribute('d', path);
  const picture = document.createElementNS(SVG, 'svg');
  picture.setAttribute('viewBox', '0 0 100 28');
  picture.setAttribute('preserveAspectRatio', 'none');
  picture.setAttribute('aria-hidden', 'true');
  picture.append(line);
  return picture;
}

function tile(name) {
  const row = METRICS.get(name) || {};
  const gap = lastGap(name);
  return make('button', {
    type: 'button', class: 'tile', title: `Go to the plot of ${row.name}`,
    on: { click: () => { const plot = PLOTS.find((one) => one.names.includes(name)); if (plot) go(plot.node); } },
  },
  make('span', { class: 'label' }, make('bdi', {}, row.name)),
  gap ? make('span', { class: 'value odd' }, gap.kind, make('span', { class: 'since' }, `since step ${number(gap.since)}`))
    : make('span', { class: 'value' }, inUnit(row.last, row.unit), row.nonfinite && make('span', { class: 'since odd' }, `${number(row.nonfinite)} not finite`)),
  sparkline(name),
  make('span', { class: 'from' }, make('span', {}, `first ${inUnit(row.first, row.unit)}`), typeof row.best === 'number' && make('span', {}, `best ${inUnit(row.best, row.unit)}`)));
}

function showVerdict() {
  const { verdict, run } = DATA;
  const totals = run.totals;
  document.title = `${run.id}: ${verdict.word}`;
  const events = Object.entries(totals.events || {}).map(([phase, count]) => `${number(count)} ${phase}`).join(', ');
  const facts = [
    ['trainer', run.trainer || 'unknown'], ['status', run.status], ['steps', number(totals.steps)],
    ['time', duration(totals.wall_time)], ['events', events || 'none'],
    totals.tokens_in !== undefined && ['tokens', number(totals.tokens_in)],
    run.began && ['began', `${String(run.began).slice(0, 16).replace('T', ' ')} UTC`],
  ].filter(Boolean);
  byId('verdict').append(
    make('h1', {}, make('bdi', {}, run.id)),
    make('dl', { class: 'facts' }, facts.map(([name, value]) => make('div', {}, make('dt', {}, name), make('dd', {}, value)))),
    make('div', { class: `card verdict ${verdict.tone}` },
      make('p', { class: 'sentence' }, make('span', { class: `badge ${verdict.tone}` }, verdict.word), verdict.sentence),
      make('ul', { class: 'reasons' }, verdict.reasons.map((reason) => make('li', {},
        make('a', { href: `#${reason.place}`, on: { click: (event) => { event.preventDefault(); follow(reason.place); } } }, reason.text))))),
    DATA.headline.length ? make('div', { class: 'tiles' }, DATA.headline.map(tile)) : '');
}

function follow(place) {
  const alert = /^alert-(\d+)$/.exec(place);
  if (alert) goToAlert(Number(alert[1]) - 1);
  else go(place);
}
