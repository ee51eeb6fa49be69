"""Online preference optimisation (`OnlineDPOTrainer`, and NashMD and XPO, whose arguments derive from its)."""

from ._base import PREFERENCE, Family, Term

FAMILY = Family(
    name="online_dpo",
    configs=("OnlineDPOConfig",),
    marks=(frozenset({"objective/kl", "rewards/margins"}), frozenset({"objective/scores_margin"})),
    terms=(
        *PREFERENCE,
        Term("objective/kl", "kl_mean", "nats/sequence", "k1 estimator summed over all positions, padding included"),
        Term("objective/entropy", "entropy_seq", note="summed over all positions, padding included"),
        Term("objective/non_score_reward", "kl_penalty"),
        Term("objective/rlhf_reward", "reward_penalised"),
        Term("objective/scores", "reward_mean"),
        Term("objective/scores_margin", "score_margin"),
        Term("val/contain_eos_token", "eos_frac", note="of the first process"),
        Term("beta", "beta"),
    ),
    rank=20,
)
