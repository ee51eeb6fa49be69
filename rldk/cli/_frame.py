"""One frame of `rldk watch`: a view as lines of text that fit a width and a height. Draws, and decides nothing.

Each line is laid out by hand and cut to the width, so that nothing wraps and a frame costs little: it is drawn twice a
second for as long as a run lasts. All foreign text goes through `clean`, and none of it is read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..event import Alert, Severity
from ..live_view import MetricLine, View, spark
from ..text import clean, number
from ._output import SEVERITY_STYLES

__all__ = ["Glyphs", "frame", "glyphs_for"]

_NARROW, _WIDE = 60, 110
_LONGEST_SPARK = 100
_STATUS_STYLES = {"running": "bold green", "completed": "bold cyan", "stopped": "bold yellow", "failed": "bold red"}
_STATUS_WORDS = {"unknown": "status not recorded"}
_GIB = float(1 << 30)


class Glyphs:
    """The characters to draw with.

    Attributes:
        blocks: Eight heights of a sparkline.
        done: What is done of a bar.
        rest: What is not.
        dot: Between two facts.
        cut: At the end of what was cut off.
    """

    def __init__(self, blocks: str, done: str, rest: str, dot: str, cut: str) -> None:
        self.blocks, self.done, self.rest, self.dot, self.cut = blocks, done, rest, dot, cut


_UNICODE = Glyphs("▁▂▃▄▅▆▇█", "━", "─", " · ", "…")
_ASCII = Glyphs("_.-~=+*#", "#", "-", " | ", "~")


def glyphs_for(encoding: str) -> Glyphs:
    """Those that an encoding has."""
    drawn = "".join((_UNICODE.blocks, _UNICODE.done, _UNICODE.rest, _UNICODE.dot, _UNICODE.cut))
    try:
        drawn.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return _UNICODE


def frame(view: View, width: int, height: int | None, glyphs: Glyphs, keys: str = "") -> list[Text]:
    """The lines of a frame.

    Args:
        view: What there is to see.
        width: Columns; no line is longer.
        height: Lines that there are; None if as many as needed.
        glyphs: What to draw with.
        keys: What can be pressed, for the last line; empty where nothing can.
    """
    width = max(20, width)
    head = _head(view, width, glyphs)
    foot = _foot(view, width, glyphs, keys)
    room = None if height is None else max(2, height - len(head) - len(foot) - 2)
    alerts = _alerts(view, width, glyphs, None if room is None else max(2, room - min(len(view.metrics) + 1, room // 2)))
    metrics = _metrics(view.metrics, width, glyphs, None if room is None else max(1, room - len(alerts)))
    lines = [*head, Text(), *metrics, *([Text()] if metrics else []), *alerts, *foot]
    for line in lines:
        if cell_len(line.plain) > width:  # narrow terminals, and numbers beyond all measure
            line.truncate(width)
    return lines if height is None else lines[:height]


def _head(view: View, width: int, glyphs: Glyphs) -> list[Text]:
    name = clean(view.run_id) or clean(view.source)
    status = Text(_STATUS_WORDS.get(view.status, view.status), style=_STATUS_STYLES.get(view.status, "dim"))
    if view.trainer:
        status = Text.assemble((clean(view.trainer), "bold"), glyphs.dot, status)
    lines = [_apart(Text(_cut(name, width - cell_len(status.plain) - 2, glyphs), style="bold"), status, width)]
    lines.append(_progress(view, width, glyphs))
    facts = [f"elapsed {_clock(view.elapsed_s)}"] if view.elapsed_s is not None else []
    speed = view.steps_per_second
    if speed:
        facts.append(f"{number(speed)} steps/s" if speed >= 1 else f"{number(1 / speed)} s/step")
    if "tokens_per_second" in view.resources:
        facts.append(f"{view.resources['tokens_per_second']:,.0f} tokens/s")
    last = Text(f"last log {_clock(view.last_log_s)} ago", style="yellow" if view.late else "") if view.last_log_s is not None else Text()
    lines.append(_apart(Text(_fit(facts, width - cell_len(last.plain) - 2, glyphs.dot)), last, width))
    if view.reason and view.status != "completed":
        lines.append(Text(_cut(clean(f"{view.status}: {view.reason}"), width, glyphs), style=_STATUS_STYLES.get(view.status, "")))
    if view.late:
        usual = f", usually every {_clock(view.usual_s)}" if view.usual_s else ""
        lines.append(Text(_cut(f"nothing logged for {_clock(view.last_log_s)}{usual}", width, glyphs), style="yellow"))
    if view.silent:
        lines.append(Text(_cut(clean(view.silent), width, glyphs), style="yellow"))
    lines += [Text(_cut(clean(note), width, glyphs), style="dim") for note in view.notes]
    return lines


def _progress(view: View, width: int, glyphs: Glyphs) -> Text:
    if view.reading is not None:
        return _bar(view.reading, f"reading the log {view.reading:4.0%}", "", width, glyphs)
    if not view.events:
        return Text()
    if not view.max_steps:
        return Text(f"step {view.step:,}", style="bold")
    share = min(1.0, view.step / view.max_steps)
    left = f"{_clock(view.left_s)} left" if view.left_s is not None and share < 1.0 else ""
    return _bar(share, f"step {view.step:,} of {view.max_steps:,}", left, width, glyphs)


def _bar(share: float, before: str, after: str, width: int, glyphs: Glyphs) -> Text:
    after = f"{math.floor(100 * share):3d} %" + (f"{glyphs.dot}{after}" if after else "")
    room = width - len(before) - cell_len(after) - 4
    if room < 6:
        return Text(_cut(f"{before}{glyphs.dot}{after.strip()}", width, glyphs), style="bold")
    done = math.floor(room * share)
    return Text.assemble(
        (before, "bold"), "  ", (glyphs.done * done, "green"), (glyphs.rest * (room - done), "dim"), "  ", after
    )


def _metrics(lines: Sequence[MetricLine], width: int, glyphs: Glyphs, room: int | None) -> list[Text]:
    """A line a metric, under a heading; the last ones are left out where there is no room."""
    if not lines or (room is not None and room < 2):
        return []
    shown = list(lines[: room - 1] if room is not None else lines)
    if len(shown) < len(lines):
        # What is ill is not what is left out.
        ill = [line for line in lines[len(shown) :] if line.alert]
        shown = [*shown[: max(0, len(shown) - len(ill))], *ill][: len(shown)]
    columns = ["last"] if width < _NARROW else ["last", "change"] if width < _WIDE else ["last", "change", "first", "low", "high"]
    names = max(cell_len(clean(line.name)) for line in shown)
    names = min(max(names, 6), 16 if width < _NARROW else 20 if width < _WIDE else 32)
    room_for_spark = min(_LONGEST_SPARK, width - names - 12 * len(columns) - 2)
    title = Text(style="dim")
    title.append(_sized("metric", names + 2) + _sized("", max(0, room_for_spark)) + "".join(f"{name:>12}" for name in columns))
    heading = [title]
    for line in shown:
        text = Text()
        style = SEVERITY_STYLES.get(line.alert, "")
        text.append(_sized(_cut(clean(line.name), names, glyphs), names + 2), style=style or "bold")
        if room_for_spark > 0:
            text.append_text(_sparkline(line, room_for_spark, glyphs))
        for name in columns:
            if name == "change":
                text.append(f"{_signed(line.change):>12}", style="dim")
            else:
                text.append(f"{_value(getattr(line, name)) if _has(line, name) else '':>12}", style=style if name == "last" else "dim")
        heading.append(text)
    return heading


def _has(line: MetricLine, name: str) -> bool:
    return name == "last" or getattr(line, name) is not None


def _sparkline(line: MetricLine, width: int, glyphs: Glyphs) -> Text:
    """The course of a metric between its lowest and its highest point; what was not finite is a mark of its own."""
    points = spark(line.points, width)
    finite = [point for point in points if math.isfinite(point)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = high - low
    text = Text()
    for point in points:
        if not math.isfinite(point):
            text.append("!", style="bold red")
        elif not span > 0 or not math.isfinite(span):
            text.append(glyphs.blocks[3], style="cyan")
        else:
            text.append(glyphs.blocks[min(7, int(8 * ((point - low) / span)))], style="cyan")
    text.append(" " * (width - len(points)))
    return text


def _alerts(view: View, width: int, glyphs: Glyphs, room: int | None) -> list[Text]:
    """The alerts, the most recent first; where there is no room, those that have passed go first, then the oldest."""
    if not view.events:
        return []
    still = sum(alert.resolved_step is None for alert in view.alerts)
    if not view.alerts:
        return [Text("no alerts", style="dim")]
    passed = len(view.alerts) - still
    counts = ", ".join(f"{count} {word}" for count, word in ((still, "open"), (passed, "passed")) if count)
    lines = [Text(f"alerts: {counts}", style="dim")]
    left = None if room is None else room - 1
    order = sorted(range(len(view.alerts)), key=lambda at: (_raised(view.alerts[at]), at), reverse=True)
    chosen: dict[int, list[Text]] = {}
    for at in sorted(order, key=lambda at: view.alerts[at].resolved_step is not None):  # stable: open ones first
        if left is not None and left <= 0:
            break
        drawn = _alert(view.alerts[at], width, glyphs)
        if left is not None and len(drawn) > left:
            drawn = drawn[:left]
            drawn[-1] = Text(_cut(drawn[-1].plain.rstrip() + " " * width, width, glyphs), style=drawn[-1].style)
        left = None if left is None else left - len(drawn)
        chosen[at] = drawn
    for at in order:
        lines += chosen.get(at, [])
    if len(chosen) < len(order):
        lines[0].append(f", {len(order) - len(chosen)} not shown")
    return lines


def _raised(alert: Alert) -> int:
    at = alert.evidence.get("escalated_at")
    return at if type(at) is int else alert.step


def _alert(alert: Alert, width: int, glyphs: Glyphs) -> list[Text]:
    """An open alert with its whole message, one that has passed on one line."""
    when = f"step {_raised(alert):,}"
    code = clean(alert.code)
    message = clean(alert.message).removeprefix(f"{code}: ")
    if alert.resolved_step is not None:
        line = f"  {alert.severity:<8}  {when}  {code}  passed at step {alert.resolved_step:,}: {message}"
        return [Text(_cut(line, width, glyphs), style="dim")]
    style = SEVERITY_STYLES[alert.severity]
    label = alert.severity.upper() if alert.severity == Severity.CRITICAL.value else alert.severity
    head = Text.assemble("  ", (f"{label:<8}", style), "  ", (when, "bold"), "  ", (code, style), "  ")
    indent = 12 if width >= _NARROW else 4
    if width < _NARROW:
        first = Text(_cut(head.plain.rstrip(), width, glyphs))
        first.stylize(style)
        return [first, *(Text(" " * indent + part) for part in _wrapped(message, width - indent, width - indent))]
    parts = _wrapped(message, width - cell_len(head.plain), width - indent)
    head.append(parts[0])
    return [head, *(Text(" " * indent + part) for part in parts[1:])]


def _wrapped(text: str, first: int, rest: int) -> list[str]:
    """Words on lines: the first of one width, the others of another. A word that is longer than a line is broken."""
    lines, line, width = [], "", max(1, first)
    for word in text.split(" "):
        while cell_len(f"{line} {word}" if line else word) > width:
            if line:
                lines.append(line)
                line = ""
            else:
                part = set_cell_size(word, width).rstrip() or word[:1]
                lines.append(part)
                word = word[len(part) :]
            width = max(1, rest)
        line = f"{line} {word}" if line else word
    return [*lines, line]


def _foot(view: View, width: int, glyphs: Glyphs, keys: str) -> list[Text]:
    facts = []
    have = view.resources
    if "memory_bytes" in have:
        peak = have.get("memory_peak_bytes")
        facts.append(f"memory {have['memory_bytes'] / _GIB:.1f} GiB" + (f", peak {peak / _GIB:.1f}" if peak else ""))
    if "host_memory_frac" in have:
        facts.append(f"host {have['host_memory_frac']:.0%}")
    if "cpu_percent" in have:
        facts.append(f"cpu {have['cpu_percent']:.0f} %")
    if "gpu_memory_bytes" in have:
        share = f" ({have['gpu_memory_frac']:.0%})" if "gpu_memory_frac" in have else ""
        facts.append(f"gpu {have['gpu_memory_bytes'] / _GIB:.1f} GiB{share}")
    if "gpu_percent" in have:
        facts.append(f"gpu {have['gpu_percent']:.0f} %")
    events = sum(view.events.values())
    if events:
        facts.append(f"{events:,} event{'' if events == 1 else 's'}")
    if view.malformed:
        facts.append(f"{view.malformed:,} malformed line{'' if view.malformed == 1 else 's'}")
    if not facts and not keys:
        return []
    line = _fit(facts, width - len(keys) - 2 * bool(keys), glyphs.dot)
    return [Text(), _apart(Text(line, style="dim"), Text(keys, style="dim"), width)]


# Small parts


def _fit(facts: Sequence[str], width: int, dot: str) -> str:
    """As many of the facts, from the first, as fit."""
    line = ""
    for fact in facts:
        longer = f"{line}{dot}{fact}" if line else fact
        if cell_len(longer) > width:
            break
        line = longer
    return line


def _apart(left: Text, right: Text, width: int) -> Text:
    """Two texts at the ends of a line."""
    gap = width - cell_len(left.plain) - cell_len(right.plain)
    return Text.assemble(left, " " * max(1, gap), right) if right.plain and gap > 0 else left


def _cut(text: str, width: int, glyphs: Glyphs) -> str:
    """A text of at most so many columns, marked where it was cut."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + glyphs.cut


def _sized(text: str, width: int) -> str:
    return set_cell_size(text, width)


def _value(value: float | int | None) -> str:
    """A number in at most ten characters, however large."""
    text = number(value)
    return text if value is None or len(text) <= 10 else f"{float(value):.4g}"


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    text = _value(value)
    return text if text.startswith("-") or value == 0 else f"+{text}"


def _clock(seconds: float | None) -> str:
    """A duration: `12 s`, `4:05`, `1:02:03`, `2 d 3 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    days, hour = divmod(hours, 24)
    return f"{days} d {hour} h"
