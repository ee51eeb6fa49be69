"""What can be known when training begins: the arguments, the first rows, the weights. Read once; nothing is changed.

These facts are judged before the first step, so that a run that cannot work is named before it costs anything. They are
not a series: they stand in `model_info.setup` of the run's first event, and detectors see them as an event of their own.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..._guard import Guard

__all__ = ["LabelPeek", "facts_of", "judged_arguments", "trainer_of"]

# Arguments that decide how a metric is to be judged, or whether there can be a gradient at all.
_JUDGED = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "max_grad_norm", "logging_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "max_length", "packing",
    "beta", "loss_type", "label_smoothing", "desirable_weight", "undesirable_weight",
    "num_generations", "num_iterations", "temperature", "top_k", "generation_kwargs", "epsilon", "epsilon_high",
    "scale_rewards", "reward_weights", "importance_sampling_level", "max_completion_length", "mask_truncated_completions",
    "vllm_importance_sampling_mode", "use_vllm",
    "kl_coef", "kl_estimator", "cliprange", "num_ppo_epochs", "num_mini_batches", "response_length", "stop_token",
)
_ROWS_PEEKED = 16
_ROWS_COUNTED = 10_000
_PLAIN = (bool, int, float, str, type(None))


def trainer_of(state: Any) -> Any:
    """The trainer whose state this is, found on the stack: callbacks are not given it. None if it is not there."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if getattr(owner, "state", None) is state and hasattr(owner, "callback_handler"):
            return owner
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return None


def judged_arguments(arguments: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """The arguments that detectors may need, by TRL's own names."""
    chosen = {name: _plain(arguments[name]) for name in _JUDGED if name in arguments}
    chosen["max_steps"] = state.max_steps
    if isinstance(getattr(state, "logging_steps", None), int):
        chosen["logging_steps"] = state.logging_steps  # in whole steps, where the argument may be a share
    return chosen


def facts_of(args: Any, state: Any, family: str, hook: Mapping[str, Any], trainer: Any, guard: Guard) -> dict[str, float]:
    """Measures what can be measured of the set-up. What cannot is absent.

    Args:
        args: The trainer's arguments.
        state: Its state.
        family: The trainer's family.
        hook: What the trainer hands to `on_train_begin`.
        trainer: The trainer, if it was found.
        guard: Counts what goes wrong in a single measurement.
    """
    facts: dict[str, float] = {}
    model = hook.get("model")
    with _random_state_kept():
        for place, measure in (
            ("trainable weights", lambda: _weights(model)),
            ("warm-up", lambda: _warm_up(args, state)),
            ("first rows", lambda: _labels(args, hook, model) if family == "sft" else {}),
            ("reference model", lambda: _reference(model, getattr(trainer, "ref_model", None))),
            ("balance of labels", lambda: _balance(args, hook) if family == "kto" else {}),
        ):
            facts.update(guard.call(f"set-up: {place}", measure) or {})
    return facts


def _weights(model: Any) -> dict[str, float]:
    if model is None:
        return {}
    # DeepSpeed's ZeRO-3 leaves empty parameters behind, and keeps their size beside them.
    sizes = [(getattr(item, "ds_numel", item.numel()), item.requires_grad) for item in model.parameters()]
    total = sum(size for size, _ in sizes)
    if not total:
        return {}
    adapter = any(hasattr(part, "peft_config") for part in (model, getattr(model, "policy", None)))
    return {"trainable_frac": sum(size for size, trains in sizes if trains) / total, "uses_adapter": float(adapter)}


def _warm_up(args: Any, state: Any) -> dict[str, float]:
    if state.max_steps <= 0 or not callable(getattr(args, "get_warmup_steps", None)):
        return {}
    return {"warmup_frac": args.get_warmup_steps(state.max_steps) / state.max_steps}


def _labels(args: Any, hook: Mapping[str, Any], model: Any) -> dict[str, float]:
    """Reads the first rows as the model will be given them: through the collator, one by one."""
    loader = hook.get("train_dataloader")
    dataset = _plain_dataset(loader)
    collate = getattr(loader, "collate_fn", None)
    count = LabelCount(args, _end_tokens(hook.get("processing_class"), model))
    # A collator of the user's own may count its calls: only one of the libraries' is called out of turn.
    if dataset is not None and callable(collate) and type(collate).__module__.partition(".")[0] in ("trl", "transformers"):
        for index in range(min(_ROWS_PEEKED, len(dataset))):
            batch = collate([dataset[index]])
            if not isinstance(batch, Mapping) or "labels" not in batch:
                return {}
            count.add(batch)
    return count.facts()


class LabelCount:
    """Counts rows without a label, and rows whose labels never end the text.

    Args:
        args: The trainer's arguments.
        ends: Ids of the end tokens; without any nothing is counted.
    """

    def __init__(self, args: Any, ends: set[int]) -> None:
        self._ends = ends
        self._limit = getattr(args, "max_length", None) or math.inf
        self._packed = bool(getattr(args, "packing", False) or getattr(args, "padding_free", False))
        self.rows = self._empty = self._whole = self._ended = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Takes a collated batch with `labels`, one row a text."""
        mask: Any = batch.get("attention_mask")
        # One row a text: some collators make masks of four dimensions, or objects of other kinds.
        plain = self._ends and getattr(mask, "shape", None) == batch["labels"].shape
        lengths = mask.sum(-1).tolist() if plain else []
        for number, labels in enumerate(batch["labels"].tolist() if self._ends else ()):
            wanted = {token for token in labels if token != -100}
            self.rows += 1
            self._empty += not wanted
            # A row that was cut at max_length has lost its end, as it may.
            length = lengths[number] if number < len(lengths) else len(labels)
            if wanted and (self._packed or length < self._limit):
                self._whole += 1
                self._ended += bool(wanted & self._ends)

    def facts(self) -> dict[str, float]:
        """The shares; absent where no row could tell."""
        facts = {"empty_label_frac": self._empty / self.rows} if self.rows else {}
        if self._whole:
            facts["eos_label_frac"] = self._ended / self._whole
        return facts


class LabelPeek:
    """Counts the labels that the model is given in its first steps, where they could not be read before.

    Args:
        args: The trainer's arguments.
        hook: What the trainer hands to `on_train_begin`.
        guard: Catches what goes wrong, since it is called from inside the model.
    """

    def __init__(self, args: Any, hook: Mapping[str, Any], guard: Guard) -> None:
        model = hook["model"]
        self._count = LabelCount(args, _end_tokens(hook.get("processing_class"), model))
        self._guard = guard
        self._seen = 0
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: Any, positional: Any, named: Mapping[str, Any]) -> None:
        import torch  # loaded in any training process

        # Not while evaluating; and a compiler that traces the model finds nothing here.
        if torch.compiler.is_compiling() or self._seen >= _ROWS_PEEKED or not module.training:
            return
        labels: Any = named.get("labels")
        if getattr(labels, "ndim", 0) == 2:
            self._seen += len(labels)
            self._guard.call("look at the labels", self._count.add, named)

    def end(self) -> dict[str, float]:
        """Lets go of the model and gives the facts."""
        self._handle.remove()
        return self._count.facts()


def _end_tokens(processor: Any, model: Any) -> set[int]:
    """Ids that end a text, by the tokenizer and by the model's generation config; several for many chat models."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ends: set[int] = set()
    for given in (
        getattr(tokenizer, "eos_token_id", None),
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
    ):
        ends |= {given} if isinstance(given, int) else set(given or ())
    return ends


def _reference(model: Any, reference: Any) -> dict[str, float]:
    """The share of the reference's weights that lie in the policy's own memory: trained along, it measures nothing."""
    policy = getattr(model, "policy", model)
    if policy is None or reference is None or not hasattr(reference, "parameters"):
        return {}
    places = {_place(item) for item in policy.parameters() if item.requires_grad}
    theirs = [place for item in reference.parameters() if (place := _place(item))]
    return {"ref_shared_frac": sum(place in places for place in theirs) / len(theirs)} if theirs else {}


def _place(item: Any) -> int:
    """Where a parameter lies, 0 for one without memory of its own: a sharded one (DTensor) has it in its local part."""
    item = item.detach()
    item = item.to_local() if hasattr(item, "to_local") else item
    return int(item.data_ptr()) if item.numel() else 0


def _balance(args: Any, hook: Mapping[str, Any]) -> dict[str, float]:
    dataset = _plain_dataset(hook.get("train_dataloader"))
    if dataset is None or "label" not in dataset.column_names:
        return {}
    labels = dataset.select(range(min(len(dataset), _ROWS_COUNTED)))["label"]
    good = sum(map(bool, labels))
    bad = len(labels) - good
    weight = args.desirable_weight * good
    against = args.undesirable_weight * bad
    # Finite, since it is to stand in JSON: a billion to one for a side without rows.
    return {"kto_balance": min(weight / max(against, 1e-9), 1e9)} if weight or against else {}


def _plain_dataset(loader: Any) -> Any:
    """The loader's dataset if reading rows of it has no effect: one of the library `datasets`, without a transform."""
    dataset = getattr(loader, "dataset", None)
    module = sys.modules.get("datasets")
    if module is None or not isinstance(dataset, module.Dataset) or dataset.format["type"] == "custom":
        return None
    return dataset


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """A collator may draw random numbers: the training must not notice that one was asked."""
    import torch  # loaded in any training process

    python, numbers = random.getstate(), sys.modules.get("numpy")
    state = numbers.random.get_state() if numbers is not None else None
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            if numbers is not None:
                numbers.random.set_state(state)


def _plain(value: Any) -> Any:
    """A value that JSON has; its text for anything else."""
    if isinstance(value, _PLAIN):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value[:100]]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in list(value.items())[:100]}
    return str(getattr(value, "value", value))
