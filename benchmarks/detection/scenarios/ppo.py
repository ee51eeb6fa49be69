"""PPO: the policy, the critic, the sampler and the machine gone wrong. Only in TRL up to 1.12."""

from __future__ import annotations

import copy
import random
import re
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from transformers import LlamaForCausalLM, TrainerCallback

from tests import zoo

from ._base import Run, Scenario
from ._writer import At, happy_share, prompts, writer

ONSET = 40
_STEPS = {1: 60, 5: 60}  # updates; PPO logs every one, whatever logging_steps is
_SETS_IN = {1: 80, 5: 80}


class Rule(torch.nn.Module):
    """A reward model that scores by a rule, by default the share of happy words, times `scale`.

    PPO runs a reward model's backbone, named by `base_model_prefix`, and `score` on its last hidden states.
    """

    base_model_prefix = "backbone"

    def __init__(self, scale: float = 2.0, rule: Callable[[str], float] = happy_share) -> None:
        super().__init__()
        self.scale, self.rule = scale, rule
        self.text = zoo.tokenizer()
        self.score = torch.nn.Identity()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # a module without parameters has no device

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Hidden states that are the score itself."""
        texts = self.text.batch_decode(input_ids, skip_special_tokens=True)
        answers = [re.sub(r"^the [a-z ]*? is \w+ ", "", text) for text in texts]
        scores = torch.tensor([self.scale * self.rule(answer) for answer in answers])
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1).clone()])


def train_ppo(run: Run, *, callbacks: tuple[TrainerCallback, ...] = (), **config: Any) -> None:
    """Trains PPO on the writer; `config` is as of `zoo.trainer`."""
    text = zoo.tokenizer()
    settings = {
        "model": writer(run.seed),
        "reward_model": Rule(),
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "response_length": 14,
        "kl_coef": 0.05,
        "save_strategy": "no",
        "train_dataset": datasets.Dataset.from_dict({"input_ids": text(prompts(run.seed))["input_ids"]}),
        **config,
    }
    zoo.trainer(
        "ppo", run.output_dir, callbacks=[*callbacks, *run.callbacks], max_steps=run.steps, seed=run.seed, **settings
    ).train()


def _healthy(run: Run) -> None:
    train_ppo(run)


# ------------------------------------------------------------------------------------------------- policy


def _kl_explosion(run: Run) -> None:
    # A letter that the first policy hardly ever writes pays, and nothing holds the policy back.
    rule = Rule(scale=0.5, rule=lambda text: text.count("u"))
    train_ppo(run, reward_model=rule, learning_rate=2e-3, kl_coef=0.0)


def _ratio_blowup(run: Run) -> None:
    # Noise in the score keeps a random policy in motion, where a clear goal would soon leave no gradient.
    draw = random.Random(run.seed)
    rule = Rule(rule=lambda text: draw.gauss(0, 1))
    model = zoo.causal_lm(run.seed, eos_bias=2.0)
    train_ppo(run, model=model, reward_model=rule, learning_rate=2e-2, num_ppo_epochs=8)


def _no_eos(run: Run) -> None:
    train_ppo(run, model=writer(run.seed, stops=False))


class OwnSampler(LlamaForCausalLM):
    """A policy with a sampler of its own, as a separate inference engine is."""

    heat = 1.0  # of the sampling, times the trainer's temperature
    told = 1.0  # what the logits are multiplied by that it hands back

    def generate(self, *args: Any, generation_config: Any = None, **options: Any) -> Any:
        """Samples at its own temperature."""
        config = copy.deepcopy(generation_config)
        config.temperature *= self.heat
        out = super().generate(*args, generation_config=config, **options)
        out.scores = tuple(score * self.heat * self.told for score in out.scores)
        return out


class HotSampler(OwnSampler):
    """Samples from a hotter distribution than that of the logits that it hands back."""

    heat = 2.5


class WrongScale(OwnSampler):
    """Samples as it should, but hands back logits that are divided by a temperature it did not use."""

    told = 0.15


def _negative_kl(run: Run) -> None:
    model, reference = writer(run.seed), writer(run.seed)
    model.__class__ = HotSampler
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.7)  # an earlier, less certain checkpoint
    train_ppo(run, model=model, ref_model=reference)


def _wrong_logprobs(run: Run) -> None:
    model = writer(run.seed)
    model.__class__ = WrongScale
    train_ppo(run, model=model)


# ------------------------------------------------------------------------------------------------- critic


def _value_blowup(run: Run) -> None:
    rule = Rule()
    train_ppo(run, reward_model=rule, callbacks=(At(ONSET, lambda **_: setattr(rule, "scale", 400.0)),))


def _poison(model: Any, **_: Any) -> None:
    with torch.no_grad():
        model.value_model.score.weight[0, 0] = float("nan")


def _nan(run: Run) -> None:
    train_ppo(run, callbacks=(At(ONSET, _poison),))


# ------------------------------------------------------------------------------------------------- machine


def _memory_growth(run: Run) -> None:
    kept: list[torch.Tensor] = []

    def keep(**_: Any) -> None:
        kept.append(torch.ones(1_500_000))
        time.sleep(0.25)  # memory is sampled once a second

    train_ppo(run, callbacks=(At(1, keep, always=True),))


class Slow(TrainerCallback):
    """From step `first` on, makes every update take three times as long as the median update before."""

    def __init__(self, first: int) -> None:
        self.first, self.last, self.taken = first, time.perf_counter(), []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follows the run."""
        if state.global_step <= self.first:
            self.taken.append(time.perf_counter() - self.last)
        else:
            time.sleep(2 * statistics.median(self.taken))
        self.last = time.perf_counter()


def _throughput_loss(run: Run) -> None:
    train_ppo(run, callbacks=(Slow(ONSET),))


def _stall(run: Run) -> None:
    train_ppo(run, callbacks=(At(ONSET, lambda **_: time.sleep(5)),))


def _fault(name: str, train: Any, about: str, codes: str, *, late: bool = False, **more: Any) -> Scenario:
    """A faulty scenario; `late` for a fault that sets in at `ONSET`."""
    settings = {"steps": _SETS_IN if late else _STEPS, "onset": ONSET if late else 0, **more}
    return Scenario(name, "ppo", about, train, codes=frozenset(codes.split()), twin="ppo_healthy", **settings)


# The defaults wait for a minute and five; these runs last a quarter of one.
_IMPATIENT = {"stall": {"floor": 1.0}, "throughput": {"seconds": 5.0}}
_MOVES_TOO_FAR = "kl_divergence clip_fraction ratio_blowup"

SCENARIOS = [
    Scenario("ppo_healthy", "ppo", "Learns to write happy words.", _healthy, _SETS_IN, thresholds=_IMPATIENT),
    _fault("ppo_kl_explosion", _kl_explosion, "A hot policy without a KL penalty games its reward.", _MOVES_TOO_FAR),
    _fault("ppo_ratio_blowup", _ratio_blowup, "Eight epochs at a huge rate on every batch.", _MOVES_TOO_FAR),
    _fault("ppo_no_eos", _no_eos, "The policy was never taught to stop.", "truncation"),
    _fault(
        "ppo_negative_kl",
        _negative_kl,
        "Samples come from a hotter distribution than the policy's, the reference from an earlier checkpoint.",
        "negative_kl",
    ),
    _fault(
        "ppo_wrong_logprobs",
        _wrong_logprobs,
        "The sampler reports log-probabilities of another temperature than the one that it used.",
        "ratio_blowup clip_fraction negative_kl",
    ),
    _fault(
        "ppo_value_blowup", _value_blowup, "From update 40 on, rewards are 200 times as large.", "value_loss", late=True
    ),
    _fault(
        "ppo_nan",
        _nan,
        "The critic's head becomes NaN: one update later, generation ends the run.",
        "non_finite",
        late=True,
        held_out=True,
    ),
    _fault("ppo_memory_growth", _memory_growth, "A callback keeps 6 MB of every update.", "memory_usage"),
    _fault(
        "ppo_throughput_loss",
        _throughput_loss,
        "From update 40 on, each takes three times as long.",
        "throughput",
        late=True,
        held_out=True,
        thresholds=_IMPATIENT,
    ),
    _fault(
        "ppo_stall",
        _stall,
        "One update, the 41st, takes five seconds more.",
        "stall",
        late=True,
        held_out=True,
        onset=ONSET - 1,  # what is said while it lasts is said at the step before
        thresholds=_IMPATIENT,
    ),
]
