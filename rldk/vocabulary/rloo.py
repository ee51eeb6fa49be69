"""REINFORCE leave-one-out (`RLOOTrainer`)."""

from . import _group
from ._base import Family, Term

FAMILY = Family(
    name="rloo",
    configs=("RLOOConfig",),
    terms=(
        *_group.TERMS,
        Term("kl", "kl_mean", "nats/token", "k1 estimator of the sampling policy, can be negative"),
        Term("reward", "reward_mean", note="after clipping and minus beta times the KL", trl="<0.27"),
        Term("reward_std", "reward_std", "reward, mean of the deviations within groups",
             "after clipping and minus beta times the KL", "<0.27"),
        Term("frac_reward_zero_std", "frac_zero_std", note="of the rewards minus beta times the KL: about 0 unless beta is"),
    ),
)
