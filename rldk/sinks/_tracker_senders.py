"""What each tracker is told, and how: its own words for an alert, and for how a run ended.

One function a tracker. It is given the loaded library and finds the run in it, or finds none. Never imports a tracker,
never starts a run, and never decides what is sent: that is `trackers`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..report._verdict import judge
from ..text import clean

__all__ = ["FINDERS", "KNOWN_AFTERWARDS", "LONGEST", "Message", "Send", "summary_of"]

LONGEST = 4_000  # characters of text; MLflow 3.17 cuts tags at 8000, and what ends the tag must survive

_LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}  # as both AlertLevel name their members


class Message(NamedTuple):
    """What is said: of an alert, of what was held back, or of the run as a whole.

    Attributes:
        code: The alert's code; `held_back`; `summary`.
        severity: `info`, `warning` or `critical`.
        step: The step that it is about.
        text: One line.
        fields: The summary by name, for trackers that show values in columns.
    """

    code: str
    severity: str
    step: int
    text: str
    fields: Mapping[str, str | int] = {}

    @property
    def title(self) -> str:
        """For an alert of a tracker."""
        return f"rldk: {self.code}"[:63]  # wandb takes fewer than 64 characters

    @property
    def marked(self) -> str:
        """The text in Markdown, for where there are no levels."""
        return self.text if self.fields else f"**{self.severity}** {self.text}"


def summary_of(report: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]]) -> Message:
    """What there is to say of a run that is over, from the content of final_report.json and of alerts.json."""
    verdict = judge(report, alerts)
    by_severity = report["alerts"]["by_severity"]
    counts = {name: by_severity[name] for name in ("critical", "warning", "info")}
    # The folder's name and not the path: a tracker may be public, and a path names who ran this.
    page, alerts_file = (Path(report["files"][name]) for name in ("page", "alerts"))
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    text = f"{verdict.sentence} {verdict.reasons[0].text} Alerts: {said}. Files: {_place(page)}, {alerts_file.name}."
    fields: dict[str, str | int] = {
        "verdict": clean(verdict.sentence),
        "status": clean(str(report["status"])),
        "report": clean(_place(page)),
        **{f"alerts_{name}": count for name, count in counts.items()},
    }
    return Message("summary", "info", report["totals"]["steps"], clean(text)[:LONGEST], fields)


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


Send = Callable[[Message], None]


def _trackio(library: Any) -> Send | None:
    run = library.context_vars.current_run.get()
    if run is None or getattr(run, "deaf", False):  # the guarded tracker's, where trackio has failed
        return None
    # The run's alert, and not trackio.alert: it takes the step. trackio's own count is of log calls, not of steps.
    return lambda message: run.alert(
        title=message.title, text=message.text, level=library.AlertLevel[_LEVELS[message.severity]], step=message.step
    )


def _wandb(library: Any) -> Send | None:
    run = library.run
    if run is None:
        return None

    def send(message: Message) -> None:
        if message.fields:  # columns of the table of runs, and no mail that a run has ended well
            run.summary.update({f"rldk/{name}": value for name, value in message.fields.items()})
            return
        # wandb drops a title that comes again within a minute, which would hide that an alert got worse.
        level = library.AlertLevel[_LEVELS[message.severity]]
        run.alert(title=message.title, text=message.text, level=level, wait_duration=1)

    return send


def _mlflow(library: Any) -> Send | None:
    run = library.active_run()
    if run is None:
        return None
    run_id, uri = run.info.run_id, library.get_tracking_uri()

    def send(message: Message) -> None:
        client = library.MlflowClient(tracking_uri=uri)  # by the sending thread: it may have to reach a server for it
        if not message.fields:
            client.set_tag(run_id, f"rldk.{message.code}", f"{message.severity}: {message.text}")
            return
        entities, now, metrics, tags = library.entities, int(time.time() * 1000), [], []
        for name, value in message.fields.items():
            if isinstance(value, int):
                metrics.append(entities.Metric(f"rldk.{name}", value, now, message.step))
            else:
                tags.append(entities.RunTag(f"rldk.{name}", value))
        client.log_batch(run_id, metrics=metrics, tags=tags)  # one request for all

    return send


def _tensorboard(writers: Callable[[], Iterable[object]]) -> Send | None:
    found: list[Any] = list(writers())

    def send(message: Message) -> None:
        still_open = [id(writer) for writer in writers()]
        for writer in found:
            # A tag an alert: the page shows a sample of ten texts of each tag.
            writer.add_text(f"rldk/{message.code}", message.marked, message.step)
            # A writer that was closed, as the trainer does before the callbacks behind its own, opens another file in
            # its folder. An open one would be on disk two minutes later, or at the trainer's next flush.
            done = getattr(writer, "flush" if id(writer) in still_open else "close", None)
            if done is not None:
                done()

    return send if found else None


def _swanlab(library: Any) -> Send | None:
    try:
        run = library.get_run()
    except RuntimeError:  # what 0.10 answers where older versions answer None
        return None
    if run is None:
        return None

    def send(message: Message) -> None:
        key, step = f"rldk/{message.code}", max(0, message.step)
        used = _swanlab_steps.setdefault((run.id, key), set())
        while step in used:  # of two values of a key at one step swanlab drops the second
            step += 1
        used.add(step)
        run.log({key: library.Text(message.marked)}, step=step)

    return send


# By run and key, bounded by the number of messages. Here, since every look for the run makes another `send`.
_swanlab_steps: dict[tuple[str, str], set[int]] = {}

FINDERS: dict[str, Callable[[Any], Send | None]] = {
    "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow, "tensorboard": _tensorboard, "swanlab": _swanlab,
}
# These may still be told of a run that is no longer to be found. trackio and MLflow know their current run only in the
# context or thread that began it, but rldk also records from a thread of its own; and the trainer ends the runs of these
# three before the callbacks behind its own hear that training has ended. All three take messages for a run that has ended.
KNOWN_AFTERWARDS = ("trackio", "mlflow", "tensorboard")
