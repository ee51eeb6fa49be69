"""The tables of the benchmark, from scored runs: aligned text for a terminal, Markdown for the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .catalogue import Facts
from .plan import REPORT_SEEDS, TUNING_SEEDS
from .score import Interval, Outcome, Score, score

__all__ = ["SPLITS", "Table", "Tool", "head_to_head", "misses", "split_of", "tables"]

# What must be reached on the runs of the report.
_CAUGHT, _FALSE, _DELAY = 0.95, 0.2, 10
SPLITS = {
    "tune": "tuning seeds 0 to 4",
    "seeds": "held-out seeds 5 to 14, faults of the tuning",
    "faults": "held-out faults, seeds 5 to 14",
    "report": "the report: seeds 5 to 14, all faults",
}


class Tool(NamedTuple):
    """A judge and what became of the runs.

    Attributes:
        name: Of the judge.
        version: Of the tool.
        how: How it was fed.
        own_codes: Whether its codes are those that scenarios list; of others only flagging can be asked.
        outcomes: All runs.
        note: What a reader must know before believing it.
    """

    name: str
    version: str
    how: str
    own_codes: bool
    outcomes: list[Outcome]
    note: str = ""


class Table(NamedTuple):
    """A title, a header, and rows of cells."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """Aligned columns."""
        cells = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
        return "\n".join([self.title, "", lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def markdown(self) -> str:
        """A table of GitHub's Markdown, with the title as a heading."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def split_of(facts: Facts, seed: int) -> str:
    """The split that a run belongs to: `tune`, `seeds` or `faults`."""
    if seed in TUNING_SEEDS:
        return "tune"
    return "faults" if facts.held_out and not facts.healthy else "seeds"


def _in(split: str, run: Outcome, known: Mapping[str, Facts]) -> bool:
    key = run.judged.key
    if split == "report":
        return key.seed in REPORT_SEEDS
    return split_of(known[key.scenario], key.seed) == split


def head_to_head(tools: Sequence[Tool], known: Mapping[str, Facts], split: str) -> Table:
    """All tools on one split; rldk twice: by the right code, and by any alarm, as the others are counted."""
    header = ("tool", "faults caught", "95 %", "delay", "95 %", "false per 1,000", "95 %", "false", "healthy logs", "verdict")
    rows = []
    for tool in tools:
        total = score(run for run in tool.outcomes if _in(split, run, known))
        if tool.own_codes:
            verdict = _verdict(total, split) if split != "tune" else ""
            rows.append((f"{tool.name}, right code", *_numbers(total, right=True), verdict))
        rows.append((f"{tool.name} {tool.version}, any alarm", *_numbers(total, right=False), ""))
    note = "; healthy logs are only those before their onset" if split == "faults" else ""
    return Table(f"Head to head, {SPLITS[split]}{note}", header, rows)


def _verdict(total: Score, split: str) -> str:
    """Whether what must be reached is; false alarms are a matter of the healthy runs, which belong to no fault."""
    missed = [
        name
        for name, bad in (
            ("caught", not total.caught_share >= _CAUGHT),
            ("false", split != "faults" and not total.false_rate <= _FALSE),
            ("delay", total.delay is None or total.delay > _DELAY),
        )
        if bad
    ]
    return f"MISSED: {', '.join(missed)}" if missed else "reached"


def _numbers(total: Score, *, right: bool) -> tuple[str, ...]:
    hits = total.caught if right else total.flagged
    share = total.caught_share if right else total.flagged_share
    ends = total.caught_in if right else total.flagged_in
    delay, delays = (total.delay, total.delay_in) if right else (total.any_delay, total.any_delay_in)
    return (
        f"{_percent(share)} ({hits}/{total.faults})", _span(ends, 100), "-" if delay is None else f"{delay:g}",
        _span(delays, 1), _rate(total.false_rate), _span(total.false_in, 1, ".2f"), str(total.false), f"{total.healthy_logs:,}",
    )  # fmt: skip


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _rate(rate: float) -> str:
    return "-" if math.isnan(rate) else f"{rate:.2f}"


def _span(ends: Interval | None, factor: float, form: str = "") -> str:
    if ends is None or math.isnan(ends.low):
        return "-"
    form = form or (".1f" if factor == 100 else "g")
    return f"{ends.low * factor:{form}} to {ends.high * factor:{form}}"


def tables(tool: Tool, known: Mapping[str, Facts], split: str) -> list[Table]:
    """What rldk did on a split, from every side."""
    runs = [run for run in tool.outcomes if _in(split, run, known)]
    title = SPLITS[split]
    return [
        _by_detector(runs, known, title),
        _by_scenario(runs, known, title),
        _healthy(runs, known, title),
        _grouped(runs, f"By trainer, {title}", "trainer", lambda run: run.judged.trainer),
        _grouped(runs, f"By TRL version, {title}", "TRL", lambda run: run.judged.key.trl),
        _grouped(runs, f"By logging interval, {title}", "logging_steps", lambda run: str(run.judged.key.logging_steps)),
    ]


def _by_detector(runs: list[Outcome], known: Mapping[str, Facts], title: str) -> Table:
    """Each code alone: of the runs where it is a right code, those that it named itself."""
    listed = {code for facts in known.values() for code in facts.codes}
    spoken = {verdict.code for run in runs for verdict in run.judged.verdicts}
    rows = []
    for code in sorted(listed | spoken):
        alone = [_alone(run, code, code in known[run.judged.key.scenario].codes) for run in runs]
        rows.append((code, *_numbers(score(alone), right=True)[:-1]))
    header = ("detector", "of the faults it may name", "95 %", "delay", "95 %", "false per 1,000", "95 %", "false")
    return Table(f"By detector, {title}", header, rows)


def _alone(run: Outcome, code: str, may_name: bool) -> Outcome:
    """The run as it would be if this were the only detector."""
    false = tuple(verdict for verdict in run.false if verdict.code == code)
    if not run.faulty or not may_name:
        return run._replace(faulty=False, false=false, right=None, any=None, right_delay=None, any_delay=None)
    fakes = set(run.false)
    own = [verdict for verdict in run.judged.verdicts if verdict.code == code and verdict not in fakes]
    delay = max(0, own[0].logged - run.healthy_logs) if own else None
    return run._replace(false=false, right=own[0] if own else None, right_delay=delay)


def _by_scenario(runs: list[Outcome], known: Mapping[str, Facts], title: str) -> Table:
    rows = []
    for name in known:
        mine = [run for run in runs if run.judged.key.scenario == name and run.faulty]
        if not mine:
            continue
        total = score(mine)
        first = Counter(run.right.code for run in mine if run.right is not None)
        rows.append(
            (
                name + (" (held out)" if known[name].held_out else ""), f"{total.caught}/{total.faults}",
                f"{total.flagged}/{total.faults}", "-" if total.delay is None else f"{total.delay:g}", str(total.false),
                ", ".join(f"{code} {count}" for code, count in first.most_common()),
            )
        )  # fmt: skip
    return Table(f"By fault, {title}", ("fault", "right code", "any alarm", "delay", "false before it", "first right code"), rows)


def _healthy(runs: list[Outcome], known: Mapping[str, Facts], title: str) -> Table:
    rows = []
    for name in known:
        mine = [run for run in runs if run.judged.key.scenario == name and known[name].healthy]
        if not mine:
            continue
        total = score(mine)
        codes = Counter(verdict.code for run in mine for verdict in run.false)
        rows.append(
            (
                name, str(len(mine)), f"{total.healthy_logs:,}", str(total.false), _rate(total.false_rate),
                ", ".join(f"{code} {count}" for code, count in codes.most_common()),
            )
        )  # fmt: skip
    header = ("healthy scenario", "runs", "logs", "false", "per 1,000", "by")
    return Table(f"Healthy runs, {title}", header, rows)


def _grouped(runs: list[Outcome], title: str, name: str, group: Callable[[Outcome], str]) -> Table:
    groups: dict[str, list[Outcome]] = {}
    for run in runs:
        groups.setdefault(group(run), []).append(run)
    rows = [(label, *_numbers(score(groups[label]), right=True)) for label in sorted(groups)]
    header = (name, "right code", "95 %", "delay", "95 %", "false per 1,000", "95 %", "false", "healthy logs")
    return Table(title, header, rows)


def misses(tool: Tool, known: Mapping[str, Facts], died: Mapping[object, str]) -> Iterable[str]:
    """Each run that was missed or falsely alarmed, with what was said."""
    for run in sorted(tool.outcomes, key=lambda run: run.judged.key):
        key = run.judged.key
        for verdict in run.false:
            yield f"FALSE   {key}: step {verdict.step} {verdict.code}: {verdict.message}"
        if run.faulty and run.right is None:
            said = f"; said {run.any.code} at step {run.any.step}: {run.any.message}" if run.any else ""
            end = f"; the run died: {died[key]}" if key in died else ""
            yield f"MISSED  {key} ({', '.join(sorted(known[key.scenario].codes))}){said}{end}"
