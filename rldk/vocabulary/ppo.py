"""Proximal policy optimisation: TRL's `PPOTrainer` (shipped up to 1.12) and `rldk.ppo`'s, which logs the same names.

TRL averages the statistics of an update over a buffer of `num_ppo_epochs x num_mini_batches x
gradient_accumulation_steps` slots a process. Only `ceil(local_mini_batch_size / per_device_train_batch_size)` of the
`gradient_accumulation_steps` slots of a mini-batch are ever written; the others stay zero and pull every average
towards zero: with two mini-batches, `val/ratio` reads 0.50 at a true ratio of 1. The share is known from the
arguments, so the averages are divided by it here. `rldk.ppo` averages over what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._base import Correction, Family, Term

_DILUTED = ("approx_kl", "clip_frac", "entropy_mean", "policy_loss", "value_loss", "value_clip_frac", "ratio_mean")

_OWN_ARGUMENT = "kl_adaptation"  # of rldk.ppo's arguments, not of TRL's


def _filled_share(arguments: Mapping[str, Any]) -> tuple[float, int] | None:
    """The share of slots that are written, and the number of slots over all processes; None if not known."""
    try:
        per_device = int(arguments["per_device_train_batch_size"])
        accumulation = int(arguments["gradient_accumulation_steps"])
        mini_batches = int(arguments["num_mini_batches"])
        epochs = int(arguments["num_ppo_epochs"])
        processes = int(arguments.get("world_size") or 1)
        local_mini_batch = per_device * accumulation / mini_batches
        share = math.ceil(local_mini_batch / per_device) / accumulation
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return share, epochs * mini_batches * accumulation * processes


def corrector(arguments: Mapping[str, Any]) -> Correction | None:
    """Undoes the dilution of the averages; None where nothing is diluted or the arguments do not say.

    With a share f of N slots written, a diluted mean is f times the true one. For the variance (unbiased, over all N
    slots) the second moment is restored likewise: E[x^2] = (var (N-1)/N + mean^2) / f, and the true variance over the
    f N written slots follows from it.
    """
    found = None if _OWN_ARGUMENT in arguments else _filled_share(arguments)
    if found is None or found[0] >= 1.0:
        return None
    share, slots = found
    written = round(share * slots)

    def apply(metrics: dict[str, Any]) -> None:
        mean, variance = metrics.get("ratio_mean"), metrics.get("ratio_var")
        if isinstance(mean, float) and isinstance(variance, float):
            second_moment = (variance * (slots - 1) / slots + mean * mean) / share
            centred = max(0.0, second_moment - (mean / share) ** 2)
            metrics["ratio_var"] = centred * written / (written - 1) if written > 1 else math.nan
        for name in _DILUTED:
            value = metrics.get(name)
            if isinstance(value, (float, int)):
                metrics[name] = value / share

    names = ", ".join(_DILUTED)
    return Correction(
        apply,
        f"TRL averages over {slots} slots of which {written} are written: {names} divided by {share:g}, "
        "ratio_var recomputed over the written slots",
    )


FAMILY = Family(
    name="ppo",
    configs=("PPOConfig",),
    marks=(frozenset({"objective/kl", "loss/value_avg"}), frozenset({"objective/kl", "val/ratio"})),
    terms=(
        Term("objective/kl", "kl_mean", "nats/sequence", "k1 estimator summed over the tokens, can be negative"),
        Term("objective/entropy", "entropy_seq", note="TRL up to 1.9 counts each padding position as -1 nat"),
        Term("objective/non_score_reward", "kl_penalty"),
        Term("objective/rlhf_reward", "reward_penalised"),
        Term("objective/scores", "reward_mean"),
        Term("policy/approxkl_avg", "approx_kl"),
        Term("policy/clipfrac_avg", "clip_frac"),
        Term("policy/entropy_avg", "entropy_mean"),
        Term("loss/policy_avg", "policy_loss"),
        Term("loss/value_avg", "value_loss"),
        Term("val/clipfrac_avg", "value_clip_frac"),
        Term("val/ratio", "ratio_mean"),
        Term("val/ratio_var", "ratio_var"),
        Term("val/num_eos_tokens", "eos_tokens", note="of the first process"),
        Term("eps", "episodes_per_second", note="since the start, rounded down to a whole number"),
        Term("episode", "episodes"),
        # rldk.ppo logs these besides
        Term("val/explained_variance", "explained_variance"),
        Term("objective/kl_coef", "kl_coef"),
        Term("completions/mean_length", "length_mean"),
        Term("completions/min_length", "length_min"),
        Term("completions/max_length", "length_max"),
        Term("completions/clipped_ratio", "truncated_frac"),
    ),
    rank=10,
    corrector=corrector,
)
