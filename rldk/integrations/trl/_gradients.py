"""Gradient norms of PPO's policy and value model, apart: measured as the optimizer is about to step.

TRL's own PPOTrainer logs no gradient norm, and its gradients are gone by the next hook of a callback; the norm of a
transformers Trainer is of both models together. So the optimizer is asked: a hook of torch's runs before each real step
(not at the micro-batches of an accumulation) and reads the gradients where they lie.

The norms are of the gradients that the optimizer is about to apply. TRL's own PPO does not clip, so there they are as
computed. A transformers Trainer has clipped by then, and by `on_pre_optimizer_step` too: there they are after clipping, and
`grad_norm`, which such a trainer logs itself, is before it. Their proportion is that of the unclipped gradients. Under fp16
they are without the loss scale, and steps that the gradient scaler skips are left out.

What is absent: everything where gradients are split over processes or kept elsewhere (DeepSpeed, FSDP, tensor
parallelism), a part without gradients, a log without a step.

Cost (`python -m benchmarks.cost --only gradients`; one CPU core, medians, in turns, a batch of 4 x 32 tokens): 0.17 ms of a
step of 5.3 ms, 3 %, for 42 tensors of 12 thousand weights; 4.2 ms of 285 ms, 1.5 %, for 294 tensors of 21 million. It is one
pass over the gradients, whatever the batch; of whole PPO runs of the tiny model, which also sample, 1 to 2 %. On a
GPU some ten operations are queued a step; nothing waits for them before the log, where the trainer reads its own metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..._guard import Guard
from ._stop import ignores_stop

__all__ = ["GradientNorms", "watch_gradients"]

_PLACE = "gradient norms"
# Of accelerate's kinds of parallel training those in which one process does not hold a whole gradient as `param.grad`.
_SPLIT = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
_POLICY, _VALUE, _REST = range(3)


def watch_gradients(args: Any, hook: Mapping[str, Any], trainer: Any, guard: Guard) -> GradientNorms | None:
    """Begins to measure, if there are a policy and a value model whose gradients can be seen.

    Args:
        args: The trainer's arguments.
        hook: What the trainer hands to `on_train_begin`.
        trainer: The trainer, if it was found.
        guard: Catches what goes wrong, since the optimizer calls.
    """
    policy, value = _parts(hook.get("model"))
    kind = getattr(getattr(trainer, "accelerator", None), "distributed_type", None)
    optimizer = _innermost(hook.get("optimizer"))
    if not policy or not value or getattr(kind, "value", kind) in _SPLIT or not hasattr(optimizer, "register_step_pre_hook"):
        return None
    # TRL's own PPOTrainer, which ignores a request to stop, is also the one that logs no norm and clips nothing. Beside a
    # trainer that logs its own, before clipping, a total after clipping would be another quantity of the same name.
    return GradientNorms(optimizer, hook["model"], policy, value, ignores_stop(args), guard)


class GradientNorms:
    """Means of gradient norms over the optimizer's steps since they were last taken.

    Args:
        optimizer: The torch optimizer itself.
        model: Holds all that the optimizer trains; what it does not hold cannot be told apart, and then nothing is measured.
        policy: The policy's parameters, by identity.
        value: The value model's.
        total: Whether to measure `grad_norm`, of all together, as well.
        guard: Catches what goes wrong; then nothing more is measured.
    """

    def __init__(self, optimizer: Any, model: Any, policy: set[int], value: set[int], total: bool, guard: Guard) -> None:
        self._known = {id(item) for item in model.parameters()}
        self._policy, self._value = policy, value
        self._guard = guard
        self._off = False
        self._size = -1
        self._groups: list[tuple[Any, tuple[list[Any], list[Any], list[Any]]]] = []
        self._names = ("grad_norm_policy", "grad_norm_value", *(("grad_norm",) if total else ()))
        self._sums: dict[str, Any] = {}
        self._steps: dict[str, Any] = {}
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def take(self) -> dict[str, float]:
        """The means since the last call. NaN or infinite in any step is NaN or infinite here; without a step, absent."""
        sums, steps = self._sums, self._steps
        self._sums, self._steps = {}, {}
        counts = {name: float(count) for name, count in steps.items()}
        return {name: float(sums[name]) / count for name, count in counts.items() if count}

    def end(self) -> None:
        """Lets go of the optimizer and of the model."""
        self._handle.remove()
        self._off, self._groups = True, []

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        import torch  # loaded in any training process

        # A compiler that traces the step finds nothing here. An old gradient scaler hands itself over, and no scale.
        if self._off or torch.compiler.is_compiling() or "grad_scaler" in kwargs:
            return
        if not self._guard.call(_PLACE, self._add, optimizer):
            # The hook stays until the end: it must not be removed while torch walks through the hooks.
            self._off, self._sums, self._steps = True, {}, {}

    def _add(self, optimizer: Any) -> bool:
        """Adds the norms of one step; returns whether they can be measured at all."""
        import torch  # loaded in any training process

        size = sum(len(group["params"]) for group in optimizer.param_groups)
        if size != self._size:  # the first step, or parameters were added
            self._size = size
            self._groups = self._sorted(optimizer)
        found: dict[str, list[Any]] = {name: [] for name in self._names}
        with torch.no_grad():
            for dtype, parts in self._groups:
                gradients = [[one for item in part if (one := item.grad) is not None] for part in parts]
                flat = gradients[_POLICY] + gradients[_VALUE] + gradients[_REST]
                if not flat:
                    continue
                norms = torch.stack(_norms(flat, dtype))
                first, second = len(gradients[_POLICY]), len(gradients[_POLICY]) + len(gradients[_VALUE])
                for name, of in zip(self._names, (norms[:first], norms[first:second], norms)):
                    if len(of):
                        found[name].append(torch.linalg.vector_norm(of))
            for name, several in found.items():
                if several:
                    self._count(name, _joined(several), optimizer)
        return bool(self._groups)

    def _count(self, name: str, norm: Any, optimizer: Any) -> None:
        """Adds one norm to a mean. All stays on the device: what a tensor holds is not asked before `take`."""
        import torch  # loaded in any training process

        # A fused optimizer is given the gradients as the scaler left them, and takes off the scale, or skips, by itself.
        scale, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        step: Any = 1
        if scale is not None:
            norm = norm / torch.as_tensor(scale, device=norm.device)
        if overflow is not None:
            sound = torch.as_tensor(overflow, device=norm.device) == 0
            norm, step = torch.where(sound, norm, torch.zeros_like(norm)), sound.float()
        self._sums[name] = self._sums.get(name, 0.0) + norm
        self._steps[name] = self._steps.get(name, 0) + step

    def _sorted(self, optimizer: Any) -> list[tuple[Any, tuple[list[Any], list[Any], list[Any]]]]:
        """The optimizer's parameters by device and type, and by part; none if there is one that cannot be measured."""
        import torch  # loaded in any training process

        groups: dict[Any, tuple[list[Any], list[Any], list[Any]]] = {}
        for item in (item for group in optimizer.param_groups for item in group["params"]):
            # What is no parameter of the model is a flat piece of several; a tensor with a mesh is split over processes.
            if id(item) not in self._known or hasattr(item, "device_mesh"):
                return []
            part = _POLICY if id(item) in self._policy else _VALUE if id(item) in self._value else _REST
            groups.setdefault((item.device, item.dtype), ([], [], []))[part].append(item)
        # In half precision a norm would overflow, or keep three digits.
        return [(torch.promote_types(dtype, torch.float32), parts) for (_, dtype), parts in groups.items()]


def _parts(model: Any) -> tuple[set[int], set[int]]:
    """The parameters of policy and value model, by identity, of a module that holds both as PPO trainers do.

    What both hold is the policy's: a value model on the policy's own backbone adds its head.
    """
    policy = set(_ids(getattr(model, "policy", None)))
    head = set(_ids(getattr(model, "value_head", None)))
    return policy - head, head | (set(_ids(getattr(model, "value_model", None))) - policy)


def _ids(module: Any) -> Iterator[int]:
    return (id(item) for item in module.parameters()) if hasattr(module, "parameters") else iter(())


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside of accelerate's wrapper, which has the interface of an optimizer, and no hooks."""
    while hasattr(getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = optimizer.optimizer
    return optimizer


def _norms(tensors: list[Any], dtype: Any) -> Any:
    """The norm of each, in one call where torch has it (it is what torch's own clipping calls)."""
    import torch  # loaded in any training process

    together = getattr(torch, "_foreach_norm", None)
    if together is not None:
        return together(tensors, 2, dtype=dtype)
    return [torch.linalg.vector_norm(one, dtype=dtype) for one in tensors]


def _joined(norms: list[Any]) -> Any:
    """One norm of those of the parts, which may lie on several devices."""
    import torch  # loaded in any training process

    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack([one.to(norms[0].device, torch.float32) for one in norms]))
