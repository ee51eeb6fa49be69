"""Direct preference optimisation (`DPOTrainer`)."""

from ._base import PREFERENCE, Family, Term

_PER_TOKEN = "with the ipo loss, a mean over tokens up to TRL 0.28"

FAMILY = Family(
    name="dpo",
    configs=("DPOConfig",),
    marks=(frozenset({"rewards/accuracies"}), frozenset({"rewards/margins", "logps/chosen"})),
    terms=(
        *PREFERENCE,
        Term("logps/chosen", "logp_chosen", "nats/token", _PER_TOKEN, "<0.29", ("ipo",)),
        Term("logps/rejected", "logp_rejected", "nats/token", _PER_TOKEN, "<0.29", ("ipo",)),
        Term("rewards/chosen", "reward_chosen", "nats/token x beta", _PER_TOKEN, "<0.29", ("ipo",)),
        Term("rewards/rejected", "reward_rejected", "nats/token x beta", _PER_TOKEN, "<0.29", ("ipo",)),
        Term("rewards/margins", "reward_margin", "nats/token x beta", _PER_TOKEN, "<0.29", ("ipo",)),
    ),
    rank=60,
)
