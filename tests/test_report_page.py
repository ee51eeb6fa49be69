"""The report page in a real browser, opened from disk with the network off: what a person sees, clicks and zooms.

The runs are real: TRL trainers on tiny models, one healthy and one whose reward function gives all completions one score.
"""

from __future__ import annotations

import os

import browser
import pytest
import zoo
from test_report_parts import HOSTILE

from rldk.detectors import make_detectors
from rldk.event import Alert, Event
from rldk.recorder import Recorder
from rldk.report import Curves, render_html
from rldk.runfiles import RunFiles

# A machine of continuous integration has a browser (scripts/chromium.sh); a laptop without one can still run the others.
pytestmark = pytest.mark.skipif(
    browser.find() is None and not os.environ.get("RLDK_REQUIRE_BROWSER"), reason="no Chromium: see scripts/chromium.sh"
)
PLOT = "document.querySelector('#plot-{}')"
READY = "document.documentElement.dataset.ready === 'true'"


def constant(completions, **kwargs):
    """The reward with a fault: one score for all."""
    return [1.0] * len(completions)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a healthy and of a broken run, as `RLDKCallback` leaves them."""
    from rldk.integrations.trl import RLDKCallback

    found = {}
    for name, family, config in (
        ("healthy", "sft", {}), ("broken", "grpo", {"reward_funcs": constant, "eval_strategy": "no"}),
    ):
        folder = tmp_path_factory.mktemp(name)
        recorder = RLDKCallback(folder / "logs", run_id=name)
        zoo.trainer(family, folder, callbacks=[recorder], max_steps=20, **config).train()
        found[name] = recorder.files["page"]
        assert recorder.report["health"]["verdict"] == ("critical" if name == "broken" else "no alerts")
    return found


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests of this module."""
    process = browser.Browser()
    yield process
    process.close()


@pytest.fixture
def show(chromium):
    """Opens a page, and sees at the end that nothing went wrong in it and that it asked for nothing but itself."""
    opened = []

    def show(path, **how):
        page = chromium.open(path, **how)
        page.path = path
        opened.append(page)
        page.wait(READY)
        return page

    yield show
    for page in opened:
        assert page.complaints() == []
        assert page.requests() == [page.path.resolve().as_uri()]
        page.close()


def ink(page, number):
    """How many pixels of a plot are painted, and in how many colours."""
    script = """(() => {
      const canvas = PLOT.querySelector('canvas');
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const colours = new Set();
      let painted = 0;
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 40) {
        painted += 1;
        colours.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
      }
      return [painted, colours.size];
    })()""".replace("PLOT", PLOT.format(number))
    return page.run(script)


def drawn(page, number=1):
    """Scrolls to a plot, and waits until it is drawn."""
    page.run(f"{PLOT.format(number)}.scrollIntoView({{block: 'center'}})")
    page.wait(f"!!{PLOT.format(number)}.querySelector('canvas')")
    page.wait(f"new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done({PLOT.format(number)}.querySelector('canvas').width > 0))))")


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).textContent")


class TestRealRuns:
    @pytest.mark.parametrize(("name", "tone"), [("healthy", "quiet"), ("broken", "critical")])
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_it_opens(self, name, tone, dark, pages, show):
        """Verdict first; every plot is drawn as one comes to it; nothing is fetched, no complaint is heard."""
        page = show(pages[name], dark=dark)
        assert page.run("document.querySelector('.verdict').className").endswith(tone)
        assert "their silence says nothing" in text(page, ".verdict")
        assert page.run("document.title").startswith(f"{name}: ")
        count = page.run("document.querySelectorAll('.plot').length")
        assert count > 5
        for number in range(1, count + 1):
            drawn(page, number)
            painted, colours = ink(page, number)
            assert painted > 500 and colours > 2
        background = page.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark

    def test_it_says_what_the_run_was(self, pages, show):
        """Coverage by state with what to log, arguments that can be searched, versions, seed and commit."""
        page = show(pages["healthy"])
        assert "a divergence from the reference" in text(page, ".state.unseen")
        assert "learning_rate" in text(page, "#run") and "transformers==" in text(page, "#run") and "seed" in text(page, "#run")
        visible = "[...document.querySelectorAll('#run details')].find((one) => one.textContent.startsWith('Configuration')).querySelectorAll('tbody tr:not([hidden])').length"
        before = page.run(visible)
        page.run("(() => { const box = document.querySelector('#run .filter'); box.value = 'LEARNING_RATE'; box.dispatchEvent(new Event('input')); })()")
        assert 0 < page.run(visible) < before

    def test_evaluation_beside_training(self, pages, show):
        """One plot has the training loss and the evaluation's."""
        page = show(pages["healthy"])
        drawn(page)
        assert "loss" in text(page, "#plot-1 .legend") and "eval_loss" in text(page, "#plot-1 .legend")

    def test_marks_lead_to_alerts_and_back(self, pages, show):
        """A flag in a plot, clicked, leads to the alert's text; the alert leads to its plot; the keyboard does it too."""
        page = show(pages["broken"])
        number = page.run("Number([...document.querySelectorAll('.plot')].find((node) => node.plot.alerts.length).id.slice(5))")
        drawn(page, number)
        alert = page.run(f"{PLOT.format(number)}.querySelector('.flag').dataset.alert")
        x, y, width, height = page.box(f"{PLOT.format(number)}.querySelector('.flag')")
        page.click(x + width / 2, y + height / 2)
        page.wait(f"document.activeElement.id === 'alert-{alert}'")
        top, bottom = page.run(f"(() => {{ const box = document.querySelector('#alert-{alert}').getBoundingClientRect(); return [box.top, box.bottom]; }})()")
        assert top >= 0 and bottom <= 900
        assert "Try first" in text(page, f"#alert-{alert}")
        x, y, width, height = page.box(f"document.querySelector('#alert-{alert} [data-plot]')")
        page.click(x + width / 2, y + height / 2)
        page.wait(f"document.activeElement.id === 'plot-{number}'")
        page.run("document.querySelector('.span[aria-label]').focus()")
        page.press("Enter")
        page.wait("document.activeElement.id.startsWith('alert-')")

    def test_zoom_is_linked(self, pages, show):
        """A drag in one plot zooms all, also those not yet drawn; double-click, Escape and the button show all again."""
        page = show(pages["healthy"])
        drawn(page, 2)
        drawn(page, 1)
        scales = "[...document.querySelectorAll('.plot')].filter((node) => node.plot.chart).map((node) => [node.plot.chart.scales.x.min, node.plot.chart.scales.x.max])"
        x, y, width, height = page.box("document.querySelector('#plot-1 .u-over')")

        def zoom_in():
            page.drag(x + width * 0.25, y + height / 2, x + width * 0.6)
            page.wait(f"{scales}[0][1] < 15")

        zoom_in()
        found = page.run(scales)
        assert len(found) >= 2 and all(pair == found[0] for pair in found)
        assert 4 < found[0][0] < 8 and 10 < found[0][1] < 14
        last = page.run("document.querySelectorAll('.plot').length")
        drawn(page, last)
        assert page.run(f"{PLOT.format(last)}.plot.chart.scales.x.max") == found[0][1]
        assert page.run("[document.querySelector('#zoom-from').value, document.querySelector('#zoom-to').value].map(Number)") == [
            -(-found[0][0] // 1), found[0][1] // 1,
        ]
        x, y, width, height = page.box("document.querySelector('#plot-1 .u-over')")
        page.click(x + width / 2, y + height / 2, clicks=2)
        page.wait(f"{scales}.every(([low, high]) => low === 1 && high === 20)")
        zoom_in()
        page.press("Escape")
        page.wait(f"{scales}.every(([low, high]) => low === 1 && high === 20)")
        zoom_in()
        page.run("document.querySelector('#zoom-reset').click()")
        page.wait(f"{scales}.every(([low, high]) => low === 1 && high === 20)")
        page.run("(() => { const box = document.querySelector('#zoom-to'); box.value = 9; box.dispatchEvent(new Event('change')); })()")
        assert page.run(f"{scales}.every(([low, high]) => low === 1 && high === 9)")

    def test_theme(self, pages, show):
        """The toggle sets light and dark whatever the system says, and the plots follow; auto is the system's."""
        page = show(pages["healthy"])
        drawn(page)
        colour = "getComputedStyle(document.body).backgroundColor"
        light, before = page.run(colour), page.picture()
        page.run("document.querySelector('[data-theme-choice=dark]').click()")
        dark = page.run(colour)
        assert dark != light and page.picture() != before
        page.run("document.querySelector('[data-theme-choice=auto]').click()")
        assert page.run(colour) == light
        page.scheme(True)
        page.wait(f"{colour} === {dark!r}")
        page.run("document.querySelector('[data-theme-choice=light]').click()")
        assert page.run(colour) == light

    def test_smoothing_and_log(self, pages, show):
        """The slider adds a smoothed curve to each plot; the toggle makes the scale logarithmic, and says what it cannot draw."""
        page = show(pages["healthy"])
        drawn(page)
        chart = "document.querySelector('#plot-1').plot.chart"
        assert page.run(f"[{chart}.series.length, {chart}.scales.y.distr]") == [3, 1]
        page.run("(() => { const box = document.querySelector('#smoothing'); box.value = 0.9; box.dispatchEvent(new Event('input')); })()")
        raw, soft = page.run(f"{chart}.data[1].filter((one) => one != null)"), page.run(f"{chart}.data[3].filter((one) => one != null)")
        assert len(raw) == len(soft) == 20 and raw[0] == pytest.approx(soft[0])
        assert max(soft) - min(soft) < max(raw) - min(raw)
        page.run("document.querySelector('#log').click()")
        assert page.run(f"{chart}.scales.y.distr") == 3
        drawn(page)
        assert ink(page, 1)[0] > 500
        page.run("document.querySelector('#log').click()")
        assert page.run(f"{chart}.scales.y.distr") == 1

    def test_all_metrics(self, pages, show):
        """The table of all metrics opens, can be searched, and plots any of them."""
        page = show(pages["healthy"])
        page.run("document.querySelector('#metrics summary').click()")
        page.run("(() => { const box = document.querySelector('#metrics .filter'); box.value = 'epoch'; box.dispatchEvent(new Event('input')); })()")
        assert page.run("[...document.querySelectorAll('#metrics tbody tr:not([hidden]) th')].map((one) => one.textContent)") == ["epoch"]
        page.run("document.querySelector('#metrics tbody tr:not([hidden]) button').click()")
        page.wait("!!document.querySelector('#plot-own-1 canvas')")

    @pytest.mark.parametrize("width", [360, 820])
    def test_narrow(self, width, pages, show):
        """On a phone nothing sticks out sideways."""
        page = show(pages["broken"], width=width, height=780)
        drawn(page)
        assert page.run("document.documentElement.scrollWidth") <= width
        page.size(1280, 900)
        page.wait("document.querySelector('#plot-1').plot.chart.width === document.querySelector('#plot-1 .canvas').clientWidth")

    def test_names_and_contrast(self, pages, show):
        """Every control has a name, and text stands out from what is behind it, in both themes."""
        page = show(pages["broken"])
        drawn(page)
        unnamed = "[...document.querySelectorAll('button, input, a, figure')].filter((node) => !(node.textContent.trim() || node.getAttribute('aria-label') || (node.labels && node.labels.length))).length"
        assert page.run(unnamed) == 0
        script = """(() => {
          const part = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
          const bright = (rgb) => 0.2126 * part(rgb[0]) + 0.7152 * part(rgb[1]) + 0.0722 * part(rgb[2]);
          const hex = (name) => { const h = getComputedStyle(document.documentElement).getPropertyValue(name).trim(); return [1, 3, 5].map((at) => parseInt(h.slice(at, at + 2), 16)); };
          const ratio = (a, b) => { const [x, y] = [bright(hex(a)), bright(hex(b))].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
          const pairs = [['--ink', '--bg'], ['--muted', '--bg'], ['--muted', '--card'], ['--muted', '--soft'], ['--accent', '--card'], ['--card', '--critical'], ['--card', '--warning'], ['--card', '--info']];
          for (const tone of ['critical', 'warning', 'info', 'quiet', 'unknown']) pairs.push([`--${tone}`, `--${tone}-bg`]);
          return Math.min(...pairs.map(([a, b]) => ratio(a, b)));
        })()"""
        for theme in ("light", "dark"):
            page.run(f"document.querySelector('[data-theme-choice={theme}]').click()")
            assert page.run(script) >= 4.5

    def test_print(self, pages, show):
        """Printed, it is light, whole, and without its tools."""
        page = show(pages["broken"], dark=True)
        page.run("dispatchEvent(new Event('beforeprint'))")
        assert page.run("[...document.querySelectorAll('.plot')].every((node) => node.plot.chart)")
        assert page.run("document.documentElement.dataset.theme") == "light"
        page.run("dispatchEvent(new Event('afterprint'))")
        assert page.run("document.documentElement.dataset.theme") is None


class TestOddRuns:
    def write(self, tmp_path, *events):
        recorder = Recorder("odd", RunFiles.of(tmp_path, "odd"), make_detectors(), jsonl_interval=0)
        for event in events:
            recorder.record(event)
        recorder.close("completed")
        return tmp_path / "odd_report.html"

    def test_hostile_names(self, tmp_path, show):
        """Markup, scripts and terminal escapes in names and messages show as text, and nothing of them runs."""
        curves = Curves()
        for step in range(1, 6):
            curves.add(Event(step, 0.0, dict.fromkeys(HOSTILE, 1.0 * step)))
        statistics = {name: {"count": 5, "first": 1.0, "last": 5.0, "min": 1.0, "max": 5.0, "mean": 3.0} for name in HOSTILE}
        alerts = [
            Alert(name, name, name, 3, 0.0, name, 1.0, None, name, name, {name: name}, None, f"javascript:alert('{name}')") for name in HOSTILE
        ]
        bad = HOSTILE[0]
        path = tmp_path / "hostile.html"
        path.write_text(render_html(
            {"run_id": bad, "status": bad, "reason": bad, "trainer": bad, "metrics": statistics, "files": {bad: bad},
             "totals": {"events": {bad: 1}, "steps": 5}, "coverage": [{"code": bad, "name": bad, "state": "unseen", "watches": [bad], "needs": bad}]},
            {"arguments": dict.fromkeys(HOSTILE, bad), "git": {"commit": bad}, "environment": {"versions": {bad: bad}}}, alerts, curves.to_dict(),
        ), encoding="utf-8", errors="replace")
        page = show(path)
        drawn(page)
        assert page.run("document.querySelectorAll('main img, main script, main iframe').length") == 0
        assert page.run("document.querySelectorAll('script').length") == 2
        assert text(page, "h1") == bad
        titles = page.run("[...document.querySelectorAll('.plot h4')].map((one) => one.textContent)")
        assert titles[:3] == [HOSTILE[0], HOSTILE[1], r"\x1b[31mred\x1b[0m"] and r"\u202egnp.exe" in titles
        assert page.run("[...document.querySelectorAll('a')].filter((one) => !['#', 'h'].includes(one.getAttribute('href')[0])).length") == 0
        names = page.run("[...document.querySelectorAll('#metrics tbody th')].map((one) => one.textContent)")
        assert len(names) == len(HOSTILE) and {"__proto__", "constructor"} <= set(names)

    def test_no_event(self, tmp_path, show):
        """A run without an event is no blank page."""
        page = show(self.write(tmp_path))
        assert "Nothing was recorded" in text(page, ".verdict") and "No metric was recorded" in text(page, "#plots")

    def test_one_event(self, tmp_path, show):
        """A single event is a dot."""
        page = show(self.write(tmp_path, Event(7, 0.5, {"loss": 1.0})))
        drawn(page)
        assert ink(page, 1)[0] > 100

    def test_only_nan(self, tmp_path, show):
        """A curve that was never finite is marked along the foot of its plot."""
        page = show(self.write(tmp_path, *(Event(step, 0.5, {"loss": float("nan")}) for step in range(1, 9))))
        drawn(page)
        assert "loss was NaN 8 times, from step 1" in text(page, "#plot-1 .note")
        assert text(page, ".tile .value").startswith("NaN")
        page.run("document.querySelector('#log').click()")

    @pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
    def test_extreme_values(self, log, tmp_path, show):
        """The largest and the smallest floats, differences of one bit, and mixtures of them are drawn, or at least do no harm."""
        series = {
            "large": [1.7e308, 1.6e308], "both": [1e308, -1e308], "tiny": [5e-324, 1e-300], "bit": [1.0, 1.0000000000000002],
            "wide": [1e-300, 1e300], "unaligned": [0.00013043478, 0.45], "negative": [-1.0, -5.0], "zero": [0.0, 0.0], "loss": [1e-9, 3.0],
        }
        page = show(self.write(tmp_path, *(
            Event(step, 0.0, {name: values[step % 2] for name, values in series.items()}) for step in range(1, 30)
        )))
        if log:
            page.run("document.querySelector('#log').click()")
        for number in range(1, page.run("document.querySelectorAll('.plot').length") + 1):
            drawn(page, number)
        page.run("(() => { const box = document.querySelector('#zoom-to'); box.value = 9; box.dispatchEvent(new Event('change')); })()")
        page.run("(() => { const box = document.querySelector('#smoothing'); box.value = 0.9; box.dispatchEvent(new Event('input')); })()")
        page.run("document.querySelector('#zoom-reset').click()")

    def test_ten_thousand_names(self, tmp_path, show):
        """The page stays usable, and says what it leaves out and where that is."""
        row = {f"m{index}": 1.0 for index in range(10_000)} | {"loss": 1.0}
        page = show(self.write(tmp_path, *(Event(step, 0.0, row) for step in range(1, 4))))
        assert page.run("document.querySelectorAll('*').length") < 20_000
        assert "9,401 are left out here" in text(page, "#metrics .note").replace("9401", "9,401")
        assert "odd_final_report.json" in text(page, "#metrics .note")

    def test_a_long_run(self, tmp_path, show):
        """A thinned page says how it was thinned, keeps a spike, and zooms."""
        events = (Event(step, 0.0, {"loss": 99.0 if step == 31_337 else 1.0, "lr": 1e-5}) for step in range(1, 60_001))
        page = show(self.write(tmp_path, *events))
        assert "buckets" in text(page, ".hint") and "60,000" in text(page, ".hint")
        drawn(page)
        chart = "document.querySelector('#plot-1').plot.chart"
        assert page.run(f"{chart}.data[0][{chart}.data[1].indexOf(99)]") == 31_337

    def test_many_alerts(self, tmp_path, show):
        """A thousand alerts: the first are shown, the others on demand, or when a mark leads to one."""
        path = tmp_path / "many.html"
        curves = Curves()
        for step in range(1, 1001):
            curves.add(Event(step, 0.0, {"loss": 1.0}))
        alerts = [Alert("zero_loss", "Zero", "warning", step, 0.0, "loss", 0.0, None, "m", "a", {}, step + 1) for step in range(1, 1001)]
        report = {"run_id": "many", "status": "completed", "totals": {"events": {"train": 1000}, "steps": 1000}, "metrics": {"loss": {"count": 1000}},
                  "alerts": {"total": 1500, "open": 0, "by_severity": {"warning": 1500}}}
        path.write_text(render_html(report, {}, alerts, curves.to_dict()))
        page = show(path)
        assert page.run("document.querySelectorAll('article').length") == 20
        assert "500 more alerts were counted" in text(page, "#alerts")
        drawn(page)
        assert page.run("document.querySelectorAll('#plot-1 .flag').length") < 60
        page.run("[...document.querySelectorAll('#plot-1 .flag')].pop().click()")
        page.wait("document.activeElement.tagName === 'ARTICLE'")
