"""THE table of metrics: canonical name, unit, which direction is bad, and what it means.

Nothing else in rldk defines a metric. Which trainer calls it what is in `rldk.vocabulary`; thresholds are in
`rldk.detectors`. docs/metrics.md is generated from this table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

__all__ = [
    "HEADLINE", "METRICS", "OF_ANYTHING", "SYNONYMS", "Metric", "canonical_name", "canonical_names", "headline", "lookup", "nearest",
    "of_the_machine", "typed_names",
]

_V = TypeVar("_V")


class Metric(NamedTuple):
    """One row of the table.

    Attributes:
        name: The canonical name.
        unit: Its unit; a trainer that measures in another one says so (`rldk.vocabulary`), and the run's manifest
            records the unit in force.
        bad: The direction that means trouble: `high`, `low`, `both`, or empty where neither does.
        meaning: One sentence.
        nan_is_normal: Healthy runs log NaN here, for the reason that `meaning` gives.
    """

    name: str
    unit: str
    bad: str
    meaning: str
    nan_is_normal: bool = False


_TABLE = (
    # What every trainer logs
    Metric("loss", "loss", "high", "Training loss of the step or window; centred at 0 in GRPO and RLOO."),
    Metric("grad_norm", "L2 norm", "both",
           "Gradient norm before clipping; TRL's own PPO logs none and does not clip: there rldk measures it as the next two."),
    Metric("grad_norm_policy", "L2 norm", "both",
           "Gradient norm of the policy alone (PPO), mean over the optimizer steps since the log before; after clipping, if any."),
    Metric("grad_norm_value", "L2 norm", "both",
           "Gradient norm of the value model alone (PPO), mean over the optimizer steps since the log before; after clipping, if any."),
    Metric("lr", "1/step", "", "Learning rate in force at the step."),
    Metric("epoch", "epochs", "", "Passes over the training set so far."),
    Metric("num_tokens", "tokens", "", "Tokens as the trainer counts them; after a resume most trainers start again at 0."),
    Metric("num_input_tokens_seen", "tokens", "", "Input tokens as transformers counts them."),
    Metric("step_time", "s", "high", "Seconds a training step took, as TRL measures it."),
    Metric("token_accuracy", "share", "low", "Share of target tokens that were the most likely one."),
    Metric("aux_loss", "loss", "high", "Load-balancing loss of a mixture-of-experts model."),
    # Policy against reference
    Metric("kl_mean", "nats/token", "high", "Divergence of the policy from the reference; unit and estimator by trainer."),
    Metric("entropy_mean", "nats/token", "both", "Entropy of the policy's next-token distribution."),
    Metric("entropy_seq", "nats/sequence", "both", "Negative log-likelihood of a sampled sequence, summed over its tokens."),
    Metric("approx_kl", "nats/token", "high", "Divergence of the updated policy from the one that sampled (k2)."),
    Metric("clip_frac", "share", "high", "Share of tokens whose probability ratio was clipped."),
    Metric("clip_frac_low", "share", "high", "Share of tokens clipped at the lower bound."),
    Metric("clip_frac_low_min", "share", "high", "Smallest share clipped at the lower bound, over processes (TRL to 1.8) or sequences."),
    Metric("clip_frac_high", "share", "high", "Share of tokens clipped at the upper bound."),
    Metric("clip_frac_high_max", "share", "high", "Largest share clipped at the upper bound, over processes (TRL to 1.8) or sequences."),
    Metric("cispo_clip_frac", "share", "high", "Share of tokens whose importance weight CISPO clipped."),
    Metric("ratio_mean", "ratio", "both", "Mean probability ratio of the updated policy to the one that sampled; 1 at rest."),
    Metric("ratio_var", "ratio^2", "high",
           "Variance of the batch means of the ratio; NaN by construction when there is only one batch.", True),
    Metric("policy_loss", "loss", "", "Policy part of the loss."),
    Metric("value_loss", "reward^2", "high", "Value-function loss; its scale is that of the reward, squared."),
    Metric("value_clip_frac", "share", "high", "Share of value predictions that were clipped."),
    Metric("explained_variance", "share", "low", "Share of the returns' variance that the values explain; 1 is a perfect critic."),
    Metric("kl_coef", "weight", "", "Weight of the KL penalty, where it is adapted during the run."),
    Metric("entropy_coef", "weight", "", "Weight of the entropy bonus."),
    # Rewards
    Metric("reward_mean", "reward", "low", "Mean reward of the sampled completions, without any KL penalty."),
    Metric("reward_std", "reward", "low", "Spread of rewards; over groups or over the batch, by TRL version."),
    Metric("frac_zero_std", "share", "high", "Share of prompts whose completions all got the same reward: no gradient."),
    Metric("reward_penalised", "reward", "low", "Mean reward minus the KL penalty: what PPO maximises."),
    Metric("kl_penalty", "reward", "low", "The KL penalty's share of the reward: minus the coefficient times the KL."),
    Metric("score_margin", "reward", "low", "Mean difference of reward between the better and the worse completion."),
    Metric("eos_tokens", "tokens", "low", "Number of end-of-sequence tokens in the sampled batch."),
    Metric("eos_frac", "share", "low", "Share of completions that contain the end-of-sequence token."),
    Metric("length_mean", "tokens", "both", "Mean completion length."),
    Metric("length_min", "tokens", "", "Shortest completion."),
    Metric("length_max", "tokens", "", "Longest completion."),
    Metric("length_terminated_mean", "tokens", "low", "Mean length of the completions that ended by themselves; 0 if none did."),
    Metric("length_terminated_min", "tokens", "", "Shortest completion that ended by itself."),
    Metric("length_terminated_max", "tokens", "", "Longest completion that ended by itself."),
    Metric("truncated_frac", "share", "high", "Share of completions cut off at the length limit."),
    Metric("tool_calls", "calls/completion", "", "Tool calls a completion."),
    Metric("tool_failures", "share", "high", "Share of tool calls that failed."),
    # Sampler against trainer (vLLM)
    Metric("sampler_logp_diff_mean", "nats/token", "high", "Mean difference of log-probability, sampler against trainer."),
    Metric("sampler_logp_diff_max", "nats/token", "high", "Largest difference of log-probability, sampler against trainer."),
    Metric("sampler_ratio_min", "ratio", "low", "Smallest importance ratio, sampler against trainer."),
    Metric("sampler_ratio_mean", "ratio", "both", "Mean importance ratio, sampler against trainer."),
    Metric("sampler_ratio_max", "ratio", "high", "Largest importance ratio, sampler against trainer."),
    # Preferences
    Metric("reward_chosen", "nats x beta", "low", "Implicit reward of the chosen answers: beta times the log-ratio to the reference."),
    Metric("reward_rejected", "nats x beta", "", "Implicit reward of the rejected answers."),
    Metric("reward_margin", "nats x beta", "low", "Reward of the chosen minus that of the rejected answer."),
    Metric("pair_accuracy", "share", "low", "Share of pairs in which the chosen answer gets the higher reward; a tie counts as wrong."),
    Metric("logp_chosen", "nats/sequence", "low", "Log-probability of the chosen answers."),
    Metric("logp_rejected", "nats/sequence", "", "Log-probability of the rejected answers."),
    Metric("logit_chosen", "logits", "", "Mean logit on the chosen answers."),
    Metric("logit_rejected", "logits", "", "Mean logit on the rejected answers."),
    Metric("nll_loss", "nats/token", "high", "Negative log-likelihood of the chosen answers."),
    Metric("log_odds_chosen", "nats", "low", "Log of the odds ratio, chosen against rejected (ORPO)."),
    Metric("log_odds_ratio", "nats", "low", "Log-sigmoid of the log odds ratio: ORPO's penalty term."),
    Metric("beta", "weight", "", "Strength of the pull towards the reference, where it changes during the run."),
    # The reward model itself
    Metric("score_mean", "score", "", "Mean score that the reward model being trained gives."),
    Metric("score_min", "score", "", "Smallest score in the batch."),
    Metric("score_max", "score", "", "Largest score in the batch."),
    # The set-up, measured when training begins; shown to detectors, and kept in the first event's `model_info.setup`
    Metric("trainable_frac", "share", "low", "Share of the model's weights that are trained."),
    Metric("uses_adapter", "0 or 1", "", "Whether the model carries a PEFT adapter."),
    Metric("warmup_frac", "share", "high", "Warm-up steps over all steps of the run."),
    Metric("eos_label_frac", "share", "low", "Share of the first rows, of those not cut at the length limit, whose labels hold an end token."),
    Metric("empty_label_frac", "share", "high", "Share of the first rows that have no label: nothing is learnt from them."),
    Metric("ref_shared_frac", "share", "high", "Share of the reference model's tensors that lie in the trained policy's memory."),
    Metric("kto_balance", "ratio", "both", "Weighted number of desirable over undesirable rows (KTO)."),
    # Progress and speed
    Metric("silence_s", "s", "high", "Seconds without a sign of life from the trainer; recorded only while it is silent."),
    Metric("episodes", "completions", "", "Completions sampled so far (PPO)."),
    Metric("episodes_per_second", "1/s", "low", "Completions sampled a second since the start (PPO, whole numbers)."),
    Metric("runtime", "s", "", "Duration of the evaluation."),
    Metric("samples_per_second", "1/s", "low", "Rows of the training batch processed a second of training steps."),
    Metric("steps_per_second", "1/s", "low", "Steps a second."),
    Metric("tokens_per_second", "tokens/s", "low", "Tokens processed a second of training steps."),
    Metric("tokens_in", "tokens", "", "Tokens processed since the event before; stands in `data_slice`."),
    Metric("tokens_out", "tokens", "", "Tokens generated since the event before; stands in `data_slice`."),
    Metric("train_runtime", "s", "", "Duration of the training."),
    Metric("train_loss", "loss", "high", "Mean loss of the whole training; hides NaN (transformers replaces it)."),
    Metric("train_samples_per_second", "1/s", "", "Training rows a second over the whole training."),
    Metric("train_steps_per_second", "1/s", "", "Steps a second over the whole training."),
    Metric("total_flos", "FLOP", "", "Floating-point operations, as transformers estimates them."),
    # Resources (means and peaks of the samples since the event before)
    Metric("cpu_percent", "% of one core", "", "CPU use of this process and its children."),
    Metric("host_cpu_percent", "%", "", "CPU use of the host."),
    Metric("memory_bytes", "bytes", "high", "Resident memory of this process."),
    Metric("memory_peak_bytes", "bytes", "high", "Largest resident memory of this process."),
    Metric("host_memory_frac", "share", "high", "Share of the host's memory in use, by all processes."),
    Metric("host_memory_peak_frac", "share", "high", "Largest share of the host's memory in use."),
    Metric("gpu_percent", "%", "low", "Use of this process's GPUs."),
    Metric("gpu_memory_bytes", "bytes", "high", "Memory in use on this process's GPUs, the fullest one."),
    Metric("gpu_memory_peak_bytes", "bytes", "high", "Largest memory in use on one of this process's GPUs."),
    Metric("gpu_memory_frac", "share", "high", "Share of the memory in use, on the fullest of this process's GPUs."),
    Metric("gpu_memory_peak_frac", "share", "high", "Largest share of the memory in use on one of this process's GPUs."),
    # Checkpoints
    Metric("param_norm", "L2 norm", "both", "Norm of all weights in the checkpoint."),
    Metric("param_nonfinite", "count", "high", "Weights that are NaN or Inf: in the checkpoint, or in the model of a run that died."),
    Metric("param_update_ratio", "ratio", "both", "Norm of the change since the last checkpoint over the norm, on sampled weights."),
    Metric("param_unchanged_frac", "share", "high", "Share of tensors whose sampled weights are the same as in the last checkpoint."),
    Metric("param_unmoved_frac", "share", "high",
           "Share of trained tensors of which no sampled weight has changed since training began; in training events."),
    Metric("param_tensors", "count", "", "Tensors in the checkpoint."),
    Metric("checkpoint_bytes", "bytes", "", "Size of the checkpoint's weight files."),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}

# What a person looks at first, in this order.
HEADLINE: tuple[str, ...] = (
    "reward_mean", "loss", "kl_mean", "entropy_mean", "clip_frac", "value_loss", "reward_margin", "pair_accuracy",
    "token_accuracy", "grad_norm", "lr", "truncated_frac", "length_mean", "frac_zero_std", "eval_loss",
    "eval_reward_mean", "eval_pair_accuracy",
)

# What people type, and what other tools call it. Only where it means the same quantity whatever the trainer.
SYNONYMS: dict[str, str] = {
    "accuracy": "pair_accuracy",
    "clip_fraction": "clip_frac",
    "clip_ratio": "clip_frac",
    "clipfrac": "clip_frac",
    "entropy": "entropy_mean",
    "gradient_norm": "grad_norm",
    "kl": "kl_mean",
    "kl_divergence": "kl_mean",
    "learning_rate": "lr",
    "mean_token_accuracy": "token_accuracy",
    "reward": "reward_mean",
}

# What any classifier logs; among TRL's trainers it is one of preferences.
OF_ANYTHING = ("accuracy", "eval_accuracy")

# Families of names that carry a name of the user's: one reward function each. TRL 0.23 logs NaN, and 1.x None, for a
# function that returned None for every sample of the batch, which is how multi-task rewards are written.
_REWARD_FUNCTION = Metric(
    "rewards/<function>/mean", "reward", "low",
    "Mean (or `/std`) of one reward function; NaN or None where it judged no sample of the batch.", True,
)
PATTERNS: tuple[Metric, ...] = (_REWARD_FUNCTION,)


def lookup(name: str) -> Metric | None:
    """Returns the table's row for a canonical name, `eval_` prefix allowed, or None for a custom metric."""
    metric = METRICS.get(name)
    if metric is None and name.startswith("eval_"):
        return lookup(name[len("eval_"):])
    if metric is None and name.startswith("rewards/") and name.endswith(("/mean", "/std")):
        return _REWARD_FUNCTION
    return metric


# What a metric in one of these units measures is the machine and the hour, and not the training.
_MACHINE_UNITS = frozenset({"s", "1/s", "tokens/s", "%", "% of one core", "bytes"})
# Shares of a machine's memory, and what `evaluate(metric_key_prefix=...)` or a user puts another name in front of.
_MACHINE_ENDINGS = ("memory_frac", "memory_peak_frac", "runtime", "_per_second", "_seconds", "_time")


def of_the_machine(name: str) -> bool:
    """Whether a metric is a time, a speed or a resource: two runs that are the same have it different.

    Example:
        >>> of_the_machine("eval_runtime"), of_the_machine("test_samples_per_second"), of_the_machine("loss")
        (True, True, False)
    """
    metric = lookup(name)
    if metric is not None and metric.unit in _MACHINE_UNITS:
        return True
    return name.endswith(_MACHINE_ENDINGS)


# What every run has, and what says nothing of how it goes.
_COUNTERS = frozenset({"epoch", "num_tokens", "num_input_tokens_seen", "episodes", "total_flos", "train_loss"})
_ORDER = {name: index for index, name in enumerate(HEADLINE)}


def headline(names: Iterable[str], fill: int = 8) -> list[str]:
    """Those of a run's metrics that a person looks at first, in order.

    They are those of `HEADLINE`, then the mean of each reward function. Which of them a trainer has follows from what it logs.

    Args:
        names: What the run logs, by canonical names, in order of appearance.
        fill: If they are fewer than this, others make up the number: in a run of one's own metrics these are what counts.

    Example:
        >>> headline(["mine", "runtime", "lr", "loss"], fill=3)
        ['loss', 'lr', 'mine']
    """
    known: list[tuple[int, str]] = []
    others = []
    for name in names:
        if name in _ORDER:
            known.append((_ORDER[name], name))
        elif name.startswith("rewards/") and name.endswith("/mean"):
            known.append((len(_ORDER), name))
        elif not of_the_machine(name) and name.removeprefix("eval_") not in _COUNTERS:
            others.append(name)
    chosen = [name for _, name in sorted(known, key=lambda item: item[0])]
    return chosen + others[: max(0, fill - len(chosen))]


def canonical_name(name: str) -> str:
    """Resolves a name that a person typed: a synonym becomes the canonical name, anything else stays as it is.

    Example:
        >>> canonical_name("kl"), canonical_name("eval_kl"), canonical_name("my_metric")
        ('kl_mean', 'eval_kl_mean', 'my_metric')
    """
    if name in METRICS:
        return name
    if name.startswith("eval_"):
        return "eval_" + canonical_name(name[len("eval_"):])
    return SYNONYMS.get(name, name)


def canonical_names(metrics: Mapping[str, _V]) -> dict[str, _V]:
    """Resolves the names of one record. Where two would become one, the later keeps its own: no value is lost.

    Example:
        >>> canonical_names({"kl": 0.1, "kl_mean": 0.2, "reward": 1.0})
        {'kl': 0.1, 'kl_mean': 0.2, 'reward_mean': 1.0}
    """
    named: dict[str, _V] = {}
    for given, value in metrics.items():
        name = canonical_name(given)
        named[given if name != given and (name in metrics or name in named) else name] = value
    return named


def typed_names(metrics: Mapping[str, _V]) -> dict[str, _V]:
    """`canonical_names` of what somebody logs by hand, whatever they train.

    Their accuracy stays as it is: it need not be one of preferences, which it would be judged as.

    Example:
        >>> typed_names({"kl": 0.1, "accuracy": 0.9})
        {'kl_mean': 0.1, 'accuracy': 0.9}
    """
    named = canonical_names({name: value for name, value in metrics.items() if name not in OF_ANYTHING})
    return {**named, **{name: value for name, value in metrics.items() if name in OF_ANYTHING}}


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """A hint for an error message: ``Did you mean 'kl_mean'?``, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
