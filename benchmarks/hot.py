"""One log call in a loop of nothing else: what rldk's own code costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import count as count_from
from itertools import cycle
from pathlib import Path

from rldk.detectors import make_detectors
from rldk.event import Event
from rldk.monitor import Monitor
from rldk.vocabulary import Vocabulary, families

from ._fixtures import Hooks, event_line, floor_1, logs_of_grpo
from ._measure import in_turns
from ._rows import Row

__all__ = ["rows"]


def rows(quick: bool) -> Iterator[Row]:
    """Both callbacks against floor 1, and the detectors alone."""
    from rldk import EventWriterCallback, RLDKCallback

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = folder / "light_events.jsonl"
        light = Hooks(EventWriterCallback(stream), folder, whole_step=False)
        full = Hooks(RLDKCallback(folder / "full"), folder, whole_step=True)
        events = []
        for _ in light.logs:
            light.step()
            events.append(event_line(stream))
        subjects = {
            "floor": floor_1(folder / "floor.jsonl", events), "light": light.step, "full": full.step, "judge": _judging(),
        }
        times = in_turns(subjects, batches=20 if quick else 60, calls=200 if quick else 400)
        light.end()
        full.end()
    for name, subject, must, aim in (
        ("EventWriterCallback.on_log, hot", "light", 5.0, 3.0),
        ("RLDKCallback, all hooks of a step, hot", "full", 15.0, 8.0),
    ):
        measured = f"{times[subject] * 1e6:.1f} us, floor 1 {times['floor'] * 1e6:.1f} us"
        yield Row(name, measured, times[subject] / times["floor"], "x floor 1", must, aim)
    yield Row("all detectors, an event of 25 metrics, hot", "the engine alone", times["judge"] * 1e6, "us", 25.0)


def _judging() -> Callable[[], object]:
    """All detectors over GRPO's logs, as the callback shows them."""
    translate = Vocabulary(families()["grpo"]).translate
    info = {"trainer": "grpo"}
    events = cycle([Event(1, 0.0, translate(logs).metrics, model_info=info) for logs in logs_of_grpo()])
    count = count_from(1)
    monitor = Monitor(make_detectors())

    def call() -> None:
        step = next(count)
        monitor.observe(next(events)._replace(step=step, wall_time=0.1 * step))

    return call
