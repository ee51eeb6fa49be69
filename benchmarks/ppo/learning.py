"""What both trainers learn on one task, seed by seed: the share of vowels in a response, from about a sixth upwards."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import TrainerCallback

from tests import zoo

from .contest import Vowels, letters, never_padding, trainer

__all__ = ["Agreement", "Interval", "agreement", "curve"]

_PROMPT, _RESPONSE = 8, 12
_SETTINGS = {
    "per_device_train_batch_size": 16, "num_ppo_epochs": 4, "response_length": _RESPONSE, "learning_rate": 3e-3,
    "temperature": 1.0, "stop_token": "eos", "kl_coef": 0.02, "vf_coef": 0.5,
}  # fmt: skip
# Quantiles of Student's t by degrees of freedom, at 97.5 %: scipy is not among what rldk is tested with.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093}


class _Scores(TrainerCallback):
    def __init__(self) -> None:
        self.curve: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "objective/scores" in logs:
            self.curve.append(logs["objective/scores"])


def curve(kind: str, seed: int, updates: int = 40, **settings: Any) -> list[float]:
    """Trains one of `contest.KINDS` and gives the mean score of each update's responses."""
    policy = never_padding(zoo.causal_lm(seed))
    parts = {
        "model": policy, "ref_model": copy.deepcopy(policy), "reward_model": Vowels(_PROMPT, _RESPONSE),
        "value_model": zoo.sequence_classifier(seed + 2), "train_dataset": letters(_PROMPT),
    }
    scores = _Scores()
    gc.collect()
    gc.freeze()  # TRL collects garbage several times an update; that is none of its merits or faults here
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        one = trainer(kind, folder, parts, {**_SETTINGS, **settings}, updates, seed)
        one.add_callback(scores)
        one.train()
    return scores.curve


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its interval of 95 % (Student's t)."""

    mean: float
    half_width: float

    @property
    def holds_0(self) -> bool:
        """Whether 0 lies inside."""
        return abs(self.mean) <= self.half_width


class Agreement(NamedTuple):
    """Two trainers' curves over paired seeds.

    Attributes:
        first: Mean score over the first tenth of the updates, of both.
        ours: Mean score over the last quarter.
        theirs: The same of TRL's.
        end: Ours less theirs over the last quarter.
        whole: Ours less theirs over all updates: who learns faster.
        inside: Share of the updates at which each mean curve lies in the other's band of 95 %.
    """

    first: float
    ours: float
    theirs: float
    end: Interval
    whole: Interval
    inside: float

    @property
    def agrees(self) -> bool:
        """Whether both intervals of a difference hold 0."""
        return self.end.holds_0 and self.whole.holds_0


def agreement(ours: list[list[float]], theirs: list[list[float]]) -> Agreement:
    """Compares curves, one a seed, of the same seeds in the same order."""
    updates = len(ours[0])
    tenth, quarter = max(1, updates // 10), max(1, updates // 4)
    ends = [[statistics.fmean(one[-quarter:]) for one in curves] for curves in (ours, theirs)]
    wholes = [[statistics.fmean(one) for one in curves] for curves in (ours, theirs)]
    return Agreement(
        first=statistics.fmean(value for one in (*ours, *theirs) for value in one[:tenth]),
        ours=statistics.fmean(ends[0]),
        theirs=statistics.fmean(ends[1]),
        end=_interval([one - other for one, other in zip(*ends, strict=True)]),
        whole=_interval([one - other for one, other in zip(*wholes, strict=True)]),
        inside=statistics.fmean(_inside(*at) for at in zip(zip(*ours), zip(*theirs))),
    )


def _interval(values: Sequence[float]) -> Interval:
    width = _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), width)


def _inside(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    one, other = _interval(ours), _interval(theirs)
    return abs(one.mean - other.mean) <= min(one.half_width, other.half_width)
