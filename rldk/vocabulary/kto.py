"""Kahneman-Tversky optimisation (`KTOTrainer`): unpaired examples, each desirable or undesirable."""

from ._base import PREFERENCE, Family, Term

FAMILY = Family(
    name="kto",
    configs=("KTOConfig",),
    marks=(
        frozenset({"kl", "logps/chosen"}),
        frozenset({"kl", "logps/rejected"}),
        frozenset({"count/chosen"}),
        frozenset({"count/rejected"}),
    ),
    terms=(
        *PREFERENCE,
        Term("logits/chosen", "logit_chosen", "logits, summed over positions and vocabulary", trl="<1.9"),
        Term("logits/rejected", "logit_rejected", "logits, summed over positions and vocabulary", trl="<1.9"),
        Term("kl", "kl_mean", "nats/sequence", "on mismatched prompt and completion pairs, clamped at 0"),
    ),
    rank=40,
)
