"""Labels without an end-of-sequence token."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding


class EosLabels(Detector):
    """No label of the first training rows holds an end-of-sequence token.

    What it sees: `eos_label_frac`, measured on the first rows when training begins: the share of them whose labels,
    as the collator makes them, hold an id that ends a text. Rows that were cut at the length limit are left out.
    Why it matters: the model is never shown where an answer ends and will not end its own: generation then runs to
    the token limit. No metric of the training shows it.
    When it fires: the share is 0.
    What to do: end the texts with the tokenizer's `eos_token`; check `eos_token` and the chat template in `SFTConfig`;
    if `pad_token` is `eos_token` and a collator of your own masks padding by its id, give padding an id of its own.
    False alarms: models whose texts end with a token that neither the tokenizer nor the generation config names as an
    end. That `pad_token` equals `eos_token` is no fault by itself: TRL keeps the labels of the real one.
    Sources: TRL issues 1623 and 3091, alignment-handbook issue 127; measured: TRL adds the end to texts that it
    tokenizes itself, not to rows that come as ids.
    """

    code = "eos_labels"
    title = "No end of text in the labels"
    watches = ("eos_label_frac",)
    only_watched = True
    needs = "SFT on a dataset whose first rows can be read when training begins"
    advice = (
        "End each text with the tokenizer's eos_token (rows that come as input_ids get none from TRL), or set eos_token "
        "in SFTConfig to the one that the chat template uses."
    )
    phases = frozenset({"setup", "train"})

    def judge(self, event: Event) -> Answer:
        """One look at the share."""
        share = event.metrics.get("eos_label_frac")
        if share is None:
            return ABSENT
        if share != share:
            return WARMING
        if share > 0.0:
            return FINE
        message = "eos_label_frac is 0: none of the first rows that are whole has an end-of-sequence token in its labels."
        return Finding("eos_label_frac", 0.0, 0.0, message, Severity.WARNING)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Labels without and with an end; packed rows of which only some hold one."""
        yield Example("no row has an end", [{"eos_label_frac": 0.0}], [1])
        yield Example("every row has one", [{"eos_label_frac": 1.0}], [])
        yield Example("packed rows, some of which hold an end", [{"eos_label_frac": 0.25}], [])
