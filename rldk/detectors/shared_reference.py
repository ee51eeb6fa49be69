"""A reference model that is trained along with the policy."""

from __future__ import annotations

from collections.abc import Iterator

from ..event import Event, Severity
from ..text import number
from ._base import ABSENT, FINE, WARMING, Answer, Detector, Example, Finding, number_parameter


class SharedReference(Detector):
    """The reference model's weights lie in the policy's memory, so the two can never differ.

    What it sees: `ref_shared_frac`, measured when training begins: the share of the reference's tensors that share
    memory with trained tensors of the policy.
    Why it matters: the reference moves with the policy. The KL divergence, and the rewards of DPO and KTO, are then 0
    whatever happens, and nothing holds the policy back.
    When it fires: the share is above `share` (0.5): critical.
    What to do: give `ref_model` a model that was loaded separately or `copy.deepcopy(model)`, or pass `ref_model=None`
    and let the trainer make its own.
    False alarms: some tensors are shared by design where only a part of the policy is trained; untrained tensors are not
    counted. With PEFT there is no second model and no such metric.
    Sources: TRL's trainers refuse only a reference that is the same object (source); the threshold is chosen here.

    Args:
        share: Share of shared tensors above which the alert is raised.
    """

    code = "shared_reference"
    title = "Reference model shares the policy's weights"
    watches = ("ref_shared_frac",)
    only_watched = True
    needs = "a trainer with a reference model of its own"
    advice = "Load ref_model separately, or pass copy.deepcopy(model), or ref_model=None."
    phases = frozenset({"setup"})

    def __init__(self, *, share: float = 0.5) -> None:
        self.share = number_parameter(self.code, "share", share, low=0.0, high=1.0)

    def judge(self, event: Event) -> Answer:
        """One look at the share."""
        share = event.metrics.get("ref_shared_frac")
        if share is None:
            return ABSENT
        if share != share:
            return WARMING
        if share <= self.share:
            return FINE
        message = (
            f"ref_shared_frac is {number(share)}: that share of the reference model's tensors are the policy's own, "
            "and change with it."
        )
        return Finding("ref_shared_frac", share, self.share, message, Severity.CRITICAL)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """All weights shared, and none or a few."""
        yield Example("the same weights in another object", [{"ref_shared_frac": 1.0}], [1])
        yield Example("a copy", [{"ref_shared_frac": 0.0}], [])
        yield Example("tied embeddings shared", [{"ref_shared_frac": 0.05}], [])
