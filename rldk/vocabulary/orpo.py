"""Odds-ratio preference optimisation (`ORPOTrainer`): no reference model; log-probabilities are means over tokens."""

from ._base import PREFERENCE, Family, Term

FAMILY = Family(
    name="orpo",
    configs=("ORPOConfig",),
    marks=(frozenset({"log_odds_ratio"}),),
    terms=(
        *PREFERENCE,
        Term("logps/chosen", "logp_chosen", "nats/token"),
        Term("logps/rejected", "logp_rejected", "nats/token"),
        Term("rewards/chosen", "reward_chosen", "nats/token x beta", "beta times the log-probability, no reference"),
        Term("rewards/rejected", "reward_rejected", "nats/token x beta", "beta times the log-probability, no reference"),
        Term("rewards/margins", "reward_margin", "nats/token x beta"),
        Term("nll_loss", "nll_loss", note="over prompt and answer"),
        Term("log_odds_chosen", "log_odds_chosen"),
        Term("log_odds_ratio", "log_odds_ratio"),
    ),
    rank=30,
)
