"""KTO with far more of one label than of the other."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_LEAST_LOGS = 20
_RARE = 0.1  # the other side is then hardly ever missing, so that small batches do not explain it
_LOWEST, _HIGHEST = 1e-6, 1e6  # beyond it one side is empty: the recorder writes 0 or a billion


class KtoImbalance(Detector):
    """Desirable and undesirable rows are out of balance, by their weighted numbers.

    What it sees: `kto_balance`, measured when training begins: `desirable_weight` times the number of desirable rows
    over `undesirable_weight` times that of the undesirable ones. During a KTO run: how often `reward_chosen` or
    `reward_rejected` is missing, which it is in a log whose batches have no row of that side.
    Why it matters: the loss then follows one side only; with an empty side it is NaN or learns to raise or lower
    everything.
    When it fires: the ratio is outside [`low`, `high`] = [0.5, 3]; critical if one side is empty. During the run: one
    side is missing in 30 % of logs or more (60 % if the ratio is known and good) while the other is hardly ever, after
    20 logs.
    What to do: set `desirable_weight` or `undesirable_weight` so that the ratio lies between 1 and 1.33; raise
    `per_device_train_batch_size` if a side is missing from many batches.
    False alarms: TRL recommends 1 to 1.33; between that and the limits it is silent. Batches of one or two rows lack
    either side equally often and are not judged.
    Sources: TRL's KTO documentation and its own warning (1 to 1.33), HALOs issue 24, TRL issue 1447; the limits are
    chosen here.

    Args:
        low: Smallest ratio without an alert.
        high: Largest ratio without an alert.
        missing: Share of logs without one side from which the alert is raised.
    """

    code = "kto_imbalance"
    title = "KTO labels out of balance"
    watches = ("kto_balance", "reward_chosen", "reward_rejected")
    only_watched = True
    needs = "a KTO run"
    advice = (
        "Set desirable_weight or undesirable_weight so that weight x rows of the desirable over the undesirable side lies "
        "between 1 and 1.33; raise per_device_train_batch_size if batches lack a side."
    )
    phases = frozenset({"setup", "train"})
    cooldown = 50

    def __init__(self, *, low: float = 0.5, high: float = 3.0, missing: float = 0.3) -> None:
        self.low = number_parameter(self.code, "low", low, low=0.0)
        self.high = number_parameter(self.code, "high", high, low=self.low)
        self.missing = number_parameter(self.code, "missing", missing, low=0.0, high=1.0)
        self._known_good = False
        self._at_start: Finding | None = None
        self._logs = 0
        self._no_chosen = 0.0
        self._no_rejected = 0.0

    def judge(self, event: Event) -> Answer:
        """The ratio where it is known; else what is missing."""
        metrics = event.metrics
        balance = metrics.get("kto_balance")
        if balance is not None:
            return self._begin(balance)
        if event.model_info.get("trainer") != "kto":
            return ABSENT
        chosen, rejected = "reward_chosen" in metrics, "reward_rejected" in metrics
        if not (chosen or rejected):
            return ABSENT
        self._logs += 1
        weight = max(0.02, 1.0 / self._logs)
        self._no_chosen += weight * ((not chosen) - self._no_chosen)
        self._no_rejected += weight * ((not rejected) - self._no_rejected)
        if self._at_start is not None:
            return self._at_start  # the rows do not change: the episode lasts as long as the run
        if self._logs < _LEAST_LOGS:
            return WARMING
        more, less, name = self._no_chosen, self._no_rejected, "reward_chosen"
        if less > more:
            more, less, name = less, more, "reward_rejected"
        limit = max(0.6, self.missing) if self._known_good else self.missing
        if more < limit or less > _RARE:
            return FINE
        message = (
            f"{name} is missing in {number(100 * more)} % of the logs, the other side in {number(100 * less)} %: hardly "
            "any batch has rows of both labels."
        )
        return Finding(name, None, limit, message, Severity.WARNING, {"missing_frac": more, "other_missing_frac": less})

    def _begin(self, balance: float) -> Answer:
        if balance != balance:
            return WARMING
        if self.low <= balance <= self.high:
            self._known_good = True
            self._at_start = None
            return FINE
        empty = not _LOWEST < balance < _HIGHEST
        what = "one side has no rows at all" if empty else "desirable to undesirable rows, by number times weight"
        message = (
            f"kto_balance is {number(balance)}: {what}; TRL recommends 1 to 1.33 "
            f"(alert outside {number(self.low)} to {number(self.high)})."
        )
        self._at_start = Finding(
            "kto_balance", balance, self.low if balance < self.low else self.high, message,
            Severity.CRITICAL if empty else Severity.WARNING,
        )
        return self._at_start

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Ratios inside and outside; a side without rows."""
        yield Example("62 desirable rows for 2", [{"kto_balance": 31.0}], [1])
        yield Example("no desirable row", [{"kto_balance": 0.0}], [1])
        yield Example("as recommended", [{"kto_balance": 1.2}], [])
        yield Example("outside the recommendation, and no worse", [{"kto_balance": 0.7}, {"kto_balance": 2.5}], [])
