"""PPO for language models on transformers' own training loop, where TRL ships none or not this: see `trainer`."""

from .config import PPOConfig
from .trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
