"""The fold and the report: true numbers, honest coverage, and text that is safe to print."""

from __future__ import annotations

import json
import math
import re
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rldk.detectors import detector_classes, make_detectors
from rldk.event import Alert, Event, Severity
from rldk.metrics import METRICS
from rldk.monitor import Monitor
from rldk.recorder import Recorder
from rldk.report import STATUSES, build_report, render_text
from rldk.runfiles import RunFiles
from rldk.summary import Summary

CLASSES = detector_classes()


def fold(*events) -> Summary:
    summary = Summary()
    for event in events:
        summary.add(event)
    return summary


def folded(values) -> dict:
    return fold(*(Event(step, 0.0, {"a": value}) for step, value in enumerate(values))).metrics()["a"]


def check(row, values):
    """The statistics of a metric are those of numpy over its finite values."""
    logged = [value for value in values if value is not None]
    finite = np.array([value for value in logged if math.isfinite(value)], dtype=np.float64)
    assert row["count"] == len(finite)
    assert row.get("nonfinite", 0) == len(logged) - len(finite)
    if not len(finite):
        assert row.keys() <= {"count", "nonfinite"}
        return
    assert (row["first"], row["last"]) == (finite[0], finite[-1])
    assert (row["min"], row["max"]) == (finite.min(), finite.max())
    scale = np.abs(finite).max()
    assert row["mean"] == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * scale)
    assert row["std"] == pytest.approx(finite.std(), rel=1e-9, abs=1e-9 * scale)


class TestSummary:
    @pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1023, 1024, 1025, 5000])
    @pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
    def test_random_numbers(self, count, offset):
        """Of any number of values, also far from zero, the statistics are numpy's."""
        values = (offset + np.random.default_rng(count).normal(0.0, 3.0, count)).tolist()
        check(folded(values), values)

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_with_holes(self, share):
        """NaN and infinities are counted and left out, None is left out."""
        draw = np.random.default_rng(1)
        odd = [math.nan, math.inf, -math.inf, None]
        values = [odd[draw.integers(4)] if draw.random() < share else float(draw.normal()) for _ in range(4000)]
        check(folded(values), values)

    @given(st.lists(st.none() | st.floats(width=32) | st.integers(-1000, 1000), max_size=30))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_any_values(self, values):
        """Whatever was logged."""
        if values:
            check(folded(values), values)

    def test_nothing_but_nan(self):
        """A metric that was never finite has a count of zero and no statistics."""
        assert folded([math.nan] * 3) == {"count": 0, "nonfinite": 3}
        assert folded([None]) == {"count": 0}

    @pytest.mark.parametrize(
        "values",
        [[1e308, -1e308], [1e308] * 3, [1e200, 2e200], [5e-324, 0.0], [2**63, -(2**63)], [1.7976931348623157e308] * 7],
    )
    def test_extremes(self, values):
        """The largest numbers give a mean that is right, and a deviation that is right or not claimed."""
        row = folded(values)
        exact = sum(map(Fraction, values)) / len(values)
        assert row["mean"] == pytest.approx(float(exact), rel=1e-9)
        assert (row["min"], row["max"]) == (min(values), max(values))
        largest = max(map(abs, values))
        expected = statistics.pstdev(value / largest for value in values) * largest
        assert row["std"] is None or row["std"] == pytest.approx(expected, rel=1e-6)

    def test_metrics_are_apart(self):
        """Metrics that come and go each have their own statistics, in any mixture of rows."""
        draw = np.random.default_rng(3)
        rows = [
            {f"m{name}": float(draw.normal()) for name in draw.permutation(6)[: draw.integers(0, 6)]}
            for _ in range(3000)
        ]
        metrics = fold(*(Event(step, 0.0, row) for step, row in enumerate(rows))).metrics()
        for name, row in metrics.items():
            check(row, [values[name] for values in rows if name in values])
        assert metrics.keys() == {name for row in rows for name in row}

    def test_reading_does_not_disturb(self):
        """Statistics asked for in the middle of a run change nothing of those at its end."""
        values = np.random.default_rng(2).normal(size=700).tolist()
        summary = Summary()
        for step, value in enumerate(values):
            summary.add(Event(step, 0.0, {"a": value}))
            if step % 37 == 0:
                summary.metrics()
        check(summary.metrics()["a"], values)

    def test_totals(self):
        """Steps, events by phase, seconds and tokens are totals of the run."""
        summary = fold(
            Event(1, 2.0, {"a": 1}, data_slice={"tokens_in": 5}),
            Event(1, 3.0, {"a": 1}, "eval"),
            Event(7, 9.5, {}, data_slice={"tokens_in": 6, "tokens_out": 2}),
            Event(4, math.nan, {}, "checkpoint"),
            Event(7, 9.0, {}, "summary"),
        )
        assert summary.totals() == {
            "steps": 7,
            "events": {"train": 2, "eval": 1, "checkpoint": 1, "summary": 1},
            "wall_time": 9.5,
            "tokens_in": 11,
            "tokens_out": 2,
        }
        assert summary.first_step == 1

    def test_totals_of_a_damaged_stream(self):
        """Token counts that are no numbers are left out, and no name replaces a total of ours."""
        totals = fold(
            Event(3, 1.0, {}, data_slice={"tokens_in": math.nan, "steps": 99, "wall_time": math.inf, "x": "y"})
        ).totals()
        assert totals == {"steps": 3, "events": {"train": 1}, "wall_time": 1.0}

    def test_memory(self):
        """The fold keeps no values: a long run is no larger than a short one."""

        def size(count):
            summary = Summary()
            for step in range(count):
                summary.add(Event(step, 0.0, {"a": float(step), "b": 1.0}))
            summary.metrics()
            return len(summary._batch) + sum(len(series.__slots__) for series in summary._series.values())

        assert size(20_000) == size(2_000)


def report_of(status="completed", events=(), detectors=None, **more):
    monitor, summary = Monitor(make_detectors() if detectors is None else detectors), Summary()
    for event in events:
        monitor.observe(event)
        summary.add(event)
    return build_report(
        run_id=more.pop("run_id", "r"), status=status, summary=summary, alerts=more.pop("alerts", monitor.alerts),
        dropped_alerts=more.pop("dropped_alerts", 0), coverage=monitor.coverage(), **more,
    )


class TestReport:
    @pytest.mark.parametrize("status", STATUSES)
    @pytest.mark.parametrize("reason", [None, "RuntimeError: out of memory"])
    def test_status(self, status, reason, tmp_path):
        """Status and reason stand in the report, in its file and in its text."""
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors(), trainer="sft")
        recorder.record(Event(1, 0.5, {"loss": 1.0}))
        report = recorder.write_report(status, reason) if status == "running" else recorder.close(status, reason)
        assert json.loads((tmp_path / "r_final_report.json").read_text()) == report
        assert (report["run_id"], report["status"], report["reason"], report["trainer"]) == ("r", status, reason, "sft")
        first = render_text(report).splitlines()[0]
        assert f": {status}" in first
        assert (reason or "steps") in first

    def test_coverage(self):
        """Each detector says whether it fired, was quiet, was still warming up, or never saw its metric."""
        detectors = make_detectors({"kl_divergence": 1.0, "gradient_norm": 1.0})
        report = report_of(
            events=[Event(step, 0.0, {"loss": 0.5, "grad_norm": 9.0}) for step in (1, 2)], detectors=detectors
        )
        states = {row["code"]: row["state"] for row in report["coverage"]}
        assert states["kl_divergence"] == "unseen"
        assert states["gradient_norm"] == "fired"
        assert states["zero_loss"] == "warming"
        assert states["non_finite"] == "quiet"
        rows = {row["code"]: row for row in report["coverage"]}
        assert rows["gradient_norm"]["episodes"] == 1
        assert rows["gradient_norm"]["events_judged"] == 2
        assert rows["kl_divergence"]["events_judged"] == 0
        assert all(row["watches"] for row in rows.values())
        lines = [line for line in render_text(report).splitlines() if line.startswith("Detectors")]
        assert len(lines) == len(set(states.values())) == 4
        assert all(sum(code in line for line in lines) == 1 for code in states)

    @pytest.mark.parametrize("code", [code for code, cls in CLASSES.items() if cls.watches])
    def test_unseen_without_its_metric(self, code):
        """A detector whose metric the trainer never logs is unseen, not quiet."""
        detectors = make_detectors(
            {"kl_divergence": 1.0, "gradient_norm": 1.0, "clip_fraction": 0.5, "memory_usage": 0.5}
        )
        report = report_of(events=[Event(step, 0.0, {"other": 1.0}) for step in range(50)], detectors=detectors)
        assert {row["code"]: row["state"] for row in report["coverage"]}[code] == "unseen"

    def test_health(self):
        """The verdict is the worst severity among the alerts, and says which one; without alerts it says only that."""

        def alert(code, severity, step, resolved):
            return Alert(code, code, severity, step, 0.0, "loss", 1.0, None, f"{code} happened.", "Do.", {}, resolved)

        assert report_of()["health"]["verdict"] == "no alerts"
        alerts = [alert("a", "info", 1, None), alert("b", "warning", 2, 3), alert("c", "warning", 4, None)]
        report = report_of(alerts=alerts, dropped_alerts=2)
        assert report["health"]["verdict"] == "warning"
        assert "c at step 4 (still open): c happened." in report["health"]["why"]
        assert report["alerts"] == {
            "total": 5,
            "open": 2,
            "by_severity": {"info": 1, "warning": 2, "critical": 0},
            "by_code": {"a": 1, "b": 1, "c": 1},
        }
        assert "passed at step 3" in report_of(alerts=alerts[1:2])["health"]["why"]

    @pytest.mark.parametrize("severity", [severity.value for severity in Severity])
    def test_every_severity_is_a_verdict(self, severity):
        """Any severity alone is the verdict."""
        alert = Alert("a", "a", severity, 1, 0.0, "loss", 1.0, None, "m", "a")
        assert report_of(alerts=[alert])["health"]["verdict"] == severity

    def test_resources_are_apart(self):
        """What the run used stands beside what it learnt."""
        report = report_of(events=[Event(1, 0.0, {"loss": 1.0, "memory_bytes": 5.0})])
        assert report["metrics"].keys() == {"loss"}
        assert report["resources"].keys() == {"memory_bytes"}

    def test_valid_json(self, tmp_path):
        """NaN, infinities, lone surrogates and huge integers leave a report that any JSON reader takes."""
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors())
        recorder.record(
            Event(2**62, math.nan, {"a\ud800": math.nan, "b": math.inf, "c": 1e308}, data_slice={"tokens_in": 2**80})
        )
        recorder.skipped["\udfff"] = "no number"
        recorder.close("completed")
        text = (tmp_path / "r_final_report.json").read_text()
        report = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
        assert report["metrics"]["a?"] == {"count": 0, "nonfinite": 1}
        assert report["rldk_failures"] == {}

    def test_failures_are_named(self, tmp_path):
        """What went wrong inside rldk stands in the report."""
        recorder = Recorder("r", RunFiles.of(tmp_path, "r"), make_detectors())
        recorder.guard.call("a place", lambda: 1 / 0)
        assert recorder.close("completed")["rldk_failures"]["a place"]["count"] == 1

    def test_lost_events_are_counted(self, tmp_path):
        """Events and rows that could not be written are counted by destination, and the report is still returned."""
        (tmp_path / "file").touch()
        recorder = Recorder("r", RunFiles.of(tmp_path / "file", "r"), make_detectors())
        for step in range(5):
            recorder.record(Event(step, 0.0, {"loss": 1.0}))
        report = recorder.close("completed")
        assert report["lost"]["events"] == 5
        assert report["lost"]["write_errors"] > 5
        assert report["metrics"]["loss"]["count"] == 5
        assert recorder.guard.failures == {}


HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "carriage\rreturn",
    "\u202eoverride",
    "nul\0",
    "\x9b31m",
    "\u2028",
    "\ud800",
    "\x07",
    "tab\t",
]


class TestText:
    @pytest.mark.parametrize("name", HOSTILE, ids=repr)
    def test_no_control_characters(self, name):
        """Names, messages and reasons that come from a log or a user cannot move the cursor or fake a line."""
        alert = Alert("a", "a", "critical", 1, 0.0, name, 1.0, None, f"{name} is nan.", name)
        events = [Event(step, 0.0, {name: 1.0 * step, f"{name}2": 1.0}) for step in range(3)]
        plain = report_of(
            "failed",
            [Event(step, 0.0, {"x": 1.0 * step, "x2": 1.0}) for step in range(3)],
            alerts=[alert],
            reason="x",
            trainer="x",
            run_id="x",
        )
        text = render_text(report_of("failed", events, alerts=[alert], reason=name, trainer=name, run_id=name))
        assert all(line.isprintable() for line in text.split("\n"))
        assert text.count("\n") == render_text(plain).count("\n")

    def test_metrics_are_shown(self):
        """A metric's first, last, lowest, highest and mean value stand in its line."""
        text = render_text(
            report_of(events=[Event(step, 0.0, {"loss": value}) for step, value in enumerate((2.0, 3.0, 0.5, 2.5))])
        )
        line = next(line for line in text.splitlines() if line.startswith("loss"))
        assert line.split()[1:] == ["2", "2.5", "0.5", "3", "2"]

    def test_many_metrics(self):
        """Of very many metrics a few are shown, and the text says that there are more."""
        names = [*(f"m{index}" for index in range(200)), *METRICS]
        text = render_text(report_of(events=[Event(step, 0.0, dict.fromkeys(names, 1.0)) for step in range(2)]))
        assert len(text.splitlines()) < 30
        assert any(line.startswith("loss ") for line in text.splitlines())
        assert re.search(r"\.\.\. and \d+ more metrics in the report", text)

    def test_never_finite(self):
        """A metric that was never finite, and an empty run, can be rendered."""
        assert render_text(report_of(events=[Event(step, 0.0, {"loss": math.nan}) for step in range(3)]))
        assert render_text(report_of())
