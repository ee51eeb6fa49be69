"""The table of known issues: what goes wrong with which TRL, what the user sees, and what to do.

One row an issue. A row is in force when its specifiers match what is installed and its probes say so; asking needs no
TRL. Each row is proved in tests/test_known_issues.py, on a version that has the issue and on one that has not.
`docs/known-issues.md` is generated from the table.

Versions are judged by their release: 1.13.0.dev0 and 1.13.0rc1 count as 1.13.0, and 1.16.0+local as 1.16.0. PEP 440's
own reading puts 1.13.0.dev0 neither into `<1.13.0` nor into `>=1.13.0`. A development version has most of what its
release will have; where that matters (is PPO there or not?) a row has a probe, which is asked in place of the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

__all__ = ["KNOWN_ISSUES", "Issue", "in_force", "matches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One thing that is wrong with some versions.

    Attributes:
        code: Short name.
        affects: The trainers that it concerns.
        trl: PEP 440 specifier of the TRL that has it; empty for every version.
        transformers: The same of transformers, besides.
        probe: A fact about the installed TRL that is asked in place of `trl`, where it is known.
        machine: A fact about the machine that must be true besides the versions.
        symptom: What the user sees, with the literal text of the error where there is one.
        remedy: What to do, in the parameter names of TRL.
        cure: The name in rldk that cures it; empty where none does.
        evidence: Where it was seen: an issue or pull request, or what was run or read.
        until: The first version without it, or "open".
    """

    code: str
    affects: str
    symptom: str
    remedy: str
    evidence: str
    until: str
    trl: str = ""
    transformers: str = ""
    probe: str = ""
    machine: str = ""
    cure: str = ""


def matches(specifier: str, version: str | None) -> bool:
    """Whether a version is one of those that a specifier names; a version that is unknown or unreadable is not.

    An empty specifier names every version, also an unknown one.
    """
    if not specifier:
        return True
    try:
        release = Version(version or "").base_version
    except InvalidVersion:
        return False
    return SpecifierSet(specifier).contains(release, prereleases=True)


def in_force(trl: str | None, transformers: str | None, facts: Mapping[str, bool]) -> list[Issue]:
    """The rows that are true of an installation, in the order of the table.

    Args:
        trl: Version of TRL; None without TRL, of which only what needs no TRL is true.
        transformers: Version of transformers; None without it.
        facts: The answers of the probes, by name. A fact that is missing is not known: then the version decides in
            place of a `probe`, and what needs it in `machine` is not in force.
    """
    found = []
    for issue in KNOWN_ISSUES:
        there = facts[issue.probe] if issue.probe in facts else matches(issue.trl, trl)
        if there and matches(issue.transformers, transformers) and (not issue.machine or facts.get(issue.machine, False)):
            found.append(issue)
    return found


_PPO = "<1.13.0"  # the versions with a PPO of their own
_RAN = "measured on TRL 0.23.1 and 1.12.0"

KNOWN_ISSUES = (
    # Where PPO lives
    Issue(
        code="ppo_moved", affects="PPO", trl=">=0.26.0,<0.29.0", probe="ppo_shim", until="0.29.0",
        symptom="FutureWarning: The `PPOTrainer` is now located in `trl.experimental`. What is at the top level is a "
        "subclass that only warns.",
        remedy="Import PPOTrainer and PPOConfig from trl.experimental.ppo, or from rldk.integrations.trl, which finds "
        "them on every TRL.",
        cure="PPOTrainer", evidence="TRL issue 4223; measured on TRL 0.26.2 and 0.28.0",
    ),
    Issue(
        code="ppo_experimental_only", affects="PPO", trl=">=0.29.0,<1.13.0", probe="ppo_experimental_only",
        until="1.13.0",
        symptom="ImportError: cannot import name 'PPOTrainer' from 'trl'",
        remedy="Import PPOTrainer and PPOConfig from trl.experimental.ppo, or from rldk.integrations.trl, which finds "
        "them on every TRL.",
        cure="PPOTrainer", evidence="TRL issue 4223; measured on TRL 0.29.1 and 1.12.0",
    ),
    Issue(
        code="ppo_removed", affects="PPO", trl=">=1.13.0", probe="no_ppo", until="open",
        symptom="ImportError: cannot import name 'PPOTrainer' from 'trl'; ModuleNotFoundError: No module named "
        "'trl.experimental.ppo'. TRL removed PPO and the value-head models in 1.13.0.",
        remedy='Use create_ppo_trainer of rldk.integrations.trl, or install the last TRL with PPO: pip install "trl<1.13".',
        cure="create_ppo_trainer", evidence="TRL pull request 7020; measured on TRL 1.16.0",
    ),
    # Value heads in PPO
    Issue(
        code="value_head_attributes", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="AttributeError: 'AutoModelForCausalLMWithValueHead' object has no attribute 'base_model_prefix' (then "
        "'score'), for a value model when the trainer is built, for a reward model in train().",
        remedy="Call fix_generation_config(model, tokenizer) on it first, or take "
        "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1) as value_model and reward_model.",
        cure="fix_generation_config", evidence=f"TRL issue 2718; {_RAN}",
    ),
    Issue(
        code="value_head_generation_config", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="AttributeError: 'AutoModelForCausalLMWithValueHead' object has no attribute 'generation_config' (then "
        "'is_gradient_checkpointing'), for a value-head model as policy, when the trainer is built.",
        remedy="Pass value_head_model.pretrained_model as model. fix_generation_config gives the attributes, but such a "
        "policy cannot train: see value_head_policy.",
        cure="fix_generation_config", evidence=f"TRL issue 2340; {_RAN}",
    ),
    Issue(
        code="value_head_policy", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="AttributeError: 'tuple' object has no attribute 'logits', in train(), for a value-head model as policy "
        "that has been given the attributes it lacks.",
        remedy="Pass value_head_model.pretrained_model as model. The value-head model itself may serve as value_model, "
        "after fix_generation_config.",
        evidence=_RAN,
    ),
    # What TRL's PPO does
    Issue(
        code="ppo_sample_generations", affects="PPO", trl="<0.29.0", until="0.29.0",
        symptom="TypeError: object of type 'NoneType' has no len(), after the first update, without an eval_dataset: "
        "num_sample_generations is 10 by default.",
        remedy="Set num_sample_generations=0, or pass an eval_dataset.",
        evidence="measured on TRL 0.23.1, 0.28.0 (fails) and 0.29.1, 1.12.0 (does not)",
    ),
    Issue(
        code="ppo_endless_loop", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="train() never returns and never logs, if the dataset has fewer rows than one batch "
        "(per_device_train_batch_size x gradient_accumulation_steps x processes): the last, smaller batch is dropped, and "
        "the loop over an empty loader has no end.",
        remedy="Use more rows, or a smaller per_device_train_batch_size or gradient_accumulation_steps. create_ppo_trainer "
        "refuses such a set-up on TRL's own trainer.",
        cure="create_ppo_trainer", evidence=_RAN,
    ),
    Issue(
        code="ppo_mini_batches", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="num_mini_batches adds no optimizer steps: an epoch over a batch is one step whenever "
        "gradient_accumulation_steps is a multiple of num_mini_batches, because the optimizer steps only every "
        "gradient_accumulation_steps forward passes.",
        remedy="For mini-batches that are stepped on, set gradient_accumulation_steps=1 and raise "
        'per_device_train_batch_size, or take create_ppo_trainer(..., backend="rldk").',
        cure="create_ppo_trainer", evidence="measured on TRL 0.23.1 and 1.12.0: 2 epochs x 4 mini-batches make 2 steps at "
        "gradient_accumulation_steps=4, and 8 at 1",
    ),
    Issue(
        code="ppo_diluted_averages", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="policy/*_avg, loss/*_avg, val/clipfrac_avg and val/ratio are too small when num_mini_batches > 1 and "
        "gradient_accumulation_steps > 1: val/ratio reads 0.50 at a true ratio of 1 with 2 and 2.",
        remedy="Read rldk's metrics, which are corrected (run.json says by how much), or multiply by "
        "gradient_accumulation_steps / ceil(gradient_accumulation_steps / num_mini_batches).",
        cure="RLDKCallback", evidence=_RAN,
    ),
    Issue(
        code="ppo_entropy_padding", affects="PPO", trl="<1.10.0", until="1.10.0",
        symptom="objective/entropy counts each padding position as -1 nat: it falls as answers get shorter, and can be "
        "negative. Training is not affected.",
        remedy="Look at policy/entropy_avg instead, or use TRL 1.10 or newer.",
        evidence="TRL pull request 6121, issue 2022; measured on TRL 0.23.1, 1.9.2 (wrong) and 1.10.0, 1.12.0 (right)",
    ),
    Issue(
        code="ppo_ignores_stop", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="A callback sets control.should_training_stop, and training goes on to the end.",
        remedy="Raise an exception from the callback. RLDKCallback(stop_on=...) does so, after a checkpoint: train() ends "
        "with rldk.exceptions.TrainingStopped.",
        cure="RLDKCallback", evidence=_RAN,
    ),
    Issue(
        code="ppo_no_resume", affects="PPO", trl=_PPO, probe="ships_ppo", until="1.13.0",
        symptom="TypeError: PPOTrainer.train() got an unexpected keyword argument 'resume_from_checkpoint'",
        remedy='Take create_ppo_trainer(..., backend="rldk"), whose checkpoints can be resumed from. A run of TRL\'s own can only '
        "be begun anew from the weights in its checkpoint, without its optimizer, value model and schedule.",
        cure="create_ppo_trainer", evidence=_RAN,
    ),
    # Versions that do not go together
    Issue(
        code="trl_transformers_5_3", affects="DPO, GRPO, RLOO", trl="<0.29.0", transformers=">=5.3.0", until="0.29.0",
        symptom="RuntimeError: Failed to import trl.trainer.grpo_trainer ... No module named 'vllm' (or 'mergekit', "
        "'weave', 'vllm_ascend'): TRL takes each optional package that is not installed for one that is.",
        remedy='pip install "trl>=0.29", or pip install "transformers<5".',
        evidence="ms-swift pull request 9770; measured on TRL 0.23.1 to 0.28.0 (fails) and 0.29.0 (works) with "
        "transformers 5.23.0",
    ),
    Issue(
        code="trl_transformers_5_1", affects="KTO, ORPO, CPO, DPO, GRPO, RLOO, OnlineDPO", trl="<0.27.2",
        transformers=">=5.1.0", until="0.27.2",
        symptom="AttributeError: object has no attribute 'warnings_issued', when the trainer is built.",
        remedy='pip install "trl>=0.29", or pip install "transformers<5".',
        evidence="measured on TRL 0.23.1 with transformers 5.23.0; the other bounds read in the sources",
    ),
    Issue(
        code="token_type_ids", affects="GRPO, RLOO", trl="<0.29.1", until="0.29.1",
        symptom="ValueError: The following `model_kwargs` are not used by the model: ['token_type_ids'], for a tokenizer "
        "that returns them, as a PreTrainedTokenizerFast made by hand does in transformers 4.",
        remedy='Set tokenizer.model_input_names = ["input_ids", "attention_mask"].',
        evidence="measured with transformers 4.57.6 on TRL 0.23.1, 0.28.0, 0.29.0 (fail), 0.29.1 and 1.16.0 (do not)",
    ),
    Issue(
        code="needs_requests", affects="GRPO, RLOO", trl=">=0.28.0,<1.14.2", machine="no_requests", until="1.14.2",
        symptom="RuntimeError or ModuleNotFoundError: No module named 'requests', on `from trl import GRPOTrainer`, also "
        "without vLLM. TRL does not require it, and transformers 5 no longer brings it.",
        remedy="pip install requests",
        evidence="measured on TRL 1.12.0 (fails), 0.23.1 and 1.16.0 (do not); the bounds read in the sources",
    ),
    Issue(
        code="bf16_on_cpu", affects="every trainer", machine="no_bf16_device", until="open",
        symptom="ValueError: Your setup doesn't support bf16/gpu, from SFTConfig(...), GRPOConfig(...) and the others: "
        "bf16 is on by default in TRL, and this machine shows no device that has it.",
        remedy="Pass bf16=False, and use_cpu=True to train on the CPU.",
        evidence="measured on TRL 0.23.1, 1.12.0 and 1.16.0",
    ),
    Issue(
        code="stray_trackio", affects="every trainer", machine="stray_trackio", until="open",
        symptom="AttributeError: module 'trackio' has no attribute 'init', when training begins with "
        "report_to=\"trackio\" (transformers 4.57: with report_to left at its default too). TRL 0.29 and newer: "
        "ImportError: cannot import name 'context_vars' from 'trackio', at the first checkpoint, whatever report_to says.",
        remedy="A file or folder named trackio is found in place of the package: rename or remove it. Installing the "
        "package (pip install trackio) helps only against a folder without __init__.py. A trainer with RLDKCallback trains "
        "all the same; where the import of TRL itself fails, call rldk.trackio.install() before it.",
        cure="RLDKCallback", evidence="measured on TRL 0.23.1 and 1.16.0",
    ),
    # Numbers that mean something else
    Issue(
        code="reward_std_within_groups", affects="GRPO, RLOO", trl="<0.27.0", until="0.27.0",
        symptom="reward_std is the mean of the deviations within groups. From TRL 0.27 on it is the deviation over the "
        "whole batch, so that the two cannot be compared.",
        remedy="Do not compare across 0.27.0. `vocabulary` in rldk's run.json has the unit in force.",
        evidence="measured on TRL 0.23.1 (within groups), 1.12.0 and 1.16.0 (whole batch)",
    ),
    Issue(
        code="kto_summed_logits", affects="KTO", trl="<1.9.0", until="1.9.0",
        symptom="logits/chosen and logits/rejected are sums over all positions and the whole vocabulary, in the thousands "
        "or more, not means.",
        remedy="Do not compare with other trainers, other lengths, or TRL 1.9 and newer.",
        evidence="measured on TRL 0.23.1, 1.8.0 (sums), 1.9.0, 1.12.0 and 1.16.0 (means)",
    ),
)
