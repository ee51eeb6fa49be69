"""The chosen answers become unlikely while their lead grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

_BETA = 0.1  # TRL's default, where the arguments are not known
_LEAST = 8
_FAST = 0.15
_SLOW = 0.03
# Rewards that are no log-ratio to a reference; ORPO and CPO train on the chosen answers as well.
_OTHERS = frozenset({"orpo", "cpo", "reward"})


class LikelihoodDisplacement(Detector):
    """Both answers lose probability, the chosen one nearly as much as the rejected one.

    What it sees: `reward_chosen`, `reward_rejected`, `reward_margin` and, where logged, `logp_chosen`. The reward is
    beta times the log-ratio to the reference, so divided by beta it is in nats.
    Why it matters: the margin and the accuracy look perfect, while the probability that the answers lose goes to
    others that nobody chose, such as the opposite of what is wanted.
    When it fires: on average over some logs the chosen answers have lost more than `nats` (50) against the reference,
    at least `relative` (0.25) of what the reference gave them, and 0.4 times as many as the rejected ones, while the
    margin is above 0 and not falling; for `patience` (5) logs.
    What to do: `rpo_alpha` or `loss_type=["sigmoid", "sft"]`, which hold the chosen answers up; lower `learning_rate`
    or raise `beta`; drop pairs that are nearly the same.
    False alarms: a mild fall is common and benign, and most successful runs have one: hence the three limits. Without
    arguments a `beta` of 0.1 is assumed. ORPO and CPO have no reference and are not judged.
    Sources: Razin et al., arXiv 2410.08847 (refusals fell from 74 % to 33 %). Measured on tiny models at a beta of 0.1: 28
    nats lost in a run that is counted as healthy, 85 to 180 in one that is not; the limits are chosen here.

    Args:
        nats: Loss of log-probability a chosen answer above which the alert is raised.
        relative: Smallest such loss as a share of the reference's own log-probability, where that is known.
        patience: Logs in a row.
    """

    code = "likelihood_displacement"
    title = "Chosen answers become unlikely"
    watches = ("reward_chosen",)
    only_watched = True
    needs = "DPO or another trainer whose rewards are log-ratios to a reference"
    advice = (
        'Hold the chosen answers up with rpo_alpha or loss_type=["sigmoid", "sft"], lower learning_rate or raise beta, '
        "and drop pairs that are nearly identical."
    )
    cooldown = 50

    def __init__(self, *, nats: float = 50.0, relative: float = 0.25, patience: int = 5) -> None:
        self.nats = number_parameter(self.code, "nats", nats, low=0.0)
        self.relative = number_parameter(self.code, "relative", relative, low=0.0)
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self._beta = _BETA
        # Exponential means; of the margin a slow one too, to tell whether it falls.
        self._count = 0
        self._chosen = self._rejected = self._margin = self._slow_margin = 0.0
        self._logp: float | None = None
        self._bad = 0

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Takes note of `beta`."""
        beta = arguments.get("beta")
        if isinstance(beta, (int, float)) and 0.0 < beta < 1e6:
            self._beta = beta

    def judge(self, event: Event) -> Answer:
        """Holds the smoothed loss of the chosen answers against the limits."""
        metrics = event.metrics
        chosen = metrics.get("reward_chosen")
        if chosen is None or event.model_info.get("trainer") in _OTHERS:
            return ABSENT
        rejected, margin = metrics.get("reward_rejected"), metrics.get("reward_margin")
        if rejected is None or margin is None or not abs(chosen) + abs(rejected) + abs(margin) < 1e12:
            return WARMING
        self._count = count = self._count + 1
        first = 1.0 / count
        weight = first if first > _FAST else _FAST
        self._chosen += weight * (chosen - self._chosen)
        self._rejected += weight * (rejected - self._rejected)
        self._margin += weight * (margin - self._margin)
        self._slow_margin += (first if first > _SLOW else _SLOW) * (margin - self._slow_margin)
        logp = metrics.get("logp_chosen")
        if logp is not None and -1e12 < logp < 1e12:
            self._logp = logp if self._logp is None else self._logp + weight * (logp - self._logp)
        lost = -self._chosen
        if count < _LEAST:
            return WARMING
        limit = self.nats * self._beta
        if lost < (0.8 * limit if self._bad >= self.patience else limit):
            self._bad = 0
            return FINE
        return self._fallen(chosen, lost, limit)

    def _fallen(self, chosen: float, lost: float, limit: float) -> Answer:
        nats = lost / self._beta
        own = -(self._logp + nats) if self._logp is not None else 0.0  # what the reference gave, as a positive number
        mild = own > 0.0 and nats < self.relative * own
        ahead = self._margin > 0.0 and self._margin >= 0.8 * self._slow_margin
        if mild or not ahead or lost < 0.4 * -self._rejected:
            self._bad = 0
            return FINE
        self._bad += 1
        if self._bad < self.patience:
            return FINE
        message = (
            f"reward_chosen is {number(chosen)}: the chosen answers have lost {number(nats)} nats against the reference, "
            f"while reward_margin is {number(self._margin)} and the pairs look won."
        )
        evidence = {"nats": nats, "reward_rejected": self._rejected, "reward_margin": self._margin}
        if own > 0.0:
            evidence["share_lost"] = nats / own
        return Finding("reward_chosen", chosen, -limit, message, Severity.WARNING, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Both fall together; only the rejected one falls; a mild fall of a long answer."""

        def run(chosen: float, rejected: float, logp: float) -> list[dict[str, float]]:
            """Rewards that move at steady rates."""
            return [
                {
                    "reward_chosen": chosen * log, "reward_rejected": rejected * log,
                    "reward_margin": (chosen - rejected) * log, "logp_chosen": logp + 10 * chosen * log,
                }
                for log in range(100)
            ]

        yield Example("both fall", run(-0.15, -0.25, -40.0), [44])
        yield Example("the rejected one falls", run(-0.06, -0.5, -40.0), [])
        yield Example("a mild fall of long answers", run(-0.1, -0.2, -900.0), [])
        yield Example("both rise", run(0.05, 0.02, -40.0), [])
