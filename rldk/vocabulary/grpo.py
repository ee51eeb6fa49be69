"""Group-relative policy optimisation (`GRPOTrainer`)."""

from . import _group
from ._base import Family, Term

FAMILY = Family(
    name="grpo",
    configs=("GRPOConfig",),
    # RLOO logs the same keys: without arguments a group-sampling run is read as GRPO.
    marks=(frozenset({"reward", "reward_std"}), frozenset({"reward", "completions/mean_length"})),
    terms=(*_group.TERMS, Term("kl", "kl_mean", "nats/token", "k3 estimator, never negative")),
    rank=30,
)
