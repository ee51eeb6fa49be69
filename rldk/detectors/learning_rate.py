"""A learning rate of zero where it should not be, and a warm-up that outlasts the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

# Relative to the highest so far, below this a learning rate is zero.
_NEGLIGIBLE = 1e-6
# A fall to zero from below this share of the highest is the tail of a schedule.
_TAIL = 0.02
# Share of the run from which on a zero is the schedule's end.
_END = 0.95


class LearningRate(Detector):
    """The learning rate is zero away from the schedule's legitimate zeros, or its warm-up is longer than the run.

    What it sees: `lr`; from the run's set-up the steps of warm-up and of the run, as `warmup_frac` or in the arguments.
    Why it matters: at a learning rate of zero nothing is learnt, and every metric still looks alive. A warm-up that the run
    never leaves trains at a fraction of the rate that was asked for.
    When it fires: critical when it is zero for `patience` logs, from the start or after a sudden fall. After a decay that
    ran smoothly into zero it is a warning, once the zeros have lasted for `patience` logs and the run is known to be far from
    its end, or where that is not known, for 20 logs and a tenth of the logs so far. A warning from the start when the warm-up is
    as long as the run or longer.
    What to do: check `learning_rate`, `lr_scheduler_type`, `warmup_steps` and `max_steps`.
    False alarms: the first log under a warm-up reads 0; linear and cosine schedules end near or at 0; restarts touch 0 for a log;
    under fp16 the first steps are skipped while the gradient scaler overflows (`grad_norm` not finite), and the rate
    stays at 0 so long: such logs do not count.
    Sources: gpt-neox issue 1373; trainproof's TP-ZERO-LR; measured here: a warm-up of ten times the run peaks at a tenth
    of the rate and no live metric shows it.

    Args:
        patience: Logs in a row with a learning rate of zero.
    """

    code = "learning_rate"
    title = "Learning rate of zero"
    watches = ("lr", "warmup_frac")
    needs = "lr in the training log"
    advice = (
        "Check learning_rate, lr_scheduler_type, warmup_steps (or warmup_ratio) and max_steps, and that nothing else steps "
        "or replaces the scheduler."
    )
    phases = frozenset({"setup", "train"})

    def __init__(self, *, patience: int = 3) -> None:
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self._warmup = 0.0  # length of the warm-up in lengths of the run
        self._max_steps = 0.0
        self._epochs = 0.0
        self._highest = 0.0
        self._last = 0.0
        self._fall = 0.0  # from the log before the last
        self._logs = 0
        self._zeros = 0
        self._smooth = False

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Notes the length of the run and of the warm-up."""
        steps, warmup = _positive(arguments.get("max_steps")), _positive(arguments.get("warmup_steps"))
        self._max_steps = steps
        self._epochs = 0.0 if steps else _positive(arguments.get("num_train_epochs"))
        schedule = str(getattr(arguments.get("lr_scheduler_type"), "value", arguments.get("lr_scheduler_type"))).lower()
        # A constant schedule has no warm-up, whatever the argument says; below 1 it is a share in transformers 5.
        if schedule != "constant" and steps and warmup >= 1.0:
            self._warmup = warmup / steps

    def judge(self, event: Event) -> Answer:
        """Follows the schedule."""
        metrics = event.metrics
        warmup = metrics.get("warmup_frac")
        if warmup is not None and 0.0 < warmup < 1e12:
            self._warmup = warmup
        lr = metrics.get("lr")
        if lr is None:
            if warmup is None:
                return ABSENT
            return self._too_long(None) if self._warmup >= 1.0 else FINE
        if not 0.0 <= lr < 1e30:
            return WARMING
        self._logs += 1
        if lr > self._highest * _NEGLIGIBLE:
            self._zeros = 0
            self._fall = self._last - lr
            self._last = lr
            if lr > self._highest:
                self._highest = lr
            return FINE if self._warmup < 1.0 else self._too_long(lr)
        if self._highest == 0.0:
            gradient = metrics.get("grad_norm")
            if gradient is not None and not abs(gradient) < 1e300:
                return WARMING  # the step was skipped, and the scheduler with it
        if self._zeros == 0:
            # Where the last two logs point to: a line or a parabola that arrives at zero.
            self._smooth = self._last <= max(1.5 * self._fall, _TAIL * self._highest)
        self._zeros += 1
        if self._zeros >= self.patience and (answer := self._zero(event, lr)):
            return answer
        return FINE if self._warmup < 1.0 else self._too_long(lr)

    def _zero(self, event: Event, lr: float) -> Finding | None:
        severity = Severity.CRITICAL
        if self._highest == 0.0:
            how = "it has been zero from the start"
        elif not self._smooth:
            how = f"it fell at once from {number(self._last)}"
        else:
            done = self._done(event)
            if done >= _END or (done == 0.0 and self._zeros < max(20.0, self.patience, 0.1 * self._logs)):
                return None
            how = f"the schedule has ended{f' after {100 * done:.0f} % of the run' if done else ''}, and training goes on"
            severity = Severity.WARNING
        message = f"lr is {number(lr)} for {self._zeros} logs: {how}. Nothing is being learnt."
        return Finding("lr", lr, None, message, severity, {"highest": self._highest, "last_above_zero": self._last})

    def _done(self, event: Event) -> float:
        """The share of the run that is over; 0 if not known."""
        if self._max_steps:
            return event.step / self._max_steps
        epoch = event.metrics.get("epoch")
        return epoch / self._epochs if self._epochs and epoch is not None and 0.0 <= epoch < 1e9 else 0.0

    def _too_long(self, lr: float | None) -> Finding:
        message = (
            f"The warm-up of lr is {number(self._warmup)} times as long as the run, so lr ends at "
            f"{100 / self._warmup:.0f} % of learning_rate and never decays."
        )
        return Finding("lr", lr, None, message, Severity.WARNING, {"warmup_over_run": self._warmup})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Zero from the start, dead in mid-run, a long warm-up; schedules that end at zero."""
        yield Example("zero from the start", [{"lr": 0.0}] * 10, [3])
        level = [{"lr": 1e-4}] * 20
        yield Example("dies in mid-run", [*level, *[{"lr": 0.0}] * 10], [23])
        linear = [{"lr": 1e-4 * (1 - step / 100)} for step in range(60)]
        yield Example("dies during a decay", [*linear, *[{"lr": 0.0}] * 10], [63])
        ended = [{"lr": 1e-4 * (1 - step / 100)} for step in range(100)]
        yield Example("goes on after the schedule", [*ended, *[{"lr": 0.0}] * 40], [120])
        yield Example("a warm-up as long as ten runs", [{"lr": 1e-6, "warmup_frac": 10.0}, *level], [1])
        warm = [{"lr": 1e-5 * step} for step in range(10)]
        yield Example("warm-up and linear decay", [*warm, *ended, *[{"lr": 0.0}] * 5], [])
        coarse = [{"lr": 1e-4 * (1 - step / 10)} for step in range(10)]
        yield Example("a coarse log of a linear decay", [*coarse, *[{"lr": 0.0}] * 5], [])
        cosine = [{"lr": 1e-4 * (1 - step / 50) ** 2} for step in range(50)] + [{"lr": 0.0}]
        yield Example("cosine with restarts", cosine * 4, [])
        overflow = [{"lr": 0.0, "grad_norm": float("inf")}] * 5
        yield Example("skipped first steps under fp16", [*overflow, {"lr": 0.0, "grad_norm": 1.0}, *level], [])


def _positive(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15
    return float(value) if good else 0.0
