"""Supervised fine-tuning (`SFTTrainer`)."""

from ._base import Family

FAMILY = Family(
    name="sft",
    configs=("SFTConfig",),
    marks=(frozenset({"mean_token_accuracy", "loss"}),),
    rank=80,  # DPO logs mean_token_accuracy too, from TRL 1.x on
)
