"""What a trainer family is: the names it logs, what they mean there, and how its logs are recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["COMMON", "Correction", "Family", "Term"]


class Term(NamedTuple):
    """One raw name and what it is called here.

    Attributes:
        raw: The key in the trainer's logs, without `eval_`.
        name: The canonical name (`rldk.metrics`).
        unit: The unit in this trainer, if it is not the table's.
        note: What is particular about it in this trainer: the estimator, the average.
        trl: PEP 440 specifier of the TRL versions of which this row is true; empty for all.
        loss_types: Values of the argument `loss_type` for which this row is true; empty for all. Of several rows for
            one raw name, the last one that holds is in force.
    """

    raw: str
    name: str
    unit: str = ""
    note: str = ""
    trl: str = ""
    loss_types: tuple[str, ...] = ()


class Correction(NamedTuple):
    """A repair of values that the trainer averages wrongly.

    Attributes:
        apply: Changes a dictionary of canonical metrics in place.
        text: What it does, with the numbers, for the run's manifest.
    """

    apply: Callable[[dict[str, Any]], None]
    text: str


@dataclass(frozen=True)
class Family:
    """A trainer family: one file in this package, bound there to the name `FAMILY`.

    Attributes:
        name: Short lower-case name, as in `model_info.trainer`.
        configs: Class names of its arguments; a subclass's family is that of its nearest listed ancestor.
        marks: Sets of raw keys; logs that hold all keys of one set are of this family.
        terms: Its vocabulary; what is missing here is looked up in `COMMON`, then passes under its own name.
        rank: Order in which families try their marks, lowest first; the more particular family goes first.
        corrector: Given the arguments, the repair that its averages need, or None.
    """

    name: str
    configs: tuple[str, ...] = ()
    marks: tuple[frozenset[str], ...] = ()
    terms: tuple[Term, ...] = ()
    rank: int = 50
    corrector: Callable[[Mapping[str, Any]], Correction | None] | None = None


# What transformers' Trainer logs, whatever the family.
COMMON = (
    Term("loss", "loss"),
    Term("grad_norm", "grad_norm"),
    Term("learning_rate", "lr"),
    Term("lr", "lr"),
    Term("epoch", "epoch"),
    Term("num_tokens", "num_tokens"),
    Term("num_input_tokens_seen", "num_input_tokens_seen"),
    Term("entropy", "entropy_mean"),
    Term("mean_token_accuracy", "token_accuracy"),
    Term("aux_loss", "aux_loss"),
    Term("step_time", "step_time"),
    Term("runtime", "runtime"),
    Term("samples_per_second", "samples_per_second"),
    Term("steps_per_second", "steps_per_second"),
)

# Preference trainers share these keys; the units are set where they differ.
PREFERENCE = (
    Term("rewards/chosen", "reward_chosen"),
    Term("rewards/rejected", "reward_rejected"),
    Term("rewards/margins", "reward_margin"),
    Term("rewards/accuracies", "pair_accuracy"),
    Term("logps/chosen", "logp_chosen"),
    Term("logps/rejected", "logp_rejected"),
    Term("logits/chosen", "logit_chosen"),
    Term("logits/rejected", "logit_rejected"),
    Term("nll_loss", "nll_loss"),
)
