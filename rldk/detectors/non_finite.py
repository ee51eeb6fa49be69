"""NaN and infinity in any metric."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..metrics import lookup
from ._base import FINE, Answer, Detector, Example, Finding


class NonFinite(Detector):
    """A metric is NaN or infinite.

    What it sees: every metric of training, evaluation and checkpoint events, and the count of non-finite weights in a
    checkpoint. `loss` alone would not do: with `logging_nan_inf_filter=True`, the default, transformers logs a NaN loss
    as exactly 0.0, so `grad_norm` and the trainer's own metrics give it away.
    Why it matters: from the first NaN in the weights on, every further step is wasted.
    When it fires: the first NaN or infinity. Critical for a metric that rldk knows, a warning for a custom one.
    What to do: stop and go back to the last clean checkpoint; bf16 instead of fp16; lower `learning_rate`; look at the
    batch; set `logging_nan_inf_filter=False` to see the loss itself.
    False alarms: averages that are NaN by construction in healthy runs are named in the table of metrics
    (`nan_is_normal`) and left out: one reward function's mean where it judged no sample, `ratio_var` with one batch.
    Under fp16 the gradient scaler overflows on its first steps: `grad_norm` is then infinite once or twice.
    Sources: transformers issue 13619, TRL issue 6702; measured on real trainers: a NaN weight
    in SFT gives loss 0.0, grad_norm NaN, entropy NaN one log later.
    """

    code = "non_finite"
    title = "NaN or infinity"
    advice = (
        "Stop and resume from the last clean checkpoint; use bf16 rather than fp16, lower learning_rate, look at this "
        "step's batch. Set logging_nan_inf_filter=False to see the loss itself."
    )
    phases = frozenset({"train", "eval", "checkpoint"})
    weights_are_sound = False

    def __init__(self) -> None:
        self._bad: dict[str, str] = {}  # metric name -> phase in which it was last seen non-finite

    def judge(self, event: Event) -> Answer:
        """Finite again only when every metric that was not has been seen finite."""
        metrics = event.metrics
        try:
            # One C call for the common case; the sum of finite values is finite unless it overflows.
            if not self._bad and not metrics.get("param_nonfinite") and math.isfinite(sum(metrics.values())):  # type: ignore[arg-type]
                return FINE
        except TypeError:
            pass  # a metric is None: the loop below takes its time
        for name, value in metrics.items():
            if value is None:
                continue
            if not math.isfinite(value) or (name == "param_nonfinite" and value > 0):
                known = lookup(name)
                if not (known and known.nan_is_normal and value != value):  # an infinity is never normal
                    self._bad.setdefault(name, event.phase)
            else:
                self._bad.pop(name, None)
        if not self._bad:
            return FINE
        # The episode lasts while anything is bad; what is reported is what this event shows, if it shows any.
        shown = [name for name in self._bad if name in metrics] or list(self._bad)
        worst = min(shown, key=lambda name: (lookup(name) is None, shown.index(name)))
        value = metrics.get(worst)
        severity = Severity.CRITICAL if lookup(worst) else Severity.WARNING
        if worst == "param_nonfinite":
            # None: an event after the checkpoint's, while what that one showed still holds.
            count = "" if value is None else f"{value:g} "
            message = f"param_nonfinite: {count}weights are NaN or infinite."
        else:
            others = f" So are: {', '.join(name for name in shown if name != worst)}." if len(shown) > 1 else ""
            message = f"{worst} is {value if value is not None else 'not finite'}.{others}"
        if event.metrics.get("loss") == 0.0 and "loss" not in self._bad:
            message += " loss reads 0.0, which is how transformers logs a NaN loss."
        return Finding(worst, value, None, message, severity, {"metrics": ", ".join(shown)})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A NaN hidden behind a zero loss, and a reward function that judged nothing."""
        healthy = {"loss": 2.0, "grad_norm": 1.0}
        yield Example("healthy", [healthy] * 20, [])
        yield Example("NaN gradient", [healthy] * 5 + [{"loss": 0.0, "grad_norm": math.nan}] * 5, [6])
        yield Example("one reward function judged nothing", [{"rewards/code/mean": math.nan, "loss": 0.1}] * 9, [])
