"""Completions cut off at the length limit, or a policy that never ends a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import Streak

# At or above this share next to nothing ends by itself.
_NEARLY_ALL = 0.95
# Weight of a log in the mean share.
_ALPHA = 0.1


class Truncation(Detector):
    """Most completions are cut off at the limit, or none ends with an end-of-sequence token.

    What it sees: `truncated_frac`; without it `eos_frac`, `eos_tokens` or `length_terminated_mean`, which say the same less
    exactly.
    Why it matters: a text that is cut off has no answer in it, so its reward is noise; a policy that never ends a text spends
    the whole generation budget each time.
    When it fires: critical when at least 95 % of the completions are cut off in `patience` logs in a row. A warning when
    their mean share has been `level` or more for `lasting` logs. Where only the number of end-of-sequence tokens is known
    (PPO), a warning when it is zero in ten logs in a row, or in more if single zeros are common in this run.
    What to do: raise the length limit, or check that the model knows the end-of-sequence token that it was given.
    False alarms: 10 to 30 % are common early in healthy runs with a tight limit, and a public run stayed at 25 to 42 %: nothing
    is said of those. A model with several end-of-sequence tokens can read as wholly truncated while its texts end; the
    alert then says that they are shorter than the limit.
    Sources: TRL issues 5759 (97 to 99 % with the default limit of 256) and 7039 (0.97 by a second end token); TRL's PPO
    documentation on the end-of-sequence trick; levels of 0.05 to 0.3 in other tools were raised here after healthy runs.

    Args:
        level: Mean share of truncated completions that is too high.
        lasting: Logs for which it must be.
        patience: Logs in a row in which nearly all are cut off.
    """

    code = "truncation"
    title = "Truncated completions"
    watches = ("truncated_frac", "eos_frac", "eos_tokens", "length_terminated_mean")
    only_watched = True
    needs = "the share of truncated completions or the count of end-of-sequence tokens, which trainers that sample log"
    advice = (
        "Raise max_completion_length (PPO: response_length, with missing_eos_penalty and stop_token='eos'; OnlineDPO: "
        "max_new_tokens), or check that the tokenizer's eos_token is the one the model was trained to end with. "
        "mask_truncated_completions=True keeps cut-off texts out of the loss."
    )
    cooldown = 20

    def __init__(self, *, level: float = 0.5, lasting: int = 15, patience: int = 5) -> None:
        self.level = number_parameter(self.code, "level", level, low=0.0, high=1.0)
        self.lasting = number_parameter(self.code, "lasting", lasting, low=1, whole=True)
        self.patience = number_parameter(self.code, "patience", patience, low=1, whole=True)
        self._limit: float | None = None
        self._count = 0
        self._mean = 0.0
        self._high = 0  # logs in a row with a mean share above the level
        self._all = 0  # logs in a row with nearly all cut off
        self._open = False
        self._ends = Streak(least=10)

    def configure(self, arguments: Mapping[str, Any]) -> None:
        """Notes the length limit."""
        limit = arguments.get("max_completion_length")
        if isinstance(limit, (int, float)) and limit > 0:
            self._limit = limit

    def judge(self, event: Event) -> Answer:
        """Takes the most exact of the metrics that are there."""
        metrics = event.metrics
        share = metrics.get("truncated_frac")
        if share is not None:
            return self._judge_share(event, "truncated_frac", share, share)
        value = metrics.get("eos_frac")
        if value is not None:
            return self._judge_share(event, "eos_frac", value, 1.0 - value)
        value = metrics.get("eos_tokens")
        if value is not None:
            return self._judge_count(value)
        value = metrics.get("length_terminated_mean")
        if value is not None:
            # Zero means that none ended by itself; else some did, and how many is not known.
            return self._judge_share(event, "length_terminated_mean", value, 1.0 if value == 0 else min(value, 0.0))
        return ABSENT

    def _judge_share(self, event: Event, name: str, value: float, share: float) -> Answer:
        if not -1e9 < share < 1e9:
            return WARMING
        share = 0.0 if share < 0.0 else 1.0 if share > 1.0 else share
        self._count += 1
        self._mean += (share - self._mean) * max(_ALPHA, 1.0 / self._count)
        self._all = self._all + 1 if share >= _NEARLY_ALL else 0
        if self._mean < self.level - (0.1 if self._open else 0.0):
            self._high = 0
            if self._all < self.patience:
                self._open = False
                return FINE
        else:
            self._high += 1
            if self._all < self.patience and self._high < self.lasting and not self._open:
                return FINE
        self._open = True
        message = f"{name} is {number(value)}: {100 * self._mean:.0f} % of the last completions were cut off at the limit."
        evidence = {"mean_share": self._mean, "logs_nearly_all": self._all, "logs_above_level": self._high}
        longest = event.metrics.get("length_max")
        if self._limit is not None and longest is not None and longest < self._limit and self._all >= self.patience:
            message += (
                f" But the longest has {number(longest)} tokens and the limit is {number(self._limit)}: they end, with a "
                "token that is not the tokenizer's eos_token."
            )
        severity = Severity.CRITICAL if self._all >= self.patience else Severity.WARNING
        return Finding(name, value, self.level, message, severity, evidence)

    def _judge_count(self, value: float) -> Answer:
        if not value >= 0:
            return WARMING
        ends = self._ends
        if value > 0:
            ends.good()
            return FINE
        too_long = ends.bad()
        if not (too_long or (ends.from_start and ends.length >= ends.least)):
            return FINE
        message = f"eos_tokens is 0 for {ends.length} logs in a row{' from the start' if ends.from_start else ''}: no text ends."
        return Finding("eos_tokens", value, None, message, Severity.WARNING, {"streak": ends.length})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """No text ends; growing into the limit; tight limits and long answers that are healthy; PPO without an end."""
        ill = [{"truncated_frac": 1.0, "length_terminated_mean": 0.0}] * 20
        yield Example("never ends", ill, [5])
        grows = [{"truncated_frac": min(0.8, max(0.0, 0.02 * (step - 40)))} for step in range(120)]
        yield Example("grows into the limit", grows, [89])
        tight = [{"truncated_frac": max(0.1, 0.35 - 0.01 * step) + 0.1 * (step % 2)} for step in range(200)]
        yield Example("a tight limit early on", tight, [])
        batch_of_one = [{"truncated_frac": 1.0 if step % 4 == 0 else 0.0} for step in range(200)]
        yield Example("a batch of one", batch_of_one, [])
        yield Example("nothing ended, that is all that is logged", [{"length_terminated_mean": 0.0}] * 9, [5])
        yield Example("PPO without an end", [{"eos_tokens": 0}] * 20, [10])
        few = [{"eos_tokens": 1.0 if (step * 2654435761 >> 7) % 100 < 40 else 0.0} for step in range(1, 300)]
        yield Example("PPO with few ends", few, [])
        yield Example("online DPO", [{"eos_frac": 0.0}] * 9, [5])
