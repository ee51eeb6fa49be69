"""Alerts in the tracker that the run reports to: trackio, Weights & Biases, MLflow, TensorBoard.

A tracker is a service of somebody else's: it may be missing, broken, slow, or hang for minutes. So it is only spoken to
where its library is loaded and has a run going, each by a thread of its own, and never twice once it has failed.
Nothing is imported or started for the purpose. All alerts are in the run's own files, whatever becomes of a tracker.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, NamedTuple

from ..event import Alert, Event
from ..text import clean

__all__ = ["CLOSE_SECONDS", "MAX_MESSAGES", "TrackerSink"]

logger = logging.getLogger("rldk")

# A healthy tracker takes a message in milliseconds. One that hangs (trackio without its Space: four minutes) must not
# hold up the end of a run, where a job's grace period may be running.
CLOSE_SECONDS = 5.0
# A message and tracker may each be a mail, a post in a channel or a row of a panel (trackio's shows the last 20), and
# trackio limits nothing by itself. Whoever has not come after 20 does not come after 200.
MAX_MESSAGES = 20

_LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}  # as both AlertLevel name their members
_LONGEST = 4_000  # characters of text; MLflow 3.17 cuts tags at 8000, and what ends the tag must survive


class _Message(NamedTuple):
    code: str
    severity: str
    step: int
    text: str

    @property
    def title(self) -> str:
        return f"rldk: {self.code}"[:63]  # wandb takes fewer than 64 characters


_Send = Callable[[_Message], None]


def _trackio(library: Any) -> _Send | None:
    run = library.context_vars.current_run.get()
    if run is None:
        return None
    # The run's alert, and not trackio.alert: it takes the step. trackio's own count is of log calls, not of steps.
    return lambda message: run.alert(
        title=message.title, text=message.text, level=library.AlertLevel[_LEVELS[message.severity]], step=message.step
    )


def _wandb(library: Any) -> _Send | None:
    run = library.run
    if run is None:
        return None
    # wandb drops a title that comes again within a minute, which would hide that an alert got worse.
    return lambda message: run.alert(
        title=message.title, text=message.text, level=library.AlertLevel[_LEVELS[message.severity]], wait_duration=1
    )


def _mlflow(library: Any) -> _Send | None:
    run = library.active_run()
    if run is None:
        return None
    run_id, uri = run.info.run_id, library.get_tracking_uri()
    # The client is made by the sending thread: it may have to reach a server for it.
    return lambda message: library.MlflowClient(tracking_uri=uri).set_tag(
        run_id, f"rldk.{message.code}", f"{message.severity}: {message.text}"
    )


def _tensorboard(writers: Callable[[], Iterable[object]]) -> _Send | None:
    found: list[Any] = list(writers())

    def send(message: _Message) -> None:
        for writer in found:
            # A tag an alert: the page shows a sample of ten texts of each tag.
            writer.add_text(f"rldk/{message.code}", f"**{message.severity}** {message.text}", message.step)
            if hasattr(writer, "flush"):
                writer.flush()  # else it is on disk two minutes later, or at the trainer's next flush

    return send if found else None


_FINDERS: dict[str, Callable[[Any], _Send | None]] = {
    "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow, "tensorboard": _tensorboard,
}
# These know their current run only in the context or thread that began it, but rldk also records from a thread of its
# own, and closes after the trackers' callbacks. Both take messages for a run that has just ended.
_RUN_IS_LOCAL = ("trackio", "mlflow")


class _Tracker:
    """One tracker: what goes to it, and what became of that."""

    def __init__(self, name: str, writers: Callable[[], Iterable[object]], kept_in: str) -> None:
        self.name = name
        self.error = ""
        self.taken = self.sent = self.held_back = 0
        self.waiting: deque[_Message] = deque()  # for a run that has not begun: the setup is judged before some have
        self._writers = writers
        self._kept_in = kept_in
        self._last: _Send | None = None
        self._queue: SimpleQueue[tuple[contextvars.Context, _Send, _Message] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._began = False
        self._told = 0

    def post(self, message: _Message) -> None:
        """Takes a message, if it is not one too many."""
        if self.taken >= MAX_MESSAGES and not self.error:
            self.held_back += 1
            return
        self.taken += 1
        if not self.error:
            self.waiting.append(message)
            self.pass_on()

    def pass_on(self) -> None:
        """Gives the thread what is waiting, if there is a run to send it to."""
        if self.error:
            return
        try:
            # Not imported for the purpose. The entry may also be None: that is how an import is blocked.
            source = self._writers if self.name == "tensorboard" else sys.modules.get(self.name)
            send = None if source is None else _FINDERS[self.name](source)
            if send is not None or self.name not in _RUN_IS_LOCAL:
                self._last = send
            while self._last is not None and self.waiting:
                self._queue.put((contextvars.copy_context(), self._last, self.waiting.popleft()))
                self._began = True
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name=f"rldk-{self.name}", daemon=True)
                    thread.start()
                    self._thread = thread
        except Exception as error:  # noqa: BLE001  # a stray module of that name, or a version that rldk does not know
            self._fail(f"{type(error).__name__}: {error}")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            context, send, message = item
            if self.error:
                continue
            try:
                context.run(send, message)
                self.sent += 1
            except BaseException as error:  # noqa: BLE001  # whatever a tracker raises, SystemExit too, ends only itself
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, error: str) -> None:
        """Switches the tracker off, with the one warning."""
        self.error = error
        logger.warning(
            "rldk: no more alerts go to %s (%s). Training is not affected; all alerts are in %s.",
            self.name, clean(error[:500]), self._kept_in,
        )

    def finish(self, step: int) -> None:
        """Says what was held back, and that nothing more comes for now."""
        if self.held_back > self._told and not self.error:
            text = f"{self.held_back} more alerts or changes of alerts came after the first {MAX_MESSAGES}."
            self.waiting.append(_Message("held_back", "info", step, f"{text} All are in {self._kept_in}."))
            self.taken += 1
            self._told = self.held_back
        self.pass_on()
        if self._thread is not None:
            self._queue.put(None)
        while self._began and self.waiting:  # the run ended before they, or the count of what was held back, could go
            text = self.waiting.popleft().text
            logger.info("rldk: %s has no run any more, and was not told: %s", self.name, text)

    def let_go(self, seconds: float) -> None:
        """Waits for what is under way, at most so long."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive() and not self.error:
            self._fail(f"not done with {self.taken - self.sent} alerts within {CLOSE_SECONDS:g} s")
        self._thread = None  # an evaluation after training may begin another

    @property
    def lost(self) -> int:
        """What did not reach a tracker that had a run, or that failed. What is under way is not lost yet."""
        return self.taken - self.sent if self.error or (self._began and self._thread is None) else 0


class TrackerSink:
    """Sends alerts to the trackers that the run reports to.

    An alert goes out as it is raised and whenever it gets worse. That it has passed is only added to MLflow's tag, which
    would otherwise go on saying that it had not; a message for it would be noise elsewhere.

    No method raises, and none waits for a tracker, but for `close`. Call them one at a time, from any thread; construct
    where the trackers' runs are current, as in a callback's `on_train_begin`.

    Args:
        names: The trackers, as in `report_to` after transformers has resolved it. Unknown ones are passed over.
        writers: Gives TensorBoard's open writers, objects with `add_text`; asked at each alert.
        kept_in: Where all alerts are, for the messages.
    """

    def __init__(
        self,
        names: Iterable[str],
        writers: Callable[[], Iterable[object]] = tuple,
        kept_in: str = "the run's alerts.json",
    ) -> None:
        self._step = 0
        self._trackers = [_Tracker(name, writers, kept_in) for name in dict.fromkeys(names) if name in _FINDERS]
        self.names = [tracker.name for tracker in self._trackers]
        for tracker in self._trackers:
            tracker.pass_on()  # finds the run, so that alerts from another thread have one to go to

    @property
    def lost(self) -> int:
        """Messages that were meant for a tracker and did not reach it."""
        return sum(tracker.lost for tracker in self._trackers)

    def status(self) -> dict[str, dict[str, Any]]:
        """What went to each tracker, for the report: `sent`, `held_back`, `lost`, and the `error` that switched it off."""
        return {
            tracker.name: {
                "sent": tracker.sent, "held_back": tracker.held_back, "lost": tracker.lost, "error": tracker.error or None,
            }
            for tracker in self._trackers
        }

    def write(self, event: Event) -> None:
        """Nothing of the event; but alerts that came before a tracker's run had begun go out now."""
        for tracker in self._trackers:
            if tracker.waiting:
                tracker.pass_on()

    def alert(self, alert: Alert) -> None:
        """Takes one alert that was raised, got worse or has resolved."""
        self._step = alert.evidence.get("escalated_at", alert.step)
        since = "Since step" if self._step != alert.step else "Step"
        said = " ".join(filter(None, (alert.message, alert.advice, alert.docs)))
        text = clean(f"{since} {alert.step}: {said}")[:_LONGEST]
        if alert.resolved_step is not None:
            self._step = alert.resolved_step
            text += f" (passed at step {alert.resolved_step})"
        for tracker in self._trackers:
            if alert.resolved_step is None or tracker.name == "mlflow":
                tracker.post(_Message(alert.code, alert.severity, self._step, text))

    def close(self) -> None:
        """Sends what is left. Waits at most `CLOSE_SECONDS` for all trackers together, and then lets go of them.

        Alerts may still follow, as from an evaluation after training, and another `close` after them.
        """
        for tracker in self._trackers:
            tracker.finish(self._step)
        deadline = time.monotonic() + CLOSE_SECONDS
        for tracker in self._trackers:
            tracker.let_go(deadline - time.monotonic())
