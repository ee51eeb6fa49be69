"""Training rows that have no label."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter


class EmptyLabels(Detector):
    """Rows of which no token is a target, so that nothing is learnt from them.

    What it sees: `empty_label_frac`, measured on the first rows when training begins: the share of them whose labels
    are all masked (-100), as the collator makes them.
    Why it matters: those rows cost time and teach nothing, and a batch of only such rows has the loss NaN, which
    transformers logs as 0.0.
    When it fires: the share is `share` (0.1) or more; critical if it is 1.
    What to do: prompts that fill `max_length` leave no room for the answer: raise it or drop them. With
    `assistant_only_loss=True` the chat template must mark the answers (`{% generation %}`); with a response template,
    check that it tokenizes the same inside the text.
    False alarms: sixteen rows are looked at, so two long prompts among them are enough; the share is in the
    message.
    Sources: TRL's documentation of `assistant_only_loss`; the threshold is chosen here.

    Args:
        share: Share of rows without a label from which the alert is raised.
    """

    code = "empty_labels"
    title = "Rows without a label"
    watches = ("empty_label_frac",)
    only_watched = True
    needs = "SFT on a dataset whose first rows can be read when training begins"
    advice = (
        "Raise max_length or drop rows whose prompt alone fills it; with assistant_only_loss=True use a chat template that "
        "marks the answers with {% generation %}."
    )
    phases = frozenset({"setup", "train"})

    def __init__(self, *, share: float = 0.1) -> None:
        self.share = number_parameter(self.code, "share", share, low=1e-6, high=1.0)

    def judge(self, event: Event) -> Answer:
        """One look at the share."""
        share = event.metrics.get("empty_label_frac")
        if share is None:
            return ABSENT
        if share != share:
            return WARMING
        if share < self.share:
            return FINE
        message = f"empty_label_frac is {number(share)}: of that share of the first rows no token is a target."
        severity = Severity.CRITICAL if share >= 1.0 else Severity.WARNING
        return Finding("empty_label_frac", share, self.share, message, severity)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """All rows, a third of them, and one long prompt."""
        yield Example("no row has a label", [{"empty_label_frac": 1.0}], [1])
        yield Example("a third of the rows have none", [{"empty_label_frac": 0.3125}], [1])
        yield Example("one long prompt among sixteen", [{"empty_label_frac": 1 / 16}], [])
        yield Example("all have labels", [{"empty_label_frac": 0.0}], [])
