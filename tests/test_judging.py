"""Judged in blocks and by two processes: the same as event by event."""

from __future__ import annotations

import math
import random

import pytest

import rldk._judging as judging
from benchmarks.detection.catalogue import catalogue
from benchmarks.detection.store import events as events_of_recording
from benchmarks.detection.store import path_of, read
from rldk.detectors import FINE, Detector, make_detectors
from rldk.event import Event, Severity, encode
from rldk.monitor import MAX_ALERTS, Monitor
from rldk.rebuild import rebuild_run
from rldk.recorder import Recorder
from rldk.runfiles import RunFiles
from rldk.timeline import Resumes

KNOWN = catalogue()
INFO = {"run_id": "r", "trainer": "grpo"}


def outcome(monitor):
    return repr((monitor.alerts, monitor.revision, monitor.dropped_alerts, monitor.coverage(), monitor.guard.failures))


def by_event(events, make=make_detectors):
    monitor = Monitor(make())
    return [alert for event in events for alert in monitor.observe(event)], outcome(monitor)


def in_blocks(events, size, make=make_detectors, elsewhere=()):
    monitor = Monitor(make(), elsewhere=elsewhere)
    changed = []
    for at in range(0, len(events), size):
        changed += monitor.observe_block(events[at : at + size])
    return changed, monitor


def by_two(events, size, make=make_detectors):
    """As two processes do, in one."""
    numbers = judging._apart(len(make()))
    _, first = in_blocks(events, size, make, numbers)
    _, second = in_blocks(events, size, make, frozenset(range(len(make()))) - numbers)
    first.guard.failures.update(second.guard.failures)
    first.join(second.found())
    return outcome(first)


def trouble(count=2500, seed=0):
    """Events of several shapes whose metrics go wrong again and again, with set-ups in the middle and evaluations between."""
    rng = random.Random(seed)
    for step in range(1, count + 1):
        metrics = {
            "loss": rng.lognormvariate(0, 0.2), "grad_norm": rng.lognormvariate(0, 0.3), "reward_mean": rng.gauss(0.5, 0.1),
            "kl_mean": abs(rng.gauss(0.05, 0.01)), "entropy_mean": 2.0, "length_mean": 100.0 + rng.random(), "lr": 1e-6,
        }
        if step % 97 in (0, 1, 2):
            metrics["grad_norm"] = 1e4 if step % 2 else math.nan
        if step in (255, 256, 257, 512, 513, 768):
            metrics["loss"] = math.nan
        if 600 < step < 900:
            metrics["kl_mean"], metrics["reward_mean"] = 40.0, -2.0
        if 1500 < step < 1700:
            metrics["entropy_mean"] = 0.01
        if step % 50 == 0:
            yield Event(step, 0.5 * step, {"eval_loss": rng.random()}, "eval", model_info=INFO)
        if step % 7 == 0:
            metrics = {"step_time": 1.0, **metrics}
        info = INFO
        if step in (1, 700, 1024):
            facts = {"shared_reference": 1, "loss": math.nan} if step == 700 else {}
            setup = {"step": step, "wall_time": 0.0, "trainer": "grpo", "arguments": {"beta": 0.1, "max_steps": count}, "facts": facts}
            info = {**INFO, "setup": setup}
        yield Event(step, 0.5 * step, metrics, model_info=info)


class Brittle(Detector):
    """Fails at a step, or when it is configured for the second time."""

    code, title = "brittle", "Brittle"

    def __init__(self, at=0, configured=0):
        self.at, self.configured = at, configured

    def judge(self, event):
        if event.step == self.at:
            raise ValueError(f"at {event.step}")
        return FINE

    def configure(self, arguments):
        self.configured -= 1
        if not self.configured:
            raise ValueError("configured")


class Restless(Detector):
    """Finds something at every other event, and never the same episode twice."""

    code, title, cooldown = "restless", "Restless", 0

    def judge(self, event):
        from rldk.detectors import Finding

        return Finding("loss", 1.0, None, f"at {event.step}", Severity.INFO) if event.step % 2 else FINE


def brittle():
    detectors = make_detectors()
    return [Brittle(at=300), *detectors[:9], Brittle(configured=2), *detectors[9:], Brittle(at=300), Restless(), Restless()]


@pytest.mark.parametrize("size", [1, 100, 256, 5000])
@pytest.mark.parametrize("make", [make_detectors, brittle])
def test_blocks_and_halves(size, make):
    """Shapes, set-ups, failing detectors, more alerts than are kept, alerts at the edges of blocks."""
    events = list(trouble())
    changed, whole = by_event(events, make)
    again, monitor = in_blocks(events, size, make)
    assert len(changed) > 20 and repr(again) == repr(changed)
    assert outcome(monitor) == whole
    assert list(monitor.guard.failures) == list(in_blocks(events, 1, make)[1].guard.failures)
    assert by_two(events, size, make).partition("'brittle'")[0] == whole.partition("'brittle'")[0]
    if make is brittle:
        assert monitor.dropped_alerts > 0 and len(monitor.alerts) == MAX_ALERTS
        assert len({row["state"] for row in monitor.coverage() if row["code"] == "brittle"}) == 1


def test_recorded_streams():
    """Each recorded stream of the benchmark, in blocks and by two."""
    for name, facts in KNOWN.items():
        for recording in list(read(path_of(name)))[::4]:
            events = list(events_of_recording(recording))

            def make(thresholds=facts.thresholds):
                return make_detectors(thresholds)

            changed, whole = by_event(events, make)
            again, monitor = in_blocks(events, 64, make)
            assert repr(again) == repr(changed) and outcome(monitor) == whole == by_two(events, 64, make)


class TestOfFiles:
    """`rebuild_run` against a recorder that takes event by event."""

    @pytest.fixture
    def stream(self, tmp_path):
        events = list(trouble())
        mark = Event(1800, 901.0, {}, notes=("resumed from step 1800",), model_info=INFO)
        lines = [encode(event) for event in [*events[:2000], mark, *events[1830:]]]
        lines.insert(700, b"garbage\n")
        lines.insert(900, encode(Event(5, 0.1, {"loss": math.nan}, model_info={"run_id": "another"})))
        (tmp_path / "r_events.jsonl").write_bytes(b"".join(lines))
        return tmp_path / "r_events.jsonl"

    @pytest.fixture
    def expected(self, stream, tmp_path):
        from rldk.adapters.rldk_stream import RldkStream

        log = RldkStream(stream)
        later = Resumes(log.survey().resumes)
        files = RunFiles.of(tmp_path / "one", "r", stream)
        recorder = Recorder("r", files, make_detectors(), jsonl_interval=0)
        for position, event in log.numbered():
            if event.run_id == "r" and later.keep(position, "r", event.step):
                recorder.record(event._replace(notes=()))
        recorder.trainer = "grpo"
        recorder.extra["skipped_lines"] = 1
        return self.said(recorder.close("unknown", "the log does not say how the run ended"), files)

    @staticmethod
    def said(report, files):
        plain = {key: value for key, value in report.items() if key not in ("began", "updated", "files")}
        assert report["alerts"]
        return plain, files.alerts.read_bytes(), files.metrics.read_bytes()

    @pytest.mark.parametrize("way", ["one", "two", "killed", "no process"])
    def test_is_the_same(self, stream, expected, tmp_path, monkeypatch, way):
        if way != "one":
            monkeypatch.setattr(judging, "SECOND_AT", 1)
            monkeypatch.setattr(judging, "_processors", lambda: 2)
        if way == "killed":
            monkeypatch.setattr(judging, "_CHILD", "import sys; sys.exit(1)")
        if way == "no process":
            monkeypatch.setattr(judging.sys, "executable", str(tmp_path / "nothing"))
        rebuilt = rebuild_run(stream, run_id="r", output_dir=tmp_path / "two")
        assert self.said(rebuilt, RunFiles.of(tmp_path / "two", "r", stream)) == expected

    def test_the_second_process_is_used(self, stream, tmp_path, monkeypatch):
        """The tests above prove nothing if it always fails."""
        monkeypatch.setattr(judging, "SECOND_AT", 1)
        monkeypatch.setattr(judging, "_processors", lambda: 2)
        log = judging.RldkStream(stream)
        monkeypatch.setattr(judging, "_judged", None)
        with judging.Second(log, "r", log.survey(), {"grad_norm": 5.0}) as second:
            *_, last = second.found()
        assert last["alerts"] and last["failed"] == {}
