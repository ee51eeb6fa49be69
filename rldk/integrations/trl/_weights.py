"""Whether the weights move: a sample of them, taken when training begins and looked at again now and then.

Gradients and losses of an optimizer that holds other tensors than the model look healthy; only the weights tell.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["WeightWatch", "count_nonfinite"]

# Tensors and weights of each: 64 x 1024 numbers are 256 KB in float32, and compared in about a millisecond.
_TENSORS = 64
_WEIGHTS = 1024
# LoRA's A matrices do not move in the first step, and a warm-up begins at a rate of 0: five steps are enough for both.
_FIRST_LOOK = 5
_PIECE = 1 << 24


class WeightWatch:
    """Compares trainable weights with what they were.

    Looks after 5, 10, 20, 40 ... steps, until every sampled tensor has moved.

    Args:
        model: The model as the trainer holds it.
        step: The step at which it begins.
    """

    def __init__(self, model: Any, step: int) -> None:
        trainable = [item for item in model.parameters() if item.requires_grad and item.numel()]
        chosen = trainable[:: -(-len(trainable) // _TENSORS) or 1]
        self._before = [(item, _sample(item).clone()) for item in chosen]
        self._began = step
        self.due = step + _FIRST_LOOK if chosen else None

    def look(self, step: int) -> dict[str, float]:
        """The share of tensors of which no sampled weight has changed; empty if nothing can be compared any more."""
        import torch  # loaded in any training process

        self.due = self._began + 2 * (step - self._began)
        same = []
        for item, before in self._before:
            now = _sample(item)
            if now.shape == before.shape:  # sharding may have put another piece here
                same.append((now == before).all())
        if not same:
            self._before, self.due = [], None
            return {}
        # A model may be spread over several devices.
        unmoved = float(torch.stack([one.to(same[0].device) for one in same]).float().mean())
        if not unmoved:
            self._before, self.due = [], None
        return {"param_unmoved_frac": unmoved}


def count_nonfinite(model: Any) -> int:
    """Counts the weights that are NaN or infinite, in at most ten seconds: what a run that died may have died of.

    Of a sharded model those of this process: the others may be gone, and are not asked. What a device that died or hangs
    does not tell is not counted.
    """
    deadline = time.monotonic() + 10.0
    bad = 0
    answers: dict[Any, bool] = {}  # by device
    for item in model.parameters():
        if not item.is_floating_point() or item.is_meta:
            continue
        try:
            device = item.device
            if device not in answers:
                answers[device] = _answers(device)
            if not answers[device]:
                continue
            # In pieces: the run may have died of too little memory.
            for piece in _local(item).split(_PIECE):
                if time.monotonic() > deadline:
                    return bad
                bad += piece.numel() - int(piece.isfinite().sum())
        except RuntimeError:  # the device's own; whatever it died of has been said
            continue
    return bad


def _answers(device: Any) -> bool:
    """Whether a device does what it is given within two seconds: to wait for one that hangs would be to hang."""
    if device.type != "cuda":
        return True
    import torch  # loaded in any training process

    with torch.cuda.device(device):
        done = torch.cuda.Event()
        done.record()
    deadline = time.monotonic() + 2.0
    while not done.query():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _local(item: Any) -> Any:
    """The weights that this process holds, flat."""
    item = item.detach()
    return (item.to_local() if hasattr(item, "to_local") else item).reshape(-1)


def _sample(item: Any) -> Any:
    """Up to 1024 weights, evenly spread, where they lie."""
    flat = _local(item)
    return flat[:: max(1, flat.numel() // _WEIGHTS)][:_WEIGHTS]
