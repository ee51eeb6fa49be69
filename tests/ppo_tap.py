"""TRL's own PPO trainer, overheard: the tensors of its rollouts, losses and gradients, read from its running `train()`.

Nothing of TRL is replaced or computed again. `Accelerator.accumulate`, which TRL enters around each forward pass with
gradient, is wrapped so that the weights before the pass and the local variables of `train()` after it are kept, and
PyTorch's own hook before an optimizer step keeps the gradients.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

_OF_ROLLOUT = (
    "query_responses", "responses", "logprobs", "ref_logprobs", "values", "scores", "rewards", "kl", "advantages",
    "returns", "padding_mask", "padding_mask_p1",
)
_OF_PASS = (
    "loss", "pg_loss", "vf_loss", "pg_clipfrac", "vf_clipfrac", "approxkl", "entropy", "ratio", "new_logprobs", "vpred",
)


@dataclass
class Pass:
    """One forward pass with gradient.

    Attributes:
        rows: Which rows of the rollout.
        weights: Of the policy and the value model, before it.
        told: TRL's local variables after it, by TRL's names.
        gradients: As the optimizer is about to use them, after all passes of a step; None where no step was made.
    """

    rows: Any
    weights: dict[str, Tensor]
    told: dict[str, Tensor]
    gradients: dict[str, Tensor] | None = None


@dataclass
class Update:
    """One update: its rollout by TRL's names, its passes, and what TRL logged of it."""

    context_length: int
    rollout: dict[str, Tensor]
    passes: list[Pass] = field(default_factory=list)
    logged: dict[str, Any] = field(default_factory=dict)


class Tap(TrainerCallback):
    """Overhears one PPO trainer of TRL's.

    Args:
        trainer: The trainer, before `train()`.

    Attributes:
        updates: What was overheard.
    """

    def __init__(self, trainer: Any) -> None:
        self.updates: list[Update] = []
        self._train = type(trainer).train.__code__
        self._model = trainer.model
        self._gradients: dict[str, Tensor] | None = None
        self._whole: Update | None = None
        self._accumulate = trainer.accelerator.accumulate
        trainer.accelerator.accumulate = self._listen
        trainer.optimizer.optimizer.register_step_pre_hook(self._before_step)
        trainer.add_callback(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The log of an update comes after its passes."""
        self.updates[-1].logged = dict(logs)
        self._whole = None

    def _weights(self) -> Any:
        # TRL's module has the critic's backbone in two places, and a shared one in three: each of its names is wanted.
        return self._model.named_parameters(remove_duplicate=False)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._gradients = {
            name: weight.grad.clone() for name, weight in self._weights() if weight.grad is not None
        }

    @contextlib.contextmanager
    def _listen(self, *models: Any) -> Any:
        weights = {name: weight.detach().clone() for name, weight in self._weights()}
        self._gradients = None
        with self._accumulate(*models):
            yield
        frame = sys._getframe()
        while frame.f_code is not self._train:
            assert frame.f_back is not None
            frame = frame.f_back
        heard = frame.f_locals
        if self._whole is None:
            self._whole = Update(heard["context_length"], _kept(heard, _OF_ROLLOUT))
            self.updates.append(self._whole)
        rows = torch.as_tensor(heard["micro_batch_inds"])
        self._whole.passes.append(Pass(rows, weights, _kept(heard, _OF_PASS), self._gradients))


def _kept(heard: dict[str, Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: heard[name].detach().clone() for name in names}
