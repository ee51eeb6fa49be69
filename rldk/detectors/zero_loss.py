"""The sudden onset of a loss of exactly zero: NaN as transformers shows it."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

# transformers before 5 rounds the loss to four decimals, so a loss that converges can round to 0.0. Only a fall from
# clearly above that is sudden.
_CLEARLY_POSITIVE = 1e-3


class ZeroLoss(Detector):
    """The loss was positive and is now exactly zero, with no gradient to show for it.

    What it sees: `loss` and `grad_norm`.
    Why it matters: with `logging_nan_inf_filter=True`, the default, transformers replaces a NaN loss, and what is
    logged is exactly 0.0. It looks like perfect convergence and is a dead run.
    When it fires: the loss was above 0.001 in every log so far (`warmup` of them at least), then exactly 0.0 for
    `patience` logs in a row, while `grad_norm` is not a positive finite number.
    What to do: as for NaN: stop, resume from the last clean checkpoint, and set `logging_nan_inf_filter=False`.
    False alarms: a loss of exactly zero that somebody logs by hand, without a `grad_norm`, is not judged. GRPO and RLOO losses are centred at zero, change sign, and so never arm it; a loss that converges to
    zero has a positive `grad_norm` and passes through small values first.
    Sources: transformers issue 13619, TRL issue 6702; measured on real trainers.

    Args:
        patience: Logs in a row with a zero loss.
        warmup: Positive logs before it is armed.
    """

    code = "zero_loss"
    title = "Sudden zero loss"
    watches = ("loss",)
    only_watched = True
    needs = "a loss that stays above 0.001 for its first logs; that of GRPO and RLOO is centred at 0"
    weights_are_sound = False
    advice = (
        "Most likely the loss is NaN and transformers hides it: set logging_nan_inf_filter=False to see, stop, and "
        "resume from the last clean checkpoint."
    )

    def __init__(self, *, patience: int = 3, warmup: int = 3) -> None:
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self.warmup = number_parameter(self.code, "warmup", warmup, low=1, whole=True)
        self._positive = 0
        self._lowest = float("inf")
        self._last = 0.0
        self._zeros = 0

    def judge(self, event: Event) -> Answer:
        """Counts positive logs, then zeros."""
        loss = event.metrics.get("loss")
        if loss is None:
            return ABSENT
        if loss != 0.0:
            self._zeros = 0
            self._positive += 1
            self._lowest = min(self._lowest, loss)
            self._last = loss
            return FINE if self._armed else WARMING
        gradient = event.metrics.get("grad_norm")
        if not self._armed or (gradient is not None and 0.0 < gradient < float("inf")):
            return FINE if self._armed else WARMING
        if gradient is None and event.model_info.get("trainer") == "generic":
            return FINE  # a loop of one's own, whose hinge or rounded loss may well be zero: transformers logs a norm
        self._zeros += 1
        if self._zeros < self.patience:
            return FINE
        message = (
            f"loss is exactly 0.0 for {self._zeros} logs after {number(self._last)}, "
            f"with grad_norm {'not logged' if gradient is None else number(gradient)}."
        )
        return Finding("loss", 0.0, None, message, Severity.CRITICAL, {"loss_before": self._last})

    @property
    def _armed(self) -> bool:
        return self._positive >= self.warmup and self._lowest > _CLEARLY_POSITIVE

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A hidden NaN, a run that converges, and GRPO's loss around zero."""
        learning = [{"loss": 3.0 - 0.1 * step, "grad_norm": 1.0} for step in range(10)]
        yield Example("hidden NaN", learning + [{"loss": 0.0, "grad_norm": float("nan")}] * 5, [13])
        yield Example("converged", learning + [{"loss": 0.0, "grad_norm": 1e-5}] * 20, [])
        yield Example("centred at zero", [{"loss": (-1) ** step * 1e-8, "grad_norm": 1.0} for step in range(9)]
                      + [{"loss": 0.0, "grad_norm": 0.0}] * 9, [])
