"""Reward modelling (`RewardTrainer`)."""

from ._base import Family, Term

FAMILY = Family(
    name="reward",
    configs=("RewardConfig",),
    marks=(frozenset({"mean_reward", "min_reward"}), frozenset({"eval_accuracy", "eval_loss"})),
    terms=(
        Term("accuracy", "pair_accuracy"),
        Term("margin", "reward_margin", "score", "score of the chosen minus that of the rejected answer"),
        Term("mean_reward", "score_mean"),
        Term("min_reward", "score_min", note="mean over micro-batches"),
        Term("max_reward", "score_max", note="mean over micro-batches"),
    ),
    rank=70,
)
