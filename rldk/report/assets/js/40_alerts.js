// Alerts: a line of time, and the text of each.

const RANK = { info: 0, warning: 1, critical: 2 };
const FIRST_ALERTS = 20;
const LANES = 14;
const severityOf = (alert) => (alert.severity in RANK ? alert.severity : 'info');

function timeline() {
  const low = Math.min(FULL[0], ...DATA.alerts.map((alert) => alert.step));
  const high = Math.max(FULL[1], DATA.run.totals.steps || 0, ...DATA.alerts.map((alert) => alert.step));
  const share = (step) => (100 * (step - low)) / (high - low || 1);
  const lanes = new Map();
  DATA.order.forEach((at) => {
    const { code } = DATA.alerts[at];
    if (!lanes.has(code)) lanes.set(code, []);
    lanes.get(code).push(at);
  });
  const rows = [...lanes.entries()].slice(0, LANES).map(([code, members]) => {
    const bars = members.map((at) => {
      const alert = DATA.alerts[at];
      const open = alert.resolved_step === null || alert.resolved_step === undefined;
      const bar = make('button', {
        type: 'button', class: `span ${severityOf(alert)}${open ? ' open' : ''}`,
        title: `step ${alert.step} ${open ? 'to the end' : `to ${alert.resolved_step}`}: ${alert.message}`,
        'aria-label': `${alert.severity}: ${alert.name}, step ${alert.step} ${open ? 'to the end' : `to ${alert.resolved_step}`}. Go to the alert.`,
        on: { click: () => goToAlert(at) },
      });
      const from = share(alert.step);
      bar.style.left = `${from}%`;
      bar.style.width = `${Math.max(0, share(open ? high : alert.resolved_step) - from)}%`;
      return bar;
    });
    return make('div', { class: 'lane' }, make('span', { class: 'lane-name' }, code), make('div', { class: 'track' }, bars));
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const tick = make('span', {}, shortStep(Math.round(low + part * (high - low))));
    tick.style.left = `${part * 100}%`;
    return tick;
  });
  return make('div', { class: 'card timeline', role: 'group', 'aria-label': 'Alerts over the steps of the run' },
    rows, make('div', { class: 'lane axis', 'aria-hidden': 'true' }, make('span', { class: 'lane-name' }, 'step'), make('div', { class: 'track' }, ticks)),
    lanes.size > LANES && make('p', { class: 'note' }, `${lanes.size - LANES} more kinds of alert are in the list below.`));
}

function evidence(alert) {
  const rows = [['metric', make('bdi', {}, alert.metric)], ['value', number(alert.value)]];
  if (alert.threshold !== null && alert.threshold !== undefined) rows.push(['held against', number(alert.threshold)]);
  for (const [name, value] of Object.entries(alert.evidence || {})) {
    rows.push([name, value !== null && typeof value === 'object' ? JSON.stringify(value) : number(value)]);
  }
  return make('dl', { class: 'numbers' }, rows.map(([name, value]) => make('div', {}, make('dt', {}, name), make('dd', {}, value))));
}

function card(at) {
  const alert = DATA.alerts[at];
  const open = alert.resolved_step === null || alert.resolved_step === undefined;
  const plot = PLOTS.find((one) => one.names.includes(alert.key));
  const drawable = !plot && CURVES.has(alert.key);
  return make('article', { class: `card alert ${severityOf(alert)}`, id: `alert-${at + 1}`, 'aria-label': `${alert.severity}: ${alert.name}` },
    make('header', {},
      make('span', { class: `flag still ${severityOf(alert)}` }, at + 1),
      make('h3', {}, alert.name),
      make('span', { class: `badge ${severityOf(alert)}` }, alert.severity),
      make('span', { class: 'when' }, `step ${number(alert.step)}, ${open ? 'still open at the end' : `passed at step ${number(alert.resolved_step)}`}`)),
    make('p', { class: 'message' }, alert.message),
    alert.advice && make('p', { class: 'advice' }, make('strong', {}, 'Try first '), alert.advice),
    evidence(alert),
    make('p', { class: 'links' },
      (plot || drawable) && make('button', { type: 'button', class: 'link', 'data-plot': '', on: { click: () => goToPlot(alert) } }, 'Show in the plot'),
      !plot && !drawable && make('span', { class: 'soft' }, 'Seen before the first step, or not drawn: no plot.'),
      alert.docs && make('a', { href: alert.docs, rel: 'noopener noreferrer', target: '_blank' }, `About ${alert.code}`)));
}

function goToAlert(at) {
  if (!byId(`alert-${at + 1}`)) showCards(DATA.order.length);
  go(`alert-${at + 1}`);
}

function goToPlot(alert) {
  const plot = PLOTS.find((one) => one.names.includes(alert.key)) || plotMetric(alert.key);
  if (VIEW.range && (alert.step < VIEW.range[0] || alert.step > VIEW.range[1])) zoom(null);
  if (!plot.chart) plot.draw();
  go(plot.node);
}

function showCards(count) {
  const cards = DATA.order.slice(0, count).map(card);
  const left = DATA.order.length - cards.length;
  byId('alert-list').replaceChildren(...cards, ...(left > 0 ? [make('button', {
    type: 'button', class: 'more', on: { click: () => showCards(DATA.order.length) } }, `Show ${left} more`)] : []));
}

function showAlerts() {
  const total = DATA.alerts_total;
  heading('alerts', 'alerts-title', 'Alerts', total ? number(total) : 'none');
  const section = byId('alerts');
  if (!DATA.alerts.length) {
    const states = (state) => DATA.coverage.filter((row) => row.state === state).length;
    const judged = states('quiet') + states('fired');
    section.append(make('div', { class: 'card empty' }, make('p', {},
      total ? `${many(total, 'alert')}, which are in alerts.json and not on this page.`
        : `No detector raised an alert. ${many(judged, 'detector')} judged this run; ${number(states('unseen') + states('warming') + states('failed'))} could not, and their silence says nothing. `,
      !total && make('a', { href: '#coverage', on: { click: (event) => { event.preventDefault(); go('coverage'); } } }, 'Which, and why'))));
    return;
  }
  section.append(timeline(), make('div', { id: 'alert-list' }));
  showCards(FIRST_ALERTS);
  if (total > DATA.alerts.length) section.append(make('p', { class: 'note' }, `${number(total - DATA.alerts.length)} more alerts were counted and not kept.`));
}
