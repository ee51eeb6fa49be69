"""The parts of the report page, without a browser: curves that lose nothing, text that stays text, pages of any run."""

from __future__ import annotations

import json
import math
import re
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rldk
from rldk.detectors import make_detectors
from rldk.event import Alert, Event
from rldk.exceptions import ConfigurationError
from rldk.metrics import METRICS
from rldk.recorder import Recorder
from rldk.report import Curves, plot, render_html, render_markdown
from rldk.report._panels import NOT_DRAWN, PANELS, place
from rldk.report._thin import BUCKETS
from rldk.report._verdict import judge
from rldk.report.html import MAX_ROWS
from rldk.runfiles import RunFiles

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "a\nb", "&amp;",
    "\u2028", "{{data}}", "__proto__", "constructor", "'\"`", "\ud800", "]]>", "<!--", "javascript:alert(1)",
]


def curve(values, block=None):
    """The curve of a metric that is logged at each step from 1."""
    curves = Curves()
    for step, value in enumerate(values, 1):
        curves.add(Event(step, 0.0, {"loss": value}))
        if block and step % block == 0:
            curves.to_dict()
    return curves.to_dict()["loss"]


def finite(curve):
    return [(step, value) for step, value in zip(curve["steps"], curve["values"]) if value is not None]


class TestCurves:
    @pytest.mark.parametrize("count", [1, 2, 3, 1023, 1024, 1025, 2 * BUCKETS - 1])
    def test_short_runs_are_whole(self, count):
        """Up to two thousand values each is a point."""
        values = np.random.default_rng(count).normal(size=count).tolist()
        found = curve(values)
        assert finite(found) == list(enumerate(values, 1))
        assert (found["width"], found["means"], found["logged"]) == (1, [], count)

    @pytest.mark.parametrize("count", [2 * BUCKETS, 2 * BUCKETS + 1, 5_000, 20_001, 100_003])
    @pytest.mark.parametrize("block", [None, 700])
    def test_spikes_survive(self, count, block):
        """Whatever the length, each spike up or down is a point, with its value, at its step; read in between or not."""
        draw = np.random.default_rng(count)
        values = draw.normal(size=count)
        # Far enough apart that two of one kind do not share a bucket.
        at = np.arange(50, count, max(4 * count // BUCKETS, 300))[:100]
        values[at[::2]] += 1000 + np.arange(len(at[::2]))
        values[at[1::2]] -= 1000 + np.arange(len(at[1::2]))
        found = curve(values.tolist(), block)
        points = dict(finite(found))
        assert all(points[index + 1] == values[index] for index in at)
        assert len(found["steps"]) <= 2 * BUCKETS and found["steps"] == sorted(found["steps"])
        assert all(value == values[step - 1] for step, value in points.items())
        assert (found["steps"][0], found["steps"][-1]) >= (1, count - 2 * found["width"])

    @given(st.lists(st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, None]), max_size=60), st.integers(1, 400))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_extremes_are_kept(self, values, repeats):
        """Of any values, however often repeated, the highest and the lowest are there, and all that were not finite."""
        values = values * repeats
        if all(value is None for value in values):
            return
        found = curve(values)
        kept = [value for _, value in finite(found)]
        good = [value for value in values if value is not None and math.isfinite(value)]
        assert found["logged"] == len(good)
        assert sum(gap[2] for gap in found["gaps"]) == sum(value is not None and not math.isfinite(value) for value in values)
        if good:
            assert (min(kept), max(kept)) == (min(good), max(good))

    def test_means(self):
        """A thinned curve has the mean of each pair of points; together they are the mean of all."""
        values = np.random.default_rng(0).exponential(size=4096 * 16).tolist()
        found = curve(values)
        assert len(found["means"]) == len(found["values"]) // 2
        assert np.mean(found["means"]) == pytest.approx(np.mean(values))

    def test_largest_floats(self):
        """No sum of the largest floats is larger than they are."""
        found = curve([1.7e308] * 10_000)
        assert all(value == pytest.approx(1.7e308) for value in [*found["means"], *found["values"]])

    def test_not_finite(self):
        """Where a curve was not finite is said, with what it was; the line has a hole there."""
        found = curve([1.0, math.nan, math.nan, 2.0, math.inf, 3.0, -math.inf, math.nan])
        assert found["gaps"] == [(2, 3, 2, "nan"), (5, 5, 1, "inf"), (7, 8, 2, "mixed")]
        assert list(zip(found["steps"], found["values"])) == [
            (1, 1.0), (2, None), (4, 2.0), (5, None), (6, 3.0), (7, None),
        ]

    def test_every_nan_of_a_long_run(self):
        """Thousands of NaN are all in a span, and the spans are few."""
        values = [math.nan if step % 7 == 0 else 1.0 for step in range(50_000)]
        found = curve(values)
        assert sum(gap[2] for gap in found["gaps"]) == sum(map(math.isnan, values))
        assert len(found["gaps"]) <= 300
        assert all(any(first <= step <= last for first, last, *_ in found["gaps"]) for step in range(8, 50_000, 7 * 97))

    def test_none_is_no_point(self):
        """None was logged, and is neither a value nor a gap."""
        found = curve([1.0, None, 2.0])
        assert finite(found) == [(1, 1.0), (3, 2.0)] and not found["gaps"]

    def test_odd_values(self):
        """Integers beyond any float, flags, and what a damaged stream has."""
        curves = Curves()
        for step, value in enumerate([10**400, True, -(10**400), 2**70, 0], 1):
            curves.add(Event(step, 0.0, {"loss": value}))
        found = curves.to_dict()["loss"]
        assert finite(found) == [(2, 1.0), (4, float(2**70)), (5, 0.0)]
        assert [gap[3] for gap in found["gaps"]] == ["inf", "-inf"]

    def test_mixed_rows(self):
        """Metrics that come and go keep their own order, whatever stands beside them."""
        draw = np.random.default_rng(1)
        curves, expected = Curves(), {}
        for step in range(1, 3000):
            row = {f"eval_{name}" if draw.random() < 0.3 else name: float(step) for name in ("loss", "lr", "kl_mean")}
            curves.add(Event(step, 0.0, row))
            for name in row:
                expected.setdefault(name, []).append(step)
        for name, found in curves.to_dict().items():
            assert found["logged"] == len(expected[name])
            if found["width"] == 1:
                assert found["steps"] == expected[name]
            assert found["values"] == [float(step) for step in found["steps"]]

    def test_steps_that_go_back(self):
        """A stream whose steps went back without a mark is drawn in the order of its steps."""
        curves = Curves()
        for step in [*range(1, 2000), *range(1000, 3000)]:
            curves.add(Event(step, 0.0, {"loss": 1.0}))
        steps = curves.to_dict()["loss"]["steps"]
        assert steps == sorted(steps)

    def test_names_without_end(self):
        """Ever new names fill neither the memory nor the page; rldk's own are still there."""
        curves = Curves()
        for step in range(20_000):
            curves.add(Event(step, 0.0, {f"step_{step}": 1.0, "loss": 1.0}))
        found = curves.to_dict()
        assert len(found) < 300 and found["loss"]["logged"] == 20_000
        assert len(curves._layouts) <= 2000

    def test_cost(self):
        """An event of 25 metrics costs microseconds: a bound with much room, for machines that are busy."""
        events = [Event(step, 0.0, {f"rewards/{name}/mean": 1.0 * step for name in range(25)}) for step in range(10_000)]
        curves = Curves()
        began = time.process_time()
        for event in events:
            curves.add(event)
        assert (time.process_time() - began) / len(events) < 30e-6


class TestPanels:
    def test_every_metric_has_its_place(self):
        """Each of rldk's metrics is in one panel, or among those of which there is no plot; none is in two."""
        placed = [name for panel in PANELS for name in panel.metrics]
        assert len(placed) == len(set(placed))
        assert set(placed) <= set(METRICS)
        assert set(placed) | NOT_DRAWN == set(METRICS)
        assert {"reward_mean", "loss", "kl_mean", "entropy_mean", "grad_norm", "length_mean", "lr"} <= set(placed)

    def test_units_of_a_panel_agree(self):
        """One plot, one unit, if not of one family of names."""
        for panel in PANELS:
            units = {METRICS[name].unit for name in panel.metrics}
            assert len(units) <= 1 or panel.title in ("Loss", "Odds ratio", "Coefficients", "Change of the weights"), panel

    def test_evaluation_beside_training(self):
        """An evaluation stands in the plot of its training metric; alone it has the plot for itself."""
        panels = place(["loss", "eval_loss", "eval_token_accuracy"])
        assert [panel.metrics for panel in panels] == [("loss", "eval_loss"), ("eval_token_accuracy",)]

    def test_reward_functions_and_own_metrics(self):
        """Several reward functions share a plot; a user's own metrics each get one, as long as they are few."""
        names = ["rewards/a/mean", "rewards/b/mean", "rewards/a/std", *(f"mine_{index}" for index in range(30))]
        panels = place(names)
        assert panels[0].metrics == ("rewards/a/mean", "rewards/b/mean")
        assert 1 < sum(panel.section == "Your own metrics" for panel in panels) < 10
        assert not [panel for panel in place(["rewards/a/mean"]) if panel.title == "Reward functions"]


def page_of(tmp_path, *events, status="completed", reason=None, manifest=None, run_id="r"):
    """Report and page of a run, by the way that every run takes."""
    recorder = Recorder(run_id, RunFiles.of(tmp_path, run_id), make_detectors(), jsonl_interval=0, trainer="sft")
    if manifest:
        recorder.write_manifest(manifest)
    for event in events:
        recorder.record(event)
    report = recorder.close(status, reason)
    return report, (tmp_path / f"{run_id}_report.html").read_text()


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


class TestPage:
    def test_it_is_one_of_the_files(self, tmp_path):
        """The page stands beside the others and is named in the report."""
        report, page = page_of(tmp_path, Event(1, 0.5, {"loss": 1.0}))
        assert report["files"]["page"] == str(tmp_path / "r_report.html")
        assert page.startswith("<!doctype html>") and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_it_forbids_the_network(self, tmp_path):
        """Its policy allows nothing but its own script and style, and it names no address to fetch."""
        _, page = page_of(tmp_path, Event(1, 0.5, {"loss": 1.0}))
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert policy.count("'sha256-") == 2
        assert not re.findall(r'<(?:link|img|iframe|object|embed)\b|\bsrc\s*=\s*["\']|@import|url\(', page)

    @pytest.mark.parametrize("name", HOSTILE, ids=repr)
    def test_names_are_data(self, name, tmp_path):
        """No name ends the element that it stands in, and what moves or hides text is spelt out."""
        alert = Alert(name, name, "critical", 1, 0.0, name, 1.0, None, name, name, {name: name}, None, f"javascript:{name}")
        curves = Curves()
        curves.add(Event(1, 0.0, {name: 1.0, f"eval_{name}": 2.0}))
        report = page_of(tmp_path, Event(1, 0.0, {name: 1.0}))[0]
        page = render_html(
            {**report, "run_id": name, "reason": name, "trainer": name}, {"arguments": {name: name}, "git": {"commit": name}},
            [alert], curves.to_dict(),
        )
        assert page.count("<script") == 2 and page.count("</script>") == 2 and page.count("<!--") == 0
        data = data_of(page)
        shown = [data["run"]["id"], data["alerts"][0]["message"], data["arguments"][0][0], data["metrics"][0]["name"]]
        assert all(text.isprintable() for text in shown)
        assert data["alerts"][0]["docs"] == ""
        assert set(data["curves"]) == {text.encode("utf-8", "replace").decode() for text in (name, f"eval_{name}")}

    def test_zero_events(self, tmp_path):
        """A run without an event has a page that says so."""
        _, page = page_of(tmp_path)
        assert data_of(page)["verdict"]["sentence"] == "Nothing was recorded, so there is nothing to judge."

    def test_one_event(self, tmp_path):
        """One event is a run."""
        data = data_of(page_of(tmp_path, Event(7, 0.5, {"loss": 1.0}))[1])
        assert data["steps"] == [[7]] and data["curves"]["loss"]["v"] == [1.0]

    def test_no_known_metric(self, tmp_path):
        """Metrics that rldk does not know are drawn all the same."""
        data = data_of(page_of(tmp_path, *(Event(step, 0.0, {"mine": 1.0 * step}) for step in range(5)))[1])
        assert [panel["names"] for panel in data["panels"]] == [["mine"]]
        assert data["metrics"][0]["count"] == 5

    def test_ten_thousand_names(self, tmp_path):
        """The page is capped and says by how many; rldk's own come first."""
        row = {f"m{index}": 1.0 for index in range(10_000)} | {"loss": 1.0}
        report, page = page_of(tmp_path, *(Event(step, 0.0, row) for step in range(3)))
        data = data_of(page)
        assert len(report["metrics"]) == data["metrics_total"] == 10_001
        assert len(data["metrics"]) == MAX_ROWS and data["metrics"][0]["key"] == "loss"
        assert len(page) < 1_000_000

    def test_a_million_steps(self):
        """The page of 27 metrics over a million steps has under six megabytes; said is how much it leaves out."""
        curves = Curves()
        steps = np.arange(1, 1_000_001, dtype=np.int64)
        draw = np.random.default_rng(0)
        values = draw.normal(size=len(steps))
        for name in [*list(METRICS)[:25], "eval_loss", "mine"]:
            curves._new(name).fold(steps, values * draw.random())
        page = render_html({"run_id": "r", "status": "completed", "totals": {"events": {"train": 10**6}}}, {}, [], curves.to_dict())
        assert len(page.encode()) < 3_000_000
        thinned = data_of(page)["thinned"]
        assert (thinned["curves"], thinned["logged"], thinned["buckets"]) == (27, 1_000_000, BUCKETS)
        assert thinned["width"] * BUCKETS >= 1_000_000

    def test_a_failure_costs_the_page_alone(self, tmp_path, monkeypatch):
        """What goes wrong with the page is named in the report, in its file too, and nothing else suffers."""
        monkeypatch.setattr("rldk.recorder.render_html", lambda *parts: 1 / 0)
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors())
        recorder.record(Event(1, 0.0, {"loss": 1.0}))
        report = recorder.close("completed")
        assert report["rldk_failures"]["report page"]["count"] == 1
        assert json.loads((tmp_path / "r_final_report.json").read_text()) == report
        assert not (tmp_path / "r_report.html").exists()

    def test_a_full_disk_costs_the_page_alone(self, tmp_path):
        """A page that cannot be written is a failed write like any other."""
        (tmp_path / "r_report.html").mkdir()
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors())
        recorder.record(Event(1, 0.0, {"loss": 1.0}))
        report = recorder.close("completed")
        assert report["lost"]["write_errors"] == 1 and report["rldk_failures"] == {}

    def test_rebuilt_is_the_same(self, tmp_path):
        """The page made anew from the events shows what the live one did."""
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors(), trainer="sft")
        for step in range(1, 40):
            value = math.nan if step > 20 else 1.0
            recorder.record(Event(step, 0.1 * step, {"loss": 1.0, "grad_norm": value}, model_info={"run_id": "r", "trainer": "sft"}))
        recorder.close("completed")
        live = data_of((tmp_path / "r_report.html").read_text())
        rldk.rebuild_run(tmp_path / "r_events.jsonl")
        again = data_of((tmp_path / "r_report.html").read_text())
        assert {**live, "run": None} == {**again, "run": None}
        assert live["alerts"] and live["curves"]["grad_norm"]["gaps"] == [[21, 39, 19, "nan"]]


    def test_a_resumed_run_is_whole(self, tmp_path):
        """What was recorded before a resume is on the page of the run that went on."""
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors(), resume_at=5)
        recorder.replay(Event(step, 0.0, {"loss": 1.0}) for step in range(1, 6))
        recorder.record(Event(6, 0.0, {"loss": 1.0}))
        recorder.close("completed")
        assert data_of((tmp_path / "r_report.html").read_text())["steps"] == [[1, 2, 3, 4, 5, 6]]


def alert(code="zero_loss", severity="critical", step=13, resolved=None, message="loss is 0.0"):
    return Alert(code, "Sudden zero loss", severity, step, 0.0, "loss", 0.0, None, message, "Stop.", {}, resolved,
                 f"https://github.com/rldk/rldk/blob/main/docs/detectors/{code}.md")


class TestVerdict:
    def verdict(self, tmp_path, *alerts, status="completed", reason=None, events=30):
        rows = [item.to_dict() for item in alerts]
        report, _ = page_of(tmp_path, *(Event(step, 0.0, {"loss": 1.0}) for step in range(events)), status=status, reason=reason)
        opened = sum(item.resolved_step is None for item in alerts)
        return judge({**report, "alerts": {"total": len(rows), "open": opened, "by_severity": {}}}, rows)

    def test_quiet(self, tmp_path):
        """Without an alert it says how many detectors could judge, and that the others say nothing."""
        found = self.verdict(tmp_path)
        assert found.tone == "quiet" and re.fullmatch(r"\d+ of \d+ detectors could judge this run, and found nothing\.", found.sentence)
        assert any("their silence says nothing" in reason.text for reason in found.reasons)

    def test_worst_first(self, tmp_path):
        """The worst severity decides; open ones come before those that have passed."""
        found = self.verdict(tmp_path, alert(severity="warning", step=1), alert(step=9, resolved=12), alert(step=20))
        assert found.tone == "critical"
        assert found.sentence == "2 critical alerts, 3 alerts in all, 2 still open at the end."
        assert [reason.place for reason in found.reasons[1:4]] == ["alert-3", "alert-2", "alert-1"]

    def test_one_that_passed(self, tmp_path):
        """A single alert is spoken of as one."""
        assert self.verdict(tmp_path, alert(resolved=15)).sentence == "1 critical alert, which had passed before the end."

    def test_failed(self, tmp_path):
        """A run that failed is no good news, also without an alert."""
        found = self.verdict(tmp_path, status="failed", reason="RuntimeError: out of memory")
        assert found.tone == "critical" and found.word == "Failed"
        assert found.sentence.startswith("The run failed. No alerts: ")
        assert "RuntimeError: out of memory" in found.reasons[0].text

    def test_nobody_could_judge(self):
        """No detector that could judge is no verdict."""
        report = {"status": "completed", "totals": {"events": {"train": 3}, "steps": 3}, "coverage": [{"code": "a", "state": "unseen"}]}
        assert judge(report, []).tone == "unknown"


class TestMarkdown:
    def test_what_it_says(self, tmp_path):
        """Verdict, the headline metrics, the alerts with their advice, and who could not judge."""
        report, _ = page_of(tmp_path, *(Event(step, 0.5 * step, {"loss": 3.0 - 0.1 * step, "grad_norm": 1.0}) for step in range(20)))
        text = render_markdown(report, [alert()])
        assert text.startswith("### r: Critical\n")
        assert "| loss | 3 | 1.1 | 1.1 | 0 |" in text
        assert "| [zero\\_loss](https://github.com/rldk/rldk/blob/main/docs/detectors/zero_loss.md) | critical | 13 | open | loss is 0.0 |" in text
        assert "never saw their metric" in text
        assert text.endswith("\n") and "\n\n\n" not in text

    @pytest.mark.parametrize("name", [*HOSTILE, "a|b", "*bold*", "[x](y)", "@someone", "#12", "https://evil.example", "www.evil.example"], ids=repr)
    def test_text_stays_text(self, name, tmp_path):
        """Names and messages make no markup, mention, link or table cell."""
        report, _ = page_of(tmp_path, Event(1, 0.0, {name: 1.0}), Event(2, 0.0, {name: 2.0}))
        text = render_markdown({**report, "run_id": name, "reason": name, "trainer": name}, [alert(message=name)._replace(docs=f"javascript:{name}")])
        body = text.replace("<details><summary>", "").replace("</summary>", "").replace("</details>", "").replace("<!-- -->", "\0")
        assert all(line.replace("\0", "").isprintable() for line in body.splitlines())
        assert not re.search(r"(?<!\\)[<>*`]", body.replace("**", "").replace("\\\\", ""))
        assert not re.search(r"@\w|#\d|://evil|www\.evil", body)
        plain = render_markdown({**report, "run_id": "x", "reason": "x", "trainer": "x"}, [alert(message="x")._replace(docs="")])
        cells = lambda source: len(re.findall(r"(?<!\\)\|", source.replace("\\\\", "")))  # noqa: E731
        assert cells(body) == cells(plain) and body.count("\n") == plain.count("\n")

    def test_no_events(self, tmp_path):
        """A run without a metric has no table."""
        assert "|" not in render_markdown(page_of(tmp_path)[0])

    def test_grpo_has_no_best_loss(self, tmp_path):
        """A loss that is centred at zero has no best value."""
        report, _ = page_of(tmp_path, *(Event(step, 0.0, {"loss": 0.1 * step}) for step in range(3)))
        assert "| loss | 0 | 0.2 |  | 0 |" in render_markdown({**report, "trainer": "grpo"})


class TestPlot:
    @pytest.fixture
    def df(self, tmp_path):
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors(), trainer="sft")
        for step in range(1, 40):
            recorder.record(Event(step, 0.0, {"loss": 1.0 / step, "grad_norm": 1.0, "mine_$x$": 2.0, "tokens_per_second": 9.0}))
            if step % 10 == 0:
                recorder.record(Event(step, 0.0, {"eval_loss": 1.5 / step}, "eval"))
        recorder.close("completed")
        return rldk.ingest_runs(tmp_path / "r_events.jsonl")

    def test_default(self, df):
        """What matters is drawn, training and evaluation together, and the machine is not."""
        figure = plot(df, alerts=[alert()])
        titles = [axis.get_title(loc="left") for axis in figure.axes if axis.axison]
        assert titles == ["Loss (loss)", "Gradient norm (L2 norm)", r"mine_\$x\$"]
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["loss", "eval_loss"]
        assert [text.get_text() for text in figure.axes[0].texts] == ["zero_loss"]
        figure.canvas.draw()

    def test_chosen(self, df):
        """Names are taken as people type them."""
        assert len(plot(df, "gradient_norm").axes) == 1
        with pytest.raises(ConfigurationError, match="Did you mean 'loss'"):
            plot(df, ["losss"])

    def test_several_runs(self, df):
        """Each run has its own colour and name."""
        import pandas as pd

        both = pd.concat([df, df.assign(run_id="other")])
        assert len(plot(both, "loss").axes[0].get_legend().get_texts()) == 4

    def test_nothing(self, df):
        """A frame without metrics is an empty figure, one without steps an error."""
        assert plot(df[["step", "phase"]]).texts[0].get_text() == "No metric to draw."
        with pytest.raises(ConfigurationError, match="column 'step'"):
            plot(df[["loss"]])

    def test_without_matplotlib(self, df, monkeypatch):
        """A missing matplotlib is one line with the cure."""
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r'^matplotlib is not installed. Install with: pip install "rldk\[plot\]"$'):
            plot(df)
