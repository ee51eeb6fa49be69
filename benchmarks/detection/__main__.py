"""The detection benchmark: how many faults are named, how soon, and how often a healthy run is called ill.

The tables, from the stored streams, in seconds; while tuning, `--split tune`, so that nothing of the report is judged or
shown; each run that was missed or falsely alarmed, with the alert; all runs anew, on three versions of TRL, in an hour
and a half; the rivals' verdicts anew; the page of the documentation:

    python -m benchmarks.detection
    python -m benchmarks.detection --split tune
    python -m benchmarks.detection --misses
    python -m benchmarks.detection --record
    python -m benchmarks.detection --rivals
    python -m benchmarks.detection --markdown docs/benchmark.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import gather, plan, rivals
from .catalogue import Facts, catalogue
from .judges import judge_of
from .judges import rivals as rival_modules
from .replay import kept_verdicts, replay
from .score import Judged, outcome, score
from .store import STREAMS, path_of
from .table import SPLITS, Table, Tool, head_to_head, misses, tables

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Records, asks rivals, or prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="record runs anew")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="with --record: only these")
    parser.add_argument("--missing", action="store_true", help="with --record: only what the store does not have")
    parser.add_argument("--merge", action="store_true", help="take what a recording under way has made so far into the store")
    parser.add_argument("--rivals", nargs="*", metavar="NAME", help=f"judge anew: all, or some of {', '.join(rival_modules())}")
    parser.add_argument("--plan", action="store_true", help="print what is recorded, and how much that is")
    parser.add_argument("--split", choices=("tune", "report", "all"), default="all", help="runs to look at; all")
    parser.add_argument("--scenario", nargs="+", default=[], metavar="NAME", help="only these scenarios")
    parser.add_argument("--misses", action="store_true", help="list what went wrong, and nothing else")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="write the page there too")
    options = parser.parse_args(argv)
    known = catalogue()
    if unknown := [name for name in options.scenario if name not in known]:
        parser.error(f"unknown scenario: {', '.join(unknown)}. Known: {', '.join(known)}")
    if options.plan:
        return _print_plan(known)
    if options.merge:
        print(f"{gather.merge(plan.plan(known))} runs taken into {STREAMS}", file=sys.stderr)
        return 0
    if options.record and (status := gather.record_everywhere(known, options.scenario, options.seeds, options.missing)):
        return status
    if options.rivals is not None and (status := rivals.judge_again(options.rivals)):
        return status
    chosen = {name: facts for name, facts in known.items() if not options.scenario or name in options.scenario}
    if not any(path_of(name).exists() for name in chosen):
        parser.error(f"no recorded runs in {STREAMS}; record them with --record")
    return _report(options, chosen)


def _report(options: argparse.Namespace, known: Mapping[str, Facts]) -> int:
    seeds = {"tune": plan.TUNING_SEEDS, "report": plan.REPORT_SEEDS}.get(options.split, range(100))
    judged, died = replay(known, lambda key: key.seed in seeds)
    own = judge_of("rldk")
    tool = Tool(own.name, own.version, own.how, True, [_outcome(run, known) for run in judged])
    if options.misses:
        print("\n".join(misses(tool, known, died)) or "nothing was missed, and nothing falsely alarmed")
        return 0
    tools = [tool, *_others(judged, known)]
    shown = [_tools_table(tools)]
    splits = ("tune",) if options.split == "tune" else tuple(SPLITS)[options.split == "report" :]
    shown += [head_to_head(tools, known, split) for split in splits]
    shown += tables(tool, known, "tune" if options.split == "tune" else "report")
    print("\n\n".join(table.text() for table in shown))
    for other in tools:
        if other.note:
            print(f"\n{other.name}: {other.note}", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(_plain(tools, shown, known), indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(_page(shown, known, judged))
    return 0


def _outcome(run: Judged, known: Mapping[str, Facts]) -> Any:
    facts = known[run.key.scenario]
    return outcome(run, facts.codes, facts.onset)


def _others(judged: Sequence[Judged], known: Mapping[str, Facts]) -> list[Tool]:
    """The rivals, on the very runs that rldk was shown."""
    tools = []
    for module in rival_modules():
        kept = kept_verdicts(module)
        if kept is None:
            print(f"{module}: not asked yet; --rivals {module}", file=sys.stderr)
            continue
        runs = [run._replace(verdicts=kept.verdicts[run.key]) for run in judged if run.key in kept.verdicts]
        stale = [name for name in kept.stale if name in known]
        notes = [f"{len(judged) - len(runs)} runs not judged"] if len(runs) < len(judged) else []
        notes += [f"verdicts on older recordings of {', '.join(stale)}"] if stale else []
        note = f"{'; '.join(notes)}: run --rivals {module}" if notes else ""
        tools.append(Tool(kept.name, kept.version, kept.how, False, [_outcome(run, known) for run in runs], note))
    return tools


def _tools_table(tools: Sequence[Tool]) -> Table:
    return Table("The tools, and how each was fed", ("tool", "version", "how"), [tool[:3] for tool in tools])


def _print_plan(known: Mapping[str, Facts]) -> int:
    keys = plan.plan(known)
    rows = sum(plan.rows_of(known[key.scenario], key.logging_steps) for key in keys)
    healthy = sum(plan.healthy_rows_of(known[key.scenario], key.logging_steps) for key in keys)
    steps = sum(known[key.scenario].steps[key.logging_steps] for key in keys)
    by_version, by_scenario = Counter(key.trl for key in keys), Counter(key.scenario for key in keys)
    for name, count in sorted(by_scenario.items()):
        print(f"{name:40} {count:3} runs")
    print(f"\n{len(known)} scenarios, {len(keys)} runs ({', '.join(f'TRL {trl}: {n}' for trl, n in sorted(by_version.items()))})")
    print(f"{sum(key.seed in plan.TUNING_SEEDS for key in keys)} of them on tuning seeds, which come first")
    print(f"{steps:,} steps, {rows:,} training logs, {healthy:,} of them healthy")
    return 0


def _plain(tools: Sequence[Tool], shown: Sequence[Table], known: Mapping[str, Facts]) -> dict[str, Any]:
    totals = {}
    for tool in tools:
        report = score(run for run in tool.outcomes if run.judged.key.seed in plan.REPORT_SEEDS)
        totals[tool.name] = {**report._asdict(), "version": tool.version, "how": tool.how}
    return {
        "report": totals,
        "tables": [{"title": table.title, "header": table.header, "rows": table.rows} for table in shown],
        "held_out_faults": sorted(name for name, facts in known.items() if facts.held_out and not facts.healthy),
    }


_PAGE = """# Detection benchmark

Generated by `python -m benchmarks.detection --markdown docs/benchmark.md`; do not edit.

{runs} real TRL runs on tiny CPU models: {faults} faults, each injected into a run that has a healthy twin, and
{others} healthy kinds of run, {logs:,} training logs in all, on TRL {versions}, at `logging_steps` {intervals}. The streams
are in the repository (`benchmarks/detection/streams`), and are judged again by the command above;
`--record` records them anew. Rules were tuned on seeds 0 to 4 only, and never on the faults marked as held out.

A fault is caught by an alarm of a right code after its onset; delays are counted in training logs, 1 being the first
after the onset. Alarms in healthy runs, and in faulty ones up to the onset, are false; what is said after the onset
beside the right code is not counted. Other tools have codes of their own, so any alarm after the onset counts as a
catch of theirs. Intervals are of 95 %: Wilson's for shares, Garwood's exact ones for rates, order statistics for medians. They
take runs as independent, which seeds of one fault are not quite.

What to know before believing it:

- The runs are small: models of a few thousand weights on a CPU, some hundred steps. Seven histories of real trainings are
  judged apart, by `tests/test_real_states.py`.
- Some healthy kinds share their training rows (`sft_tokenized_healthy` with `sft_healthy`, `reward_evals_healthy` with
  `reward_healthy`), so one false alarm can count two or three times.
- A minute of slowness and five of silence are more than these runs last: scenarios of slowness and stalls, and their twins,
  set `throughput.seconds` to 5 and `stall.floor` to 1.
- The rule of `entropy_explosion` was written by someone who had seen a draft of its held-out fault, on one seed.
- After the first look at the report, the runs of seeds 6, 11 and 13 of five scenarios were recorded anew: their untrained
  policy could end a text only at once, in the fault as in its healthy twin. Three held-out faults were added, to make a
  third of all: `dpo_stale_optimizer`, `kto_warmup_too_long` and `reward_nan`. No rule was changed after that look.
- The sampler's mismatch has no scenario: vLLM needs a GPU.

"""


def _page(shown: Sequence[Table], known: Mapping[str, Facts], judged: Sequence[Judged]) -> str:
    recorded = {run.key.scenario for run in judged}
    healthy = [name for name in recorded if known[name].healthy]
    head = _PAGE.format(
        runs=f"{len(judged):,}", faults=len(recorded) - len(healthy), others=len(healthy),
        logs=sum(len(run.logs) for run in judged), versions=_and(sorted({run.key.trl for run in judged})),
        intervals=_and(sorted({str(run.key.logging_steps) for run in judged})),
    )  # fmt: skip
    what = Table(
        "The faults", ("fault", "what is wrong", "right codes", "twin"),
        [
            (name + (" (held out)" if facts.held_out else ""), facts.about, ", ".join(sorted(facts.codes)), facts.twin)
            for name, facts in known.items()
            if name in recorded and not facts.healthy
        ],
    )  # fmt: skip
    well = Table("The healthy runs", ("run", "what it is"), [(name, known[name].about) for name in known if name in healthy])
    return head + "\n\n".join(table.markdown() for table in (*shown, what, well)) + "\n"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


if __name__ == "__main__":
    sys.exit(main())
