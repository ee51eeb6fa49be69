"""The evaluation gets worse while the training gets better."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Mean

_ONLINE = frozenset({"grpo", "rloo", "ppo", "online_dpo"})  # their loss says nothing of how good the policy is
_LEAST_EVALS = 4
_SPREADS = 3.0
_BOUND = 1e12
_PAIRS = 3.0


class Overfit(Detector):
    """The evaluation loss has risen from its best for several evaluations, while the training loss fell on.

    What it sees: `eval_loss`, and the smoothed `loss`.
    Why it matters: from there on the model learns the rows by heart and gets worse at everything else.
    When it fires: `eval_loss` is above its best by `rise` (10 %; three times that for losses over pairs), and by three times its own jitter, in `evals` (3)
    evaluations in a row, of four or more in all, and still rising, while the training loss is lower than when the best
    was reached.
    What to do: stop and take the best checkpoint (`load_best_model_at_end=True`, `EarlyStoppingCallback`); fewer
    `num_train_epochs`, a lower `learning_rate`, more data, dropout or a smaller LoRA rank.
    False alarms: small evaluation sets jitter, which is measured from the evaluations themselves (by second
    differences, so that a trend is not taken for jitter). Over pairs with some wrong labels the loss rises as the model gets
    sure of itself, though it orders them no worse: hence the higher bar (measured: 23 % in a healthy reward model). If both losses rise it is no overfitting. Online trainers, whose
    loss measures nothing, are not judged.
    Sources: Amazon SageMaker Debugger's Overfit rule, trainproof (1.2 times in four evaluations); measured: four rows
    learnt by heart, eval_loss 5.83 to 8.28 while the loss went from 5.14 to 0.16. The numbers are chosen here.

    Args:
        rise: Rise of `eval_loss` above its best, as a share of it.
        evals: Evaluations in a row.
    """

    code = "overfit"
    title = "Overfitting"
    watches = ("loss",)
    left_out = _ONLINE
    needs = "eval_loss of at least four evaluations (eval_strategy)"
    advice = (
        "Stop here and keep the best checkpoint (load_best_model_at_end=True with EarlyStoppingCallback); then fewer "
        "num_train_epochs, a lower learning_rate, or more data."
    )
    phases = frozenset({"train", "eval"})

    def __init__(self, *, rise: float = 0.1, evals: int = 3) -> None:
        self.rise = number_parameter(self.code, "rise", rise, low=0.0)
        self.evals = number_parameter(self.code, "evals", evals, low=1, whole=True)
        self._train = Mean(0.1)
        self._best = math.inf
        self._train_at_best: float | None = None
        self._last: list[float] = []  # the two evaluations before
        self._jitter = Mean(0.2)
        self._count = 0
        self._worse = 0
        self._since = 0.0  # the first of the worse evaluations in a row

    def judge(self, event: Event) -> Answer:
        """Takes the training loss in on the way; judges evaluations."""
        metrics = event.metrics
        loss = metrics.get("loss")
        if loss is not None and 0.0 < loss < _BOUND:
            self._train.add(loss)
        value = metrics.get("eval_loss")
        if value is None or event.model_info.get("trainer") in _ONLINE:
            return ABSENT
        if not 0.0 < value < _BOUND:
            return WARMING
        self._count += 1
        last = self._last
        if len(last) == 2:
            # For independent noise of deviation s the mean absolute second difference is 1.95 s.
            self._jitter.add(abs(value - 2.0 * last[1] + last[0]) / 1.95)
            del last[0]
        last.append(value)
        train = self._train.value if self._train.count else None
        if self._train_at_best is None:
            self._train_at_best = train  # an evaluation before the first log
        if value < self._best:
            self._best, self._train_at_best = value, train
            self._worse = 0
            return FINE if self._count >= _LEAST_EVALS else WARMING
        pairs = "eval_pair_accuracy" in metrics or "eval_reward_margin" in metrics
        rise = self.rise * (_PAIRS if pairs else 1.0)
        limit = self._best + max(rise * self._best, _SPREADS * self._jitter.value)
        before = self._train_at_best
        if value <= limit or train is None or before is None or train >= 0.98 * before:
            self._worse = 0
            return FINE if self._count >= _LEAST_EVALS else WARMING
        self._worse += 1
        if self._worse == 1:
            self._since = value
        if self._count < _LEAST_EVALS:
            return WARMING
        # A level that is a little above a lucky best, and stays there, is none that gets worse.
        if self._worse < self.evals or (self.evals > 1 and value < 1.01 * self._since):
            return FINE
        message = (
            f"eval_loss is {number(value)}, {number(round(100 * (value / self._best - 1), 1))} % above its best of "
            f"{number(self._best)}, for {self._worse} evaluations, while loss fell from {number(before)} to {number(train)}."
        )
        evidence = {"best": self._best, "loss": train, "loss_at_best": before, "jitter": self._jitter.value}
        return Finding("eval_loss", value, limit, message, Severity.WARNING, evidence)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Rows learnt by heart; a noisy evaluation; a model that gets worse at both."""

        def run(train: list[float], evals: list[float]) -> list[dict[str, float]]:
            """An evaluation after every fifth log."""
            return [
                {"loss": loss, "eval_loss": evals[index // 5]} if index % 5 == 4 else {"loss": loss}
                for index, loss in enumerate(train)
            ]

        falling = [5.0 * 0.95**log for log in range(50)]
        yield Example("four rows learnt by heart", run(falling, [5.8, 5.9, 6.3, 6.9, 7.3, 7.6, 7.9, 8.0, 8.2, 8.3]), [30])
        yield Example("a noisy evaluation", run(falling, [4.0, 3.0, 3.4, 2.9, 3.3, 2.8, 3.2, 3.3, 2.9, 3.1]), [])
        yield Example("converged", run(falling, [4.0, 3.0, 2.5, 2.4, 2.39, 2.4, 2.41, 2.43, 2.44, 2.45]), [])
        lucky = [4.0, 3.0, 2.0, 2.25, 2.24, 2.26, 2.25, 2.24, 2.25, 2.25]
        yield Example("a lucky best, then a level", run(falling, lucky), [])
        yield Example("diverging", run(falling[::-1], [2.0, 2.2, 2.5, 3.0, 4.0, 4.5, 4.6, 4.8, 5.0, 5.2]), [])
