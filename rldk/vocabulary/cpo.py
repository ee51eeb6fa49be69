"""Contrastive preference optimisation (`CPOTrainer`): no reference model.

Log-probabilities are sums over a sequence, but means over its tokens with `loss_type` "simpo" or "ipo".
"""

from ._base import PREFERENCE, Family, Term

FAMILY = Family(
    name="cpo",
    configs=("CPOConfig",),
    marks=(frozenset({"nll_loss", "rewards/margins"}),),
    terms=(
        *PREFERENCE,
        Term("logps/chosen", "logp_chosen", "nats/token", loss_types=("ipo", "simpo")),
        Term("logps/rejected", "logp_rejected", "nats/token", loss_types=("ipo", "simpo")),
        Term("rewards/chosen", "reward_chosen", note="beta times the log-probability, no reference"),
        Term("rewards/rejected", "reward_rejected", note="beta times the log-probability, no reference"),
    ),
    rank=50,
)
