"""Any other Trainer: what transformers logs is known, the rest passes under its own name."""

from ._base import Family

FAMILY = Family(name="generic", rank=100)
