"""Alerts and the run's summary in the tracker that it reports to: trackio, W&B, MLflow, TensorBoard, SwanLab.

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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..event import Alert, Event
from ..text import clean
from ._tracker_senders import FINDERS, KNOWN_AFTERWARDS, LONGEST, Message, Send, summary_of

__all__ = ["CLOSE_SECONDS", "MAX_MESSAGES", "TrackerSink"]

logger = logging.getLogger("rldk")

# A healthy tracker takes a message in milliseconds. One that hangs (trackio without its Space: four minutes) must not
# hold up the end of a run, where a job's grace period may be running.
CLOSE_SECONDS = 5.0
# A message and tracker may each be a mail, a post in a channel or a row of a panel (trackio's shows the last 20), and
# trackio limits nothing by itself. Whoever has not come after 20 does not come after 200.
MAX_MESSAGES = 20
# How many may have gone out for one more to go. Graded, so that what came first never keeps what is worse from coming.
_ROOM = {"info": MAX_MESSAGES // 2, "warning": MAX_MESSAGES, "critical": MAX_MESSAGES + MAX_MESSAGES // 2}


class _Tracker:
    """One tracker: what goes to it, and what became of that."""

    def __init__(self, name: str, writers: Callable[[], Iterable[object]], kept_in: str, asked: bool) -> None:
        self.name = name
        self.error = ""
        self.taken = self.sent = 0
        self.kept_back: Counter[str] = Counter()  # by severity
        self.waiting: deque[Message] = deque()  # for a run that has not begun: the setup is judged before some have
        self._writers = writers
        self._kept_in = kept_in
        self._asked = asked
        self._last: Send | None = None
        self._queue: SimpleQueue[tuple[contextvars.Context, Send, Message] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.began = False
        self._told = 0

    def post(self, message: Message) -> None:
        """Takes a message, if it is not one too many."""
        if self.taken >= _ROOM[message.severity] and not self.error:
            self.kept_back[message.severity] += 1
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
            send = None if source is None else FINDERS[self.name](source)
            if send is not None or self.name not in KNOWN_AFTERWARDS:
                self._last = send
            if self._last is not None and self._thread is None and (self.waiting or not self.began):
                # Before there is anything to send: from Python 3.12 on, none can be started as the interpreter exits.
                thread = threading.Thread(target=self._work, name=f"rldk-{self.name}", daemon=True)
                thread.start()
                self._thread, self.began = thread, True
            while self._last is not None and self.waiting:
                self._queue.put((contextvars.copy_context(), self._last, self.waiting.popleft()))
        except Exception as error:  # noqa: BLE001  # a stray module of that name, or a version that rldk does not know
            if self._asked or self.began:
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
            "rldk: nothing more goes to %s (%s). Training is not affected; all alerts are in %s.",
            self.name, clean(error[:500]), self._kept_in,
        )

    def finish(self, step: int, summary: Message | None) -> None:
        """Says what was held back and how the run ended, and that nothing more comes for now."""
        if self.held_back > self._told and not self.error:
            worst = f", {self.kept_back['critical']} of them critical" if self.kept_back["critical"] else ""
            # The file's name alone: a tracker may be public, and a path names who ran this.
            where = Path(self._kept_in).name
            text = f"{self.held_back} more alerts or changes of alerts were held back{worst}. All are in {where}."
            self.waiting.append(Message("held_back", "info", step, text))
            self.taken += 1
            self._told = self.held_back
        if summary is not None and not self.error:
            self.waiting.append(summary)
            self.taken += 1
        self.pass_on()
        if self._thread is not None:
            self._queue.put(None)
        while self.began and self.waiting:  # the run ended before they could go
            text = self.waiting.popleft().text
            logger.info("rldk: %s has no run any more, and was not told: %s", self.name, text)

    def let_go(self, seconds: float) -> None:
        """Waits for what is under way, at most so long."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive() and not self.error:
            self._fail(f"not done with {self.taken - self.sent} messages within {CLOSE_SECONDS:g} s")
        self._thread = None  # an evaluation after training may begin another

    @property
    def held_back(self) -> int:
        """Messages that were one too many."""
        return self.kept_back.total()

    @property
    def lost(self) -> int:
        """What did not reach a tracker that had a run, or that failed. What is under way is not lost yet."""
        return self.taken - self.sent if self.error or (self.began and self._thread is None) else 0


class TrackerSink:
    """Sends alerts, and how the run ended, to the trackers that the run reports to.

    An alert goes out as it is raised and whenever it gets worse. That it has passed is only added to MLflow's tag, which
    would otherwise go on saying that it had not; a message for it would be noise elsewhere.

    No method raises, and none waits for a tracker, but for `close`. Call them one at a time, from any thread; construct
    where the trackers' runs are current, as in a callback's `on_train_begin`.

    Args:
        names: The trackers, as in `report_to` after transformers has resolved it. Unknown ones are passed over.
        writers: Gives TensorBoard's open writers, objects with `add_text`; asked at each alert.
        kept_in: Where all alerts are, for the messages.
        asked: Whether the run reports to these trackers. If not, they are told if they have a run, and one that cannot be
            asked whether it has is passed over without a word.
    """

    def __init__(
        self,
        names: Iterable[str],
        writers: Callable[[], Iterable[object]] = tuple,
        kept_in: str = "the run's alerts.json",
        *,
        asked: bool = True,
    ) -> None:
        self._step = 0
        self._summary: Message | None = None  # to go out with the next `close`
        self._summarised: Mapping[str, object] = {}
        self._trackers = [_Tracker(name, writers, kept_in, asked) for name in dict.fromkeys(names) if name in FINDERS]
        self.names = [tracker.name for tracker in self._trackers]
        for tracker in self._trackers:
            tracker.pass_on()  # finds the run, so that alerts from another thread have one to go to

    @property
    def lost(self) -> int:
        """Messages that were meant for a tracker and did not reach it."""
        return sum(tracker.lost for tracker in self._trackers)

    def status(self) -> dict[str, dict[str, Any]]:
        """What went to each tracker that had a run: `sent`, `held_back`, `lost`, and the `error` that switched it off."""
        return {
            tracker.name: {
                "sent": tracker.sent, "held_back": tracker.held_back, "lost": tracker.lost, "error": tracker.error or None,
            }
            for tracker in self._trackers if tracker.began or tracker.error
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
        text = clean(f"{since} {alert.step}: {said}")[:LONGEST]
        if alert.resolved_step is not None:
            self._step = alert.resolved_step
            text += f" (passed at step {alert.resolved_step})"
        for tracker in self._trackers:
            if alert.resolved_step is None or tracker.name == "mlflow":
                tracker.post(Message(alert.code, alert.severity, self._step, text))

    def summarise(self, report: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]]) -> None:
        """Takes how the run ended; it goes out with the next `close`, after all alerts.

        An evaluation after training ends the run once more. It is worth a word only if it changed the outcome.

        Args:
            report: The content of final_report.json.
            alerts: The content of alerts.json.
        """
        summary = summary_of(report, alerts)
        outcome = {name: value for name, value in summary.fields.items() if name != "verdict"}
        if outcome != self._summarised:
            self._summary, self._summarised = summary, outcome

    def close(self) -> None:
        """Sends what is left. Waits at most `CLOSE_SECONDS` for all trackers together, and then lets go of them.

        Alerts may still follow, as from an evaluation after training, and another `close` after them.
        """
        summary, self._summary = self._summary, None
        for tracker in self._trackers:
            tracker.finish(self._step, summary)
        deadline = time.monotonic() + CLOSE_SECONDS
        for tracker in self._trackers:
            tracker.let_go(deadline - time.monotonic())
