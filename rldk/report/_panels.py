"""Which metrics are drawn together: one plot, one unit, one question. The only such list.

A plot is shown if anything of it was logged, so each trainer gets those that it fills. Evaluations stand beside the
training metric of the same name. What is in no panel is in the page's table of all metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..metrics import METRICS

__all__ = ["NOT_DRAWN", "PANELS", "Panel", "Placed", "place"]


class Panel(NamedTuple):
    """A plot.

    Attributes:
        section: The heading that it stands under.
        title: Its own.
        metrics: Canonical names, in the order of the legend.
    """

    section: str
    title: str
    metrics: tuple[str, ...]


class Placed(NamedTuple):
    """A panel with what a run logged of it."""

    section: str
    title: str
    metrics: tuple[str, ...]


_LEARNING, _POLICY, _PREFERENCES = "Learning", "Policy", "Preferences"
_COMPLETIONS, _OPTIMISER, _SPEED, _MACHINE, _CHECKPOINTS = "Completions", "Optimiser", "Speed", "Machine", "Checkpoints"
_YOURS = "Your own metrics"

PANELS = (
    Panel(_LEARNING, "Reward", ("reward_mean", "reward_penalised")),
    Panel(_LEARNING, "Reward functions", ()),  # filled by name, see `place`
    Panel(_LEARNING, "Spread of rewards", ("reward_std",)),
    Panel(_LEARNING, "Groups without a signal", ("frac_zero_std",)),
    Panel(_LEARNING, "Loss", ("loss", "nll_loss")),
    Panel(_LEARNING, "Policy loss", ("policy_loss",)),
    Panel(_LEARNING, "Value loss", ("value_loss",)),
    Panel(_LEARNING, "Load-balancing loss", ("aux_loss",)),
    Panel(_LEARNING, "Token accuracy", ("token_accuracy",)),
    Panel(_PREFERENCES, "Pair accuracy", ("pair_accuracy",)),
    Panel(_PREFERENCES, "Implicit rewards", ("reward_margin", "reward_chosen", "reward_rejected")),
    Panel(_PREFERENCES, "Log-probabilities", ("logp_chosen", "logp_rejected")),
    Panel(_PREFERENCES, "Logits", ("logit_chosen", "logit_rejected")),
    Panel(_PREFERENCES, "Odds ratio", ("log_odds_chosen", "log_odds_ratio")),
    Panel(_PREFERENCES, "Margin of scores", ("score_margin",)),
    Panel(_PREFERENCES, "Scores", ("score_mean", "score_min", "score_max")),
    Panel(_POLICY, "KL to the reference", ("kl_mean",)),
    Panel(_POLICY, "KL penalty", ("kl_penalty",)),
    Panel(_POLICY, "Entropy", ("entropy_mean",)),
    Panel(_POLICY, "Entropy of a sequence", ("entropy_seq",)),
    Panel(_POLICY, "KL of an update", ("approx_kl",)),
    Panel(_POLICY, "Clipping", ("clip_frac", "clip_frac_low", "clip_frac_high", "cispo_clip_frac", "value_clip_frac")),
    Panel(_POLICY, "Extremes of clipping", ("clip_frac_low_min", "clip_frac_high_max")),
    Panel(_POLICY, "Probability ratio", ("ratio_mean",)),
    Panel(_POLICY, "Variance of the ratio", ("ratio_var",)),
    Panel(_POLICY, "Sampler against trainer: log-probability", ("sampler_logp_diff_mean", "sampler_logp_diff_max")),
    Panel(_POLICY, "Sampler against trainer: ratio", ("sampler_ratio_mean", "sampler_ratio_min", "sampler_ratio_max")),
    Panel(_POLICY, "Coefficients", ("beta", "entropy_coef")),
    Panel(_COMPLETIONS, "Length", ("length_mean", "length_min", "length_max")),
    Panel(_COMPLETIONS, "Length of finished ones",
          ("length_terminated_mean", "length_terminated_min", "length_terminated_max")),
    Panel(_COMPLETIONS, "How completions end", ("truncated_frac", "eos_frac")),
    Panel(_COMPLETIONS, "End-of-sequence tokens", ("eos_tokens",)),
    Panel(_COMPLETIONS, "Tool calls", ("tool_calls",)),
    Panel(_COMPLETIONS, "Tool failures", ("tool_failures",)),
    Panel(_OPTIMISER, "Gradient norm", ("grad_norm", "grad_norm_policy", "grad_norm_value")),
    Panel(_OPTIMISER, "Learning rate", ("lr",)),
    Panel(_OPTIMISER, "Tensors that have not moved", ("param_unmoved_frac",)),
    Panel(_SPEED, "Tokens a second", ("tokens_per_second",)),
    Panel(_SPEED, "Rows a second", ("samples_per_second",)),
    Panel(_SPEED, "Time of a step", ("step_time",)),
    Panel(_SPEED, "Silence", ("silence_s",)),
    Panel(_MACHINE, "Memory of the process", ("memory_bytes", "memory_peak_bytes")),
    Panel(_MACHINE, "Memory of the GPU", ("gpu_memory_bytes", "gpu_memory_peak_bytes")),
    Panel(_MACHINE, "Memory in use", ("gpu_memory_frac", "gpu_memory_peak_frac", "host_memory_frac", "host_memory_peak_frac")),
    Panel(_MACHINE, "CPU of the process", ("cpu_percent",)),
    Panel(_MACHINE, "Use of CPU and GPU", ("gpu_percent", "host_cpu_percent")),
    Panel(_CHECKPOINTS, "Norm of the weights", ("param_norm",)),
    Panel(_CHECKPOINTS, "Change of the weights", ("param_update_ratio", "param_unchanged_frac")),
    Panel(_CHECKPOINTS, "Weights that are not finite", ("param_nonfinite",)),
)

# Counters, clocks and facts of the set-up: numbers worth a row in the table, and no plot.
NOT_DRAWN = frozenset(METRICS) - {name for panel in PANELS for name in panel.metrics}

_FUNCTIONS = 8
_CUSTOM = 8


def place(names: Iterable[str]) -> list[Placed]:
    """The panels for what a run logged, in order, with names that it logged; evaluations beside training."""
    logged = dict.fromkeys(names)
    placed = []
    for panel in PANELS:
        wanted: Iterable[str] = panel.metrics
        if panel.title == "Reward functions":
            means = [name for name in logged if name.startswith("rewards/") and name.endswith("/mean")]
            wanted = means[:_FUNCTIONS] if len(means) > 1 else ()  # one alone is the reward
        both = [name for metric in wanted for name in (metric, f"eval_{metric}") if name in logged]
        if both:
            placed.append(Placed(panel.section, panel.title, tuple(both)))
    shown = {name for panel in placed for name in panel.metrics}
    own = [name for name in logged if name not in shown and _is_custom(name)]
    placed += [Placed(_YOURS, name, (name,)) for name in own[:_CUSTOM]]
    return placed


def _is_custom(name: str) -> bool:
    bare = name.removeprefix("eval_")
    return bare not in METRICS and not (bare.startswith("rewards/") and bare.endswith(("/mean", "/std")))
