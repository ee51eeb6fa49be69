"""From what a trainer hands to a callback to an Event: names, step, clock, tokens, random state.

Both callbacks read through this one class; it holds the run's counters and nothing of the run's files.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

from ...event import Event, timestamp
from ...vocabulary import Vocabulary, families, family_of, recognise
from ._compat import trl_version

__all__ = ["LogReader", "arguments_of"]

_STEPS_A_DIGEST = 100
_MILLISECONDS = [f"{millisecond:03d}Z" for millisecond in range(1000)]


def arguments_of(args: Any) -> dict[str, Any]:
    """A trainer's arguments by name, with the world size, which transformers computes."""
    arguments: dict[str, Any] = dict(args.to_dict())
    arguments["world_size"] = getattr(args, "world_size", 1)
    return arguments


class LogReader:
    """Turns log calls into events.

    Args:
        args: The trainer's arguments; their class tells the family.
        model_info: What stands in every event's `model_info`, but for the family.
        began: Seconds that the run had lasted when it was resumed; 0 for a new one.
    """

    def __init__(self, args: Any, model_info: Mapping[str, Any], began: float = 0.0) -> None:
        self.arguments = arguments_of(args)
        self.vocabulary = Vocabulary(family_of(type(args)), trl_version(), self.arguments)
        self.skipped: dict[str, str] = {}
        self._seed = {"seed": self.arguments["seed"]} if "seed" in self.arguments else {}
        self._given_info = dict(model_info)
        self._model_info: dict[str, Any] = {}
        self._name_family()
        self._zero = time.perf_counter() - began
        self.tokens = 0.0  # the trainer's own count at its last log
        self._second, self._prefix = -1, ""
        self._digest_at = 0

    def _name_family(self) -> None:
        family = self.vocabulary.family.name
        self._model_info = {**self._given_info, "trainer": family}

    @property
    def model_info(self) -> Mapping[str, Any]:
        """What stands in every event's `model_info`."""
        return self._model_info

    @property
    def trainer(self) -> str:
        """The trainer's family."""
        return self.vocabulary.family.name

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._zero

    def event(self, step: int, logs: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Event:
        """Reads one log call.

        Args:
            step: The global step.
            logs: The trainer's dictionary; it is not changed.
            extra: Canonical metrics to add to a training event (resources, rates).
        """
        if self.vocabulary.family.name == "generic":
            self._recognise(logs)
        phase, metrics, skipped = self.vocabulary.translate(logs)
        if skipped:
            for name, why in skipped.items():
                self.skipped.setdefault(name, why)
        if extra and phase == "train":
            metrics.update(extra)
        return self.make(step, metrics, phase, (), self._tokens_since(metrics) if phase == "train" else {})

    def make(
        self,
        step: int,
        metrics: Mapping[str, Any],
        phase: str,
        notes: tuple[str, ...] = (),
        data_slice: Mapping[str, int] | None = None,
    ) -> Event:
        """An event of this run, now."""
        rng = self._seed
        if step >= self._digest_at or phase != "train":
            self._digest_at = (step // _STEPS_A_DIGEST + 1) * _STEPS_A_DIGEST
            rng = self._random_state()
        # Microseconds: more digits would be noise in every line.
        wall_time = int((time.perf_counter() - self._zero) * 1e6) / 1e6
        return Event(
            step, wall_time, metrics, phase, rng, data_slice or {}, self._model_info,
            notes, self._timestamp(),
        )

    def _recognise(self, logs: Mapping[str, Any]) -> None:
        """Arguments of an unknown class: the keys may still tell."""
        family = recognise(key for key in logs if isinstance(key, str))
        if family is not families()["generic"]:
            self.vocabulary = Vocabulary(family, trl_version(), self.arguments)
            self._name_family()

    def _tokens_since(self, metrics: Mapping[str, Any]) -> dict[str, int]:
        """Tokens since the log before, from the trainer's running count.

        After a resume the count of most trainers starts again at 0; that of GRPO and RLOO goes on.
        """
        count = metrics.get("num_tokens")
        if count is None or count != count:
            return {}
        before, self.tokens = self.tokens, count
        return {"tokens_in": int(count - before if count >= before else count)}

    def _random_state(self) -> dict[str, Any]:
        """The seed and a checksum of torch's random state.

        Reading the state does not change it. Two runs that should be the same have the same checksums at the same
        steps: the first, the first log at or after every hundredth, and every evaluation and checkpoint. Not at every
        log, since reading five kilobytes of state costs as much as writing the event.
        """
        torch = sys.modules.get("torch")
        if torch is None:
            return self._seed
        digest = zlib.crc32(torch.default_generator.get_state().numpy())
        if torch.cuda.is_initialized():
            digest = zlib.crc32(torch.cuda.get_rng_state().numpy(), digest)
        return {**self._seed, "state": f"{digest:08x}"}

    def _timestamp(self) -> str:
        """Now, as `rldk.event.timestamp`; the part down to the second is formatted once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._prefix = second, timestamp(second)[:-4]
        return self._prefix + _MILLISECONDS[int((now - second) * 1000)]
