"""rldk.ppo and TRL's own PPO say the same of the same rollouts, wherever TRL ships PPO (up to 1.12).

TRL is run for real and overheard (`ppo_tap`); what it sampled and how it weighed it is then fed to rldk.ppo. What both
define alike is equal within 1e-5. Where TRL averages over padding, or gives each forward pass the same weight whatever
its number of tokens, the exact relation is asserted instead.

TRL reads padding out of token ids, rldk.ppo out of positions: they agree unless a policy samples the pad token, which
the policies here never do.
"""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
import zoo
from packaging.version import Version
from ppo_runs import CASES, EOS, PAD, Run, overheard, where_trl_has_ppo
from torch import Tensor

from rldk.ppo._statistics import Averages
from rldk.ppo.models import judge_tokens
from rldk.ppo.prompts import Prompts
from rldk.ppo.scoring import RewardModel

pytestmark = pytest.mark.matrix

trl_version = Version(importlib.metadata.version("trl"))
RUNS = [pytest.param(name, seed, id=f"{name}-{seed}") for name in CASES for seed in range(3)]


def test_trl_has_ppo_up_to_1_12():
    assert zoo.has("ppo") == (trl_version < Version("1.13"))


def close(ours: Tensor, theirs: Tensor, what: str) -> None:
    torch.testing.assert_close(
        ours.float(), theirs.float(), rtol=1e-5, atol=1e-5, msg=lambda text: f"{what} differs: {text}"
    )


@where_trl_has_ppo
@pytest.mark.parametrize(("case", "seed"), RUNS)
def test_the_rollout_is_judged_alike(case, seed):
    """Masks, log-probabilities of policy and reference, values, and scores with their penalty."""
    run = overheard(case, seed)
    for update in run.updates:
        told = update.rollout
        mask, attention = run.masks(update)
        assert torch.equal(mask, ~told["padding_mask"])
        assert torch.equal(mask, told["responses"] != PAD), "the policy sampled a pad token: TRL takes it for padding"
        run.load(update.passes[0].weights)
        batch = (told["query_responses"], attention, mask.shape[1], run.args.temperature)
        with torch.no_grad():
            own = run.model(*batch)
            reference = judge_tokens(run.ref_model, *batch)[0]
        experience = run.experience(update)
        close(own.logprobs[mask], told["logprobs"][mask], "logprobs")
        close(reference[mask], told["ref_logprobs"][mask], "ref_logprobs")
        assert torch.equal(experience.value_mask, ~told["padding_mask_p1"])
        close(own.values * experience.value_mask, told["values"], "values")
        prompts = Prompts(told["query_responses"][:, : update.context_length], attention[:, : update.context_length], [])
        scores = RewardModel(run.reward_model, 3, None)([], prompts, told["responses"], mask, None).total
        if run.args.missing_eos_penalty is not None:
            ended = ((told["responses"] == EOS) & mask).any(dim=1)
            scores = torch.where(ended, scores, scores - run.args.missing_eos_penalty)
        close(scores, told["scores"], "scores")


@where_trl_has_ppo
@pytest.mark.parametrize(("case", "seed"), RUNS)
def test_advantages_returns_and_kl_are_equal(case, seed):
    run = overheard(case, seed)
    for update in run.updates:
        told, experience = update.rollout, run.experience(update)
        assert told["kl"].abs().max() > 1e-3
        close(experience.kl, told["kl"], "kl of each token")
        close(experience.kl.sum(1).mean(), torch.tensor(update.logged["objective/kl"]), "objective/kl")
        close(experience.advantages, told["advantages"], "advantages")
        close(experience.returns, told["returns"], "returns")


@where_trl_has_ppo
@pytest.mark.parametrize(("case", "seed"), RUNS)
def test_losses_clip_fractions_and_gradients_are_equal(case, seed):
    """Each forward pass from the weights that TRL had there, and each optimizer step's gradients."""
    run = overheard(case, seed)
    args, schedule = run.args, run.schedule
    alike = schedule.accumulation == 1 or args.stop_token is None  # all passes of a step have as many tokens
    clipped, early = 0.0, False
    for update in run.updates:
        experience = run.experience(update)
        for start in range(0, len(update.passes), schedule.accumulation):
            step = update.passes[start : start + schedule.accumulation]
            run.model.zero_grad()
            weights, totals = [], []
            for index, told in enumerate(step, start):
                run.load(told.weights)
                micro = experience.micro_batch(index, schedule)
                assert torch.equal(experience.order.reshape(-1, schedule.micro_batch)[index], told.rows)
                out, policy, value = run.judged(micro)
                tokens, states, places = micro.mask.sum(), micro.value_mask.sum(), micro.mask.numel()
                heard = told.told
                close(out.logprobs[micro.mask], heard["new_logprobs"][micro.mask], "logprobs")
                close(out.values[micro.value_mask], heard["vpred"][micro.value_mask], "values")
                close(policy.loss / tokens, heard["pg_loss"], "policy loss")
                close(value.loss / states, heard["vf_loss"], "value loss")
                close(policy.clipped / tokens, heard["pg_clipfrac"], "policy clip fraction")
                close(value.clipped / states, heard["vf_clipfrac"], "value clip fraction")
                close(out.entropy[micro.mask], heard["entropy"][micro.mask], "entropy of each token")
                # TRL's means go over padding too, where the log ratio is 0 and the ratio 1.
                close(policy.approx_kl / places, heard["approxkl"], "approximate KL")
                close((policy.ratio + places - tokens) / places, heard["ratio"].mean(), "ratio")
                clipped += float(heard["pg_clipfrac"] + heard["vf_clipfrac"])
                early |= bool(tokens < places)
                loss = policy.loss / micro.tokens + args.vf_coef * value.loss / micro.states
                if not alike:  # TRL's step is the mean of its passes' losses, whatever their numbers of tokens
                    (policy.loss / tokens + args.vf_coef * value.loss / states).div(len(step)).backward()
                else:
                    loss.backward()
                weights.append((tokens / micro.tokens, states / micro.states))
                totals.append(loss.detach())
            # A mini-batch is a mean over its tokens, not over its passes: TRL's losses come in by their tokens.
            theirs = sum(
                of_tokens * told.told["pg_loss"] + args.vf_coef * of_states * told.told["vf_loss"]
                for told, (of_tokens, of_states) in zip(step, weights, strict=True)
            )
            close(sum(totals), theirs, "total loss")
            compare_gradients(run, step[-1].gradients)
    assert clipped > 0, "nothing was clipped: a wrong clip would not show"
    assert early == (args.stop_token is not None)


def compare_gradients(run: Run, theirs: dict[str, Tensor] | None) -> None:
    """Gradients of the whole loss on each weight, of policy and critic."""
    assert theirs is not None, "TRL made no optimizer step here"
    # Gradients sum hundreds of rounded terms, in another order on each side: 1e-5 is of the whole gradient's norm.
    size = max(1.0, float(torch.stack([other.norm() for other in theirs.values()]).norm()))
    biggest = 0.0
    for name, weight in run.model.named_parameters():
        other = theirs.get(name)
        if other is None:
            other = theirs.get(name.replace("value_head.linear", "value_model.v_head.summary"))
        assert other is not None, name
        close(weight.grad / size, other / size, f"gradient of {name}")
        biggest = max(biggest, float(other.abs().max()))
    assert biggest > 1e-3


@where_trl_has_ppo
@pytest.mark.parametrize(("case", "seed"), RUNS)
def test_what_is_logged_of_an_update_differs_only_by_known_factors(case, seed):
    """Ours are means over tokens; TRL's over slots, some of them empty, of means over passes, some over padding."""
    run = overheard(case, seed)
    args, schedule = run.args, run.schedule
    slots = args.num_ppo_epochs * args.num_mini_batches * args.gradient_accumulation_steps
    for update in run.updates:
        experience, averages, heard = run.experience(update), Averages(), [one.told for one in update.passes]
        for index, told in enumerate(update.passes):
            run.load(told.weights)
            micro = experience.micro_batch(index, schedule)
            with torch.no_grad():
                out, policy, value = run.judged(micro)
            averages.add(policy, value, (out.entropy * micro.mask).sum(), micro.mask.sum(), micro.value_mask.sum())
        own = averages.metrics(SimpleNamespace(reduce=lambda sums, reduction: sums))
        logged = {name: torch.tensor(value, dtype=torch.float32) for name, value in update.logged.items()}
        for name, local in {
            "loss/policy_avg": "pg_loss", "loss/value_avg": "vf_loss", "policy/clipfrac_avg": "pg_clipfrac",
            "val/clipfrac_avg": "vf_clipfrac", "policy/approxkl_avg": "approxkl", "policy/entropy_avg": "entropy",
            "val/ratio": "ratio",
        }.items():
            close(sum(told[local].mean() for told in heard) / slots, logged[name], f"TRL's {name}")
        if len(update.passes) == slots == args.num_ppo_epochs:  # each pass has the same rows: all weights are equal
            padding = experience.mask.numel() / experience.mask.sum()
            for name in ("loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg"):
                close(torch.tensor(own[name]), logged[name], name)
            close(torch.tensor(own["policy/approxkl_avg"]), logged["policy/approxkl_avg"] * padding, "approxkl")
            close(torch.tensor(own["val/ratio"]), (logged["val/ratio"] - 1) * padding + 1, "ratio")
        mask = experience.mask
        entropy = (-experience.logprobs * mask).sum(1).mean()
        if trl_version < Version("1.0"):  # counts padding as -1 nat a place
            entropy = entropy - (~mask).sum() / len(mask)
        close(entropy, logged["objective/entropy"], "objective/entropy")
        close(update.rollout["scores"].mean(), logged["objective/scores"], "objective/scores")


@where_trl_has_ppo
def test_trl_makes_a_step_of_each_pass_at_the_end_of_the_prompts():
    """What docs/ppo-parity.md says that rldk.ppo does not do: accelerate's rule for the last batch of a data loader.

    The gradient of such a step is divided by the accumulation steps all the same.
    """
    run = overheard("a pass over the prompts", 0)
    steps = [[told.gradients is not None for told in update.passes] for update in run.updates]
    assert steps == [[False, True] * 3] * 3 + [[True, True] * 3]
    last, args = run.updates[-1], run.args
    experience = run.experience(last)
    for index, told in enumerate(last.passes):
        run.load(told.weights)
        run.model.zero_grad()
        micro = experience.micro_batch(index, run.schedule)
        _, policy, value = run.judged(micro)
        loss = policy.loss / micro.mask.sum() + args.vf_coef * value.loss / micro.value_mask.sum()
        (loss / args.gradient_accumulation_steps).backward()
        compare_gradients(run, told.gradients)
