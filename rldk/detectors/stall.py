"""No progress for far longer than usual."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_CRITICAL_S = 1800.0
_FACTOR = 10.0
_LEAST_GAPS = 5


class Stall(Detector):
    """Training stands still, or stood still between two logs.

    What it sees: `wall_time` and `step` of training events, and `silence_s`, which the recorder writes while no sign of
    life comes from the trainer.
    Why it matters: a hung collective, a dead data loader or a full disk burns a whole allocation without an error.
    When it fires: the silence, or the time between two logs, is longer than 10 times the usual (by number of steps) and
    than `floor` seconds (300): warning; beyond 1800 s critical. While the usual is not known yet, a silence of 1800 s.
    What to do: look where the ranks hang: `py-spy dump`, `TORCH_NCCL_TRACE_BUFFER_SIZE` for collectives; then data
    loading (`dataloader_num_workers`), the disk, a reward function that calls a server without a timeout.
    False alarms: an evaluation, a checkpoint or a resume between two logs excuses their gap, since all may take long; a
    silence inside them is told as it is. Steps that are long by nature are the usual themselves.
    Sources: Amazon SageMaker Debugger's StalledTrainingRule (1800 s); the factor of 10 and the floor are chosen here.

    Args:
        floor: Shortest silence in seconds that is a stall.
    """

    code = "stall"
    title = "Training stands still"
    watches = ("silence_s",)
    needs = "wall_time of at least six training logs, or a recorder that watches for silence"
    advice = (
        "See where the processes hang (py-spy dump; NCCL's flight recorder for collectives), then look at data loading "
        "(dataloader_num_workers), the disk, and reward functions that wait for a server."
    )
    phases = frozenset({"setup", "train", "eval", "checkpoint"})

    def __init__(self, *, floor: float = 300.0) -> None:
        self.floor = number_parameter(self.code, "floor", floor, low=0.0)
        self._gaps = 0
        self._usual = 0.0  # seconds a step: a mean that no single gap moves far
        self._step: int | None = None
        self._time = 0.0
        self._excused = False
        self._told = False

    def judge(self, event: Event) -> Answer:
        """Holds the time since the training event before against the usual one."""
        if event.phase != "train":
            self._excused = True
            return ABSENT
        silence = event.metrics.get("silence_s")
        if silence is not None:
            return self._silent(silence)
        step, now = event.step, event.wall_time
        before, then = self._step, self._time
        if now - now != 0.0:
            return ABSENT  # a converted log without times
        self._step, self._time = step, now
        excused, self._excused = self._excused, False
        told, self._told = self._told, False
        if told:
            return FINE  # this log ends the silence that was told of; its gap is that silence
        if before is None or step <= before or now <= then:
            return ABSENT  # no gap to judge
        if excused:
            return FINE
        steps, usual = step - before, self._usual
        gap = now - then
        self._gaps = gaps = self._gaps + 1
        a_step = gap / steps
        if gaps > _LEAST_GAPS:
            if a_step > 3.0 * usual:
                a_step = 3.0 * usual  # a slower pace is learnt in time, one gap is not
            self._usual = usual + 0.05 * (a_step - usual)
            if gap > self.floor and gap > _FACTOR * usual * steps:
                return self._found(gap, max(_FACTOR * usual * steps, self.floor), "passed between two logs")
            return FINE
        self._usual = usual + (a_step - usual) / gaps
        return WARMING

    def _silent(self, silence: float) -> Answer:
        if silence != silence:
            return WARMING
        known = self._gaps >= _LEAST_GAPS
        limit = max(_FACTOR * self._usual, self.floor) if known else max(_CRITICAL_S, self.floor)
        if silence <= limit:
            return WARMING
        self._told = True
        return self._found(silence, limit, "have passed without a sign of life")

    def _found(self, seconds: float, limit: float, what: str) -> Finding:
        message = f"silence_s: {number(round(seconds, 1))} s {what}"
        message += f", where a step takes {number(self._usual)} s." if self._gaps else "."
        evidence = {"usual_step_s": self._usual} if self._gaps else {}
        severity = Severity.CRITICAL if seconds > _CRITICAL_S else Severity.WARNING
        return Finding("silence_s", seconds, limit, message, severity, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A long silence, told twice; and one that is short."""
        log = {"loss": 2.0}
        yield Example("hung", [*[log] * 9, {"silence_s": 2000.0}, {"silence_s": 4000.0}], [10])
        yield Example("a pause that ends", [*[log] * 9, {"silence_s": 200.0}, *[log] * 9], [])
