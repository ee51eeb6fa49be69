"""Weights that should be trained and are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter

# Before this many steps, a trainer that samples may not have met a reward yet, and then has no gradient by right.
_SPARSE_STEPS = 50
_SAMPLING = frozenset({"grpo", "rloo", "online_dpo", "ppo"})
# Below this share of the full rate, rounding can swallow the change of weights around 1.
_WARM = 0.1


class FrozenParameters(Detector):
    """Few or no weights are trained, or trained weights do not move.

    What it sees: when training begins, `trainable_frac` (share of the weights with `requires_grad`) and
    `uses_adapter`; during training, `param_unmoved_frac` (share of trained tensors that are still as they began, looked
    at after 5 steps and at each doubling); in checkpoints, `param_unchanged_frac` (since the checkpoint before).
    Why it matters: a frozen model, a LoRA whose `target_modules` match next to nothing, or an optimizer that holds other
    tensors than the model's can show a healthy gradient norm while the model stays as it is.
    When it fires: no weight is trained (critical); a share below `least` (0.01), or below `least_adapter` (1e-5) with an
    adapter, is (warning). At two looks more than half of the trained tensors have not moved although the learning rate
    was above 0 (warning), or none has (critical); and a checkpoint in which nothing has changed (critical).
    What to do: check `requires_grad`, `target_modules` and `modules_to_save`; that the optimizer was built from this
    model's parameters; with `gradient_checkpointing=True`, `use_reentrant=False` or `enable_input_require_grads()`.
    False alarms: training a head alone, or biases alone, on purpose: lower `least`. Low warm-up rates, which rounding
    swallows, the steps that a gradient scaler skips, and the first steps of trainers that may not have met a reward yet
    are waited for. Checkpoints of a
    partly frozen model hold frozen tensors by right, so there only "nothing at all" counts.
    Sources: microsoft/LoRA issue 120, TRL issue 2486, TrainCheck's case AC-2665; measured: with all but one bias frozen
    the loss is flat and grad_norm is 0.03, not 0. Ranks of 1 on a 70B model train a share of 3e-5: the limits are chosen
    here.

    Args:
        least: Smallest share of trained weights without an alert.
        least_adapter: The same with a PEFT adapter.
    """

    code = "frozen_parameters"
    title = "Weights are not being trained"
    watches = ("trainable_frac", "param_unmoved_frac", "param_unchanged_frac")
    advice = (
        "Check requires_grad, target_modules and modules_to_save, that the optimizer holds this model's parameters, and "
        "with gradient_checkpointing=True set use_reentrant=False in gradient_checkpointing_kwargs."
    )
    phases = frozenset({"setup", "train", "checkpoint"})

    def __init__(self, *, least: float = 0.01, least_adapter: float = 1e-5) -> None:
        self.least = number_parameter(self.code, "least", least, low=0.0, high=1.0)
        self.least_adapter = number_parameter(self.code, "least_adapter", least_adapter, low=0.0, high=1.0)
        self._rate: float | None = None  # the full learning rate, where the arguments say it
        self._highest_lr: float | None = None  # of the whole run
        self._lr_here: float | None = None  # highest since training began, or went on: what the weights were sampled at
        self._lr_since: float | None = None  # highest since the checkpoint before
        self._gradient: bool | None = None  # whether a gradient norm above 0 was logged; None if none was logged
        self._at_start: Finding | None = None
        self._unmoved: Finding | None = None
        self._still = 0  # looks in a row at which most tensors had not moved

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Takes note of the full learning rate. A resume begins with a new sample of the weights."""
        self._lr_here, self._still = None, 0
        rate = arguments.get("learning_rate")
        self._rate = rate if isinstance(rate, (int, float)) and 0.0 < rate < 1e9 else None

    def judge(self, event: Event) -> Answer:
        """Notes the learning rate and the gradient on the way; judges events that say something of the weights."""
        metrics = event.metrics
        lr = metrics.get("lr")
        if lr is not None and lr >= 0.0:
            if self._highest_lr is None or lr > self._highest_lr:
                self._highest_lr = lr
            if self._lr_here is None or lr > self._lr_here:
                self._lr_here = lr
            if self._lr_since is None or lr > self._lr_since:
                self._lr_since = lr
        if not self._gradient:
            norm = metrics.get("grad_norm")
            if norm is not None:
                self._gradient = norm != 0.0
        share = metrics.get("param_unmoved_frac")
        if share is not None:
            return self._moved(event, share)
        share = metrics.get("trainable_frac")
        if share is not None:
            return self._begin(share, metrics.get("uses_adapter") == 1.0)
        share = metrics.get("param_unchanged_frac")
        if share is not None:
            return self._saved(share)
        return ABSENT

    def _begin(self, share: float, adapter: bool) -> Answer:
        if share != share:
            return WARMING
        least = self.least_adapter if adapter else self.least
        self._at_start = None
        if share > 0.0 and share >= least:
            return FINE
        if share <= 0.0:
            message, severity = "trainable_frac is 0: no weight of the model is trained.", Severity.CRITICAL
        else:
            message = (
                f"trainable_frac is {number(share)}: only that share of the weights is trained, "
                f"{'by an adapter' if adapter else 'and the model has no adapter'}."
            )
            severity = Severity.WARNING
        self._at_start = Finding("trainable_frac", share, least, message, severity, {"uses_adapter": float(adapter)})
        return self._at_start

    def _moved(self, event: Event, share: float) -> Answer:
        if share != share:
            return WARMING
        lr = self._lr_here
        waiting = lr == 0.0 or (lr is not None and self._rate is not None and lr < _WARM * self._rate)
        if self._gradient is False and event.step < _SPARSE_STEPS and event.model_info.get("trainer") in _SAMPLING:
            waiting = True
        if share > 0.5 and waiting:
            return self._at_start or WARMING
        self._unmoved = None
        self._still = self._still + 1 if share > 0.5 else 0
        if self._still == 1:
            return self._at_start or WARMING  # a gradient scaler may have skipped the first steps, an expert got no token
        if share > 0.5:
            message = (
                f"param_unmoved_frac is {number(share)} at step {event.step}: of that share of the trained tensors no "
                f"sampled weight has changed since training began{'' if lr is None else f', at learning rates up to {number(lr)}'}."
            )
            severity = Severity.CRITICAL if share >= 1.0 else Severity.WARNING
            evidence = {"lr": lr} if lr is not None else {}
            self._unmoved = Finding("param_unmoved_frac", share, 0.5, message, severity, evidence)
        return self._worst()

    def _saved(self, share: float) -> Answer:
        since, self._lr_since = self._lr_since, None
        if share != share:
            return WARMING
        # At the very end of a schedule the steps are too small to be seen in the weights.
        if share < 1.0 or (since is not None and self._highest_lr is not None and since <= 0.01 * self._highest_lr):
            return self._worst()
        message = "param_unchanged_frac is 1: no tensor of the checkpoint differs from the checkpoint before."
        evidence = {"lr": since} if since is not None else {}
        return Finding("param_unchanged_frac", share, 1.0, message, Severity.CRITICAL, evidence)

    def _worst(self) -> Answer:
        """What was found when training began stays true; what is found of the movement outranks it if worse."""
        start, moved = self._at_start, self._unmoved
        if start is None or moved is None:
            return moved or start or FINE
        return moved if moved.severity.rank > start.severity.rank else start

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A frozen model, a tiny part, tensors that stay, and what only looks like it."""
        log = {"loss": 2.0, "grad_norm": 1.0, "lr": 1e-4}
        look = {**log, "param_unmoved_frac": 1.0}
        yield Example("nothing is trained", [{"trainable_frac": 0.0, "uses_adapter": 0.0}, log], [1])
        yield Example("one bias is trained", [{"trainable_frac": 1e-4, "uses_adapter": 0.0}, log], [1])
        yield Example("the optimizer holds another model", [*[log] * 4, look, *[log] * 4, look], [10])
        half = {**log, "param_unmoved_frac": 0.6}
        yield Example("half of the adapter is unused", [*[log] * 4, half, *[log] * 4, half, *[log] * 9, half], [10])
        yield Example("an expert is used late", [*[log] * 4, half, *[log] * 4, {**log, "param_unmoved_frac": 0.1}], [])
        yield Example("an adapter", [{"trainable_frac": 6e-4, "uses_adapter": 1.0}, *[log] * 4], [])
        yield Example("all move", [{"trainable_frac": 1.0}, *[log] * 4, {**log, "param_unmoved_frac": 0.0}], [])
        still = {**log, "lr": 0.0}
        yield Example("a rate of 0 is another detector's", [*[still] * 4, {**still, "param_unmoved_frac": 1.0}], [])
        yield Example("frozen towers in a checkpoint", [*[log] * 4, {"param_unchanged_frac": 0.7}], [])
        yield Example("the same checkpoint twice", [*[log] * 4, {"param_unchanged_frac": 1.0}], [5])
