"""Training that has become slow."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter
from ._stats import LogLevel

_SKIP = 3  # compilation and caches: the first logs are like no others
_LEAST = 15
_SPREADS = 2.0
_ALPHA = 0.03


class Throughput(Detector):
    """The speed is a fraction of its own usual, and stays there.

    What it sees: `tokens_per_second` and `samples_per_second`, of training steps alone; without them, `step_time` and, for
    trainers that sample, the length of the longest completion.
    Why it matters: at half the speed the run costs twice as much, and the cause (a hot GPU, a slow disk, a neighbour, a
    data loader that has lost its workers) is mostly easy to remove.
    When it fires: the speed is below its usual level by `factor` (2), and by twice its spread, in `logs` (10) logs in a
    row and for `seconds` (60) at least. Where rows and tokens are both counted, both must be slower: longer answers lower the rows a second only,
    shorter ones the tokens.
    What to do: compare GPU use before and after; `dataloader_num_workers`, `dataloader_pin_memory`; other users of the
    machine; a reward function that waits for a server.
    False alarms: single slow logs (an evaluation, a checkpoint, a compilation) and short bursts of a neighbour's do not
    count. Longer or shorter answers
    do not, where tokens are counted or lengths logged. Without either, a curriculum towards longer rows does.
    Sources: Amazon SageMaker Debugger's StepOutlier, trainproof (a cliff of 3); measured: on a shared CPU the speed of
    a healthy run goes up and down by 1.5, and falls to a tenth for seconds while others compute. The numbers are chosen
    here.

    Args:
        factor: How many times slower than usual.
        logs: Logs in a row.
        seconds: How long it must have lasted; of no account where the events have no time.
    """

    code = "throughput"
    title = "Training has become slow"
    watches = ("tokens_per_second", "samples_per_second", "step_time")
    only_watched = True
    needs = "enable_resource_monitoring, or a trainer that logs step_time"
    advice = (
        "Look at GPU use, other users of the machine, dataloader_num_workers, the disk, and reward functions that wait for "
        "a server."
    )

    def __init__(self, *, factor: float = 2.0, logs: int = 10, seconds: float = 60.0) -> None:
        self.factor = number_parameter(self.code, "factor", factor, low=1.0)
        self.logs = number_parameter(self.code, "logs", logs, low=1, whole=True)
        self.seconds = number_parameter(self.code, "seconds", seconds, low=0.0)
        self._since = math.nan  # when it was last at its usual speed
        self._limit = -math.log(self.factor)
        self._tokens = LogLevel(_ALPHA)
        self._rows = LogLevel(_ALPHA)
        self._seen = 0
        self._slow = 0

    def judge(self, event: Event) -> Answer:
        """Holds the speed against its usual level; while it is slow, the level stays where it was."""
        metrics = event.metrics
        tokens, rows = metrics.get("tokens_per_second"), metrics.get("samples_per_second")
        if tokens is None and rows is None:
            step_time = metrics.get("step_time")
            if step_time is None:
                return ABSENT
            if not 1e-9 < step_time < 1e9:
                return WARMING
            rows = 1.0 / step_time
            # Generation takes as long as its longest completion.
            length = metrics.get("length_max") or metrics.get("length_mean")
            if length is not None and 0.0 < length < 1e9:
                tokens = length / step_time
        if tokens is not None and not 0.0 < tokens < 1e300:
            tokens = None
        if rows is not None and not 0.0 < rows < 1e300:
            rows = None
        if tokens is None and rows is None:
            return WARMING
        self._seen += 1
        if self._seen <= _SKIP:
            return WARMING
        # Of the two, the one that has suffered least decides.
        above, level = -math.inf, self._rows
        if rows is not None:
            of_rows = math.log(rows)
            above = of_rows - level.centre
        if tokens is not None:
            of_tokens = math.log(tokens)
            if of_tokens - self._tokens.centre > above:
                level = self._tokens
                above = of_tokens - level.centre
        known = level.count >= _LEAST
        if known and above < self._limit and above < -_SPREADS * level.spread:
            self._slow += 1
            # Not a comparison the other way round: without times the difference is NaN, and the logs alone decide.
            if self._slow < self.logs or event.wall_time - self._since < self.seconds:
                return FINE
            return self._found(event, level, above)
        self._slow = 0
        self._since = event.wall_time
        if rows is not None:
            self._rows.add(of_rows)
        if tokens is not None:
            self._tokens.add(of_tokens)
        return FINE if known else WARMING

    def _found(self, event: Event, level: LogLevel, above: float) -> Finding:
        times = math.exp(min(700.0, -above))
        name = "tokens_per_second" if level is self._tokens else "samples_per_second"
        value, usual = event.metrics.get(name), level.level
        threshold = usual / self.factor
        if value is None:
            name, value = "step_time", event.metrics.get("step_time")
            usual = (value or 0.0) / times
            threshold = usual * self.factor
        message = (
            f"{name} is {number(value)} where {number(usual)} is usual: {number(round(times, 1))} times slower, for "
            f"{self._slow} logs."
        )
        return Finding(name, value, threshold, message, Severity.WARNING, {"usual": usual, "times_slower": times})

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """A lasting fall; single slow logs; a noisy machine; longer answers."""
        wobble = (1.0, 0.8, 1.3, 0.7, 1.1, 0.9, 1.5, 1.0)
        usual = [{"tokens_per_second": 1000.0 * wobble[log % 8], "samples_per_second": 10.0 * wobble[log % 8]} for log in range(40)]
        slow = [{name: value / 4 for name, value in row.items()} for row in usual]
        yield Example("four times slower from log 41", usual + slow + slow, [100])
        yield Example("steps that take longer", [{"step_time": 1.0}] * 30 + [{"step_time": 5.0}] * 80, [90])
        yield Example("a neighbour's burst", usual + slow + usual, [])
        yield Example("steps that take longer with longer completions", [
            {"step_time": 1.0 + 0.1 * log, "length_max": 10.0 * (1.0 + 0.1 * log)} for log in range(100)
        ], [])
        yield Example("every tenth log is slow", [slow[0] if log % 10 == 9 else usual[log % 8] for log in range(100)], [])
        yield Example("a noisy machine", usual * 5, [])
        longer = [{"tokens_per_second": 1000.0, "samples_per_second": 10.0 / (1 + 0.05 * log)} for log in range(150)]
        yield Example("answers grow", longer, [])
        shorter = [{"tokens_per_second": 1000.0 / (1 + 0.1 * log), "samples_per_second": 10.0 + log} for log in range(150)]
        yield Example("answers shrink", shorter, [])
