"""PPO's formulas against other ways to compute the same: double sums, loops, exact expectations, autograd."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rldk.exceptions import ConfigurationError
from rldk.ppo import losses
from rldk.ppo.config import Schedule
from rldk.ppo.rollout import Experience, Rollout, finished

B, T = 5, 7
LENGTHS = (1, 3, 6, 7, 7)  # ended early three times, at full length twice
NAN, HUGE = float("nan"), 1e30


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(lengths=LENGTHS, width=T):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


MASK = mask_of()
VALUE_MASK = mask_of([min(length + 1, T) for length in LENGTHS])


def spoiled(tensor, mask, garbage):
    """The same tensor with garbage where it does not count."""
    return torch.where(mask, tensor, garbage)


class TestMeans:
    def test_masked_mean_is_the_mean_of_what_counts(self):
        values = random(0, B, T)
        assert losses.masked_mean(values, MASK).item() == pytest.approx(values[MASK].mean().item(), rel=1e-12)
        assert losses.masked_mean(values, torch.zeros_like(MASK)).isnan()

    @pytest.mark.parametrize("shift", [True, False])
    def test_whitening(self, shift):
        values = 3 + 5 * random(1, B, T)
        white = losses.whitened(values, MASK, shift_mean=shift)
        assert white[MASK].std().item() == pytest.approx(1, rel=1e-6)
        assert white[MASK].mean().item() == pytest.approx(0 if shift else values[MASK].mean().item(), abs=1e-9)
        assert (white[~MASK] == 0).all()
        order = values[MASK].argsort()
        assert torch.equal(white[MASK].argsort(), order), "it is a straight line upwards"

    def test_whitening_of_what_does_not_vary_is_finite(self):
        one = mask_of([1, 0, 0, 0, 0])
        for mask in (one, MASK):
            for shift in (True, False):
                white = losses.whitened(torch.full((B, T), 2.0), mask, shift_mean=shift)
                torch.testing.assert_close(white[mask], torch.full_like(white[mask], 0.0 if shift else 2.0))

    @pytest.mark.parametrize("garbage", [NAN, HUGE])
    def test_masked_places_change_nothing(self, garbage):
        values = random(2, B, T)
        bad = spoiled(values, MASK, garbage)
        assert torch.equal(losses.masked_mean(bad, MASK), losses.masked_mean(values, MASK))
        assert torch.equal(losses.whitened(bad, MASK), losses.whitened(values, MASK))
        assert torch.equal(losses.explained_variance(bad, bad, MASK), losses.explained_variance(values, values, MASK))


class TestKL:
    def test_both_estimators_are_unbiased_and_k3_is_not_negative(self):
        p, q = torch.softmax(random(3, 6), 0), torch.softmax(random(4, 6), 0)
        true = (p * (p / q).log()).sum()
        spread = {}
        for name in ("k1", "k3"):
            each = losses.kl_per_token(p.log()[None], q.log()[None], torch.ones(1, 6, dtype=torch.bool), name)[0]
            assert (p * each).sum().item() == pytest.approx(true.item(), rel=1e-12)
            spread[name] = (p * each.square()).sum() - true**2
            if name == "k3":
                assert (each >= 0).all()
        assert spread["k3"] < spread["k1"]

    @pytest.mark.parametrize("garbage", [NAN, HUGE, -HUGE])
    @pytest.mark.parametrize("name", ["k1", "k3"])
    def test_masked_places_are_zero(self, name, garbage):
        logprobs, ref = random(5, B, T), random(6, B, T)
        clean = losses.kl_per_token(logprobs, ref, MASK, name)
        assert (clean[~MASK] == 0).all()
        assert torch.equal(losses.kl_per_token(spoiled(logprobs, MASK, garbage), ref, MASK, name), clean)
        assert torch.equal(losses.kl_per_token(logprobs, spoiled(ref, MASK, garbage), MASK, name), clean)


class TestRewards:
    def test_the_score_stands_after_the_last_token_or_on_it_at_full_length(self):
        scores = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
        rewards = losses.token_rewards(scores, torch.zeros(B, T), MASK, 0.5)
        for row, length in enumerate(LENGTHS):
            place = length if length < T else T - 1
            assert rewards[row, place] == scores[row]
            assert rewards[row].count_nonzero() == 1

    def test_the_penalty_is_on_every_token(self):
        kl = torch.where(MASK, random(7, B, T), 0.0)
        scores = random(8, B)
        rewards = losses.token_rewards(scores, kl, MASK, 0.5)
        for row, col in itertools.product(range(B), range(T)):
            end = min(LENGTHS[row], T - 1)
            expected = -0.5 * kl[row, col] + (scores[row] if col == end else 0)
            assert rewards[row, col].item() == pytest.approx(expected.item(), abs=1e-15)

    def test_the_value_mask_is_one_place_longer(self):
        assert torch.equal(losses.value_mask_of(MASK), VALUE_MASK)
        assert torch.equal(losses.value_mask_of(mask_of([0])), mask_of([1]))


class TestAdvantages:
    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0), (0.0, 0.9)])
    def test_a_double_sum(self, gamma, lam):
        rewards, values = random(9, B, T), random(10, B, T)
        advantages, returns = losses.advantages_and_returns(rewards, values, gamma, lam)
        for row in range(B):
            for t in range(T):
                total = 0.0
                for later in range(t, T):
                    following = values[row, later + 1] if later + 1 < T else 0.0
                    delta = rewards[row, later] + gamma * following - values[row, later]
                    total += (gamma * lam) ** (later - t) * delta
                assert advantages[row, t].item() == pytest.approx(float(total), abs=1e-12)
                assert returns[row, t].item() == pytest.approx(float(total + values[row, t]), abs=1e-12)

    def test_at_lambda_1_a_return_is_the_discounted_sum_of_rewards(self):
        rewards = random(11, B, T)
        _, returns = losses.advantages_and_returns(rewards, random(12, B, T), 0.9, 1.0)
        for t in range(T):
            weights = 0.9 ** torch.arange(T - t, dtype=torch.float64)
            torch.testing.assert_close(returns[:, t], (rewards[:, t:] * weights).sum(dim=1))


class TestPolicyLoss:
    eps = 0.2

    def brute(self, logprobs, old, advantages):
        loss = clipped = ratios = squares = 0.0
        for row, col in zip(*torch.where(MASK), strict=True):
            ratio = math.exp(logprobs[row, col] - old[row, col])
            advantage = float(advantages[row, col])
            held = min(max(ratio, 1 - self.eps), 1 + self.eps)
            loss += -min(advantage * ratio, advantage * held)
            clipped += advantage * held < advantage * ratio
            ratios += ratio
            squares += 0.5 * (logprobs[row, col] - old[row, col]) ** 2
        return loss, clipped, ratios, float(squares)

    def test_loops(self):
        logprobs, old, advantages = 0.3 * random(13, B, T), 0.3 * random(14, B, T), random(15, B, T)
        got = losses.policy_loss(logprobs, old, advantages, MASK, self.eps)
        assert [part.item() for part in got] == pytest.approx(self.brute(logprobs, old, advantages), rel=1e-12)
        assert 0 < got.clipped < MASK.sum(), "the case has both kinds"

    def test_the_gradient_is_minus_advantage_times_ratio_or_zero_where_clipped(self):
        old, advantages = 0.3 * random(16, B, T), random(17, B, T)
        logprobs = (0.3 * random(18, B, T)).requires_grad_()
        losses.policy_loss(logprobs, old, advantages, MASK, self.eps).loss.backward()
        ratio = (logprobs - old).exp().detach()
        up, down = (advantages > 0) & (ratio > 1 + self.eps), (advantages < 0) & (ratio < 1 - self.eps)
        expected = torch.where((up | down) | ~MASK, 0.0, -advantages * ratio)
        torch.testing.assert_close(logprobs.grad, expected)
        assert (up & MASK).any() and (down & MASK).any() and (expected != 0).any()

    @pytest.mark.parametrize("garbage", [NAN, HUGE, -HUGE])
    @pytest.mark.parametrize("spoil", range(3))
    def test_masked_places_change_nothing(self, spoil, garbage):
        tensors = [0.3 * random(20 + i, B, T) for i in range(3)]
        bad = list(tensors)
        bad[spoil] = spoiled(tensors[spoil], MASK, garbage)
        for given_tensors in (tensors, bad):
            given_tensors[0] = given_tensors[0].clone().requires_grad_()
        clean, dirty = (losses.policy_loss(*given_tensors, MASK, self.eps) for given_tensors in (tensors, bad))
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
        clean.loss.backward()
        dirty.loss.backward()
        assert torch.equal(tensors[0].grad, bad[0].grad) and (tensors[0].grad[~MASK] == 0).all()


class TestValueLoss:
    eps = 0.2

    def test_loops(self):
        values, old, returns = 0.3 * random(23, B, T), 0.3 * random(24, B, T), random(25, B, T)
        got = losses.value_loss(values, old, returns, VALUE_MASK, self.eps)
        loss = clipped = 0.0
        for row, col in zip(*torch.where(VALUE_MASK), strict=True):
            v, v_old, target = (float(tensor[row, col]) for tensor in (values, old, returns))
            held = min(max(v, v_old - self.eps), v_old + self.eps)
            loss += 0.5 * max((v - target) ** 2, (held - target) ** 2)
            clipped += (held - target) ** 2 > (v - target) ** 2
        assert [part.item() for part in got] == pytest.approx([loss, clipped], rel=1e-12)
        assert 0 < got.clipped < VALUE_MASK.sum()

    def test_the_gradient_is_zero_where_clipped(self):
        old, returns = 0.3 * random(26, B, T), random(27, B, T)
        values = (0.3 * random(28, B, T)).requires_grad_()
        losses.value_loss(values, old, returns, VALUE_MASK, self.eps).loss.backward()
        held = torch.clamp(values.detach(), old - self.eps, old + self.eps)
        in_force = (held - returns).square() > (values.detach() - returns).square()
        torch.testing.assert_close(values.grad, torch.where(in_force | ~VALUE_MASK, 0.0, values.detach() - returns))

    @pytest.mark.parametrize("garbage", [NAN, HUGE])
    @pytest.mark.parametrize("spoil", range(3))
    def test_masked_places_change_nothing(self, spoil, garbage):
        tensors = [random(30 + i, B, T) for i in range(3)]
        clean = losses.value_loss(*tensors, VALUE_MASK, self.eps)
        tensors[spoil] = spoiled(tensors[spoil], VALUE_MASK, garbage).requires_grad_(spoil == 0)
        dirty = losses.value_loss(*tensors, VALUE_MASK, self.eps)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
        if spoil == 0:
            dirty.loss.backward()
            assert tensors[0].grad.isfinite().all() and (tensors[0].grad[~VALUE_MASK] == 0).all()


class TestExplainedVariance:
    def test_a_perfect_critic_one_that_knows_the_mean_and_a_bad_one(self):
        returns = random(33, B, T)
        assert losses.explained_variance(returns + 3, returns, MASK).item() == pytest.approx(1)
        assert losses.explained_variance(torch.full((B, T), 9.0), returns, MASK).item() == pytest.approx(0, abs=1e-12)
        assert losses.explained_variance(-returns, returns, MASK).item() == pytest.approx(-3)

    def test_its_formula(self):
        values, returns = random(34, B, T), random(35, B, T)
        expected = 1 - (returns - values)[MASK].var() / returns[MASK].var()
        assert losses.explained_variance(values, returns, MASK).item() == pytest.approx(expected.item())

    def test_there_is_none_where_returns_do_not_vary(self):
        assert losses.explained_variance(random(36, B, T), torch.ones(B, T), MASK).isnan()


class TestAdaptiveKL:
    def test_it_goes_towards_the_target(self):
        assert losses.adapted_kl_coef(0.1, 7.0, 6.0, 0.1) > 0.1 > losses.adapted_kl_coef(0.1, 5.0, 6.0, 0.1)
        assert losses.adapted_kl_coef(0.1, 6.0, 6.0, 0.1) == 0.1

    @given(kl=st.floats(allow_nan=True, allow_infinity=True), gain=st.floats(0.001, 1))
    def test_one_update_changes_it_by_a_fifth_of_the_gain_at_most(self, kl, gain):
        coefficient = losses.adapted_kl_coef(0.1, kl, 6.0, gain)
        assert abs(coefficient / 0.1 - 1) <= 0.2 * gain + 1e-12

    def test_within_the_bounds_it_is_proportional(self):
        assert losses.adapted_kl_coef(0.1, 6.6, 6.0, 0.5) == pytest.approx(0.1 * (1 + 0.5 * 0.1))

    def test_a_kl_of_nan_leaves_it(self):
        assert losses.adapted_kl_coef(0.1, NAN, 6.0, 0.1) == 0.1


class TestFinished:
    def test_the_stop_token_is_the_last(self):
        responses = torch.tensor([[5, 2, 7, 2], [2, 2, 2, 2], [5, 6, 7, 8], [5, 6, 7, 2]])
        mask, ended = finished(responses, 2)
        assert mask.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4, [True] * 4]
        assert ended.tolist() == [True, True, False, True]

    def test_without_a_stop_token_all_run_to_the_end(self):
        mask, ended = finished(torch.tensor([[5, 2, 7, 2]]), None)
        assert mask.all() and not ended.any()


def rollout(seed=40, scores=None, dtype=torch.float32):
    width = 3
    ids = torch.randint(4, 30, (B, width + T), generator=torch.Generator().manual_seed(seed))
    attention = torch.cat([torch.ones(B, width, dtype=torch.long), MASK.long()], dim=1)
    tensors = (random(seed + i, B, T).to(dtype) for i in range(1, 4))
    return Rollout(ids, attention, MASK, *tensors, random(seed + 4, B).to(dtype) if scores is None else scores)


OF = {"epochs": 3, "kl_coef": 0.1, "kl_estimator": "k1", "gamma": 0.9, "lam": 0.8}


class TestExperience:
    def test_it_is_the_formulas_one_after_another(self):
        r = rollout(dtype=torch.float64)
        got = Experience.of(r, **OF)
        kl = torch.where(MASK, r.logprobs - r.ref_logprobs, 0.0)
        values = torch.where(VALUE_MASK, r.values, 0.0)
        rewards = -0.1 * kl
        for row, length in enumerate(LENGTHS):
            rewards[row, min(length, T - 1)] += r.scores[row]
        raw, returns = losses.advantages_and_returns(rewards, values, 0.9, 0.8)
        advantages = torch.where(MASK, (raw - raw[MASK].mean()) / raw[MASK].std(), 0.0)
        torch.testing.assert_close(got.kl, kl)
        torch.testing.assert_close(got.returns[VALUE_MASK], returns[VALUE_MASK])
        torch.testing.assert_close(got.advantages, advantages, rtol=1e-6, atol=1e-9)
        assert torch.equal(got.value_mask, VALUE_MASK)

    def test_whitened_rewards_keep_their_mean(self):
        one_step = {**OF, "gamma": 0.0, "lam": 0.0}  # then a return is the reward
        plain, white = Experience.of(rollout(), **one_step), Experience.of(rollout(), **one_step, whiten_rewards=True)
        assert white.returns[VALUE_MASK].std().item() == pytest.approx(1, rel=1e-4)
        assert white.returns[VALUE_MASK].mean().item() == pytest.approx(plain.returns[VALUE_MASK].mean().item(), abs=1e-6)

    @pytest.mark.parametrize("garbage", [NAN, HUGE])
    def test_masked_places_change_nothing(self, garbage):
        clean = rollout()
        dirty = Rollout(
            clean.input_ids, clean.attention_mask, MASK, spoiled(clean.logprobs, MASK, garbage),
            spoiled(clean.ref_logprobs, MASK, garbage), spoiled(clean.values, VALUE_MASK, garbage), clean.scores,
        )
        for options in (OF, {**OF, "whiten_rewards": True, "kl_estimator": "k3"}):
            a, b = Experience.of(clean, **options), Experience.of(dirty, **options)
            for name in ("kl", "values", "advantages", "returns"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name

    @pytest.mark.parametrize("score", [NAN, math.inf, -math.inf])
    def test_a_response_without_a_finite_score_is_left_out(self, score):
        r = rollout()
        r.scores[1] = score
        got = Experience.of(r, **OF)
        assert not got.mask[1].any() and not got.value_mask[1].any() and (got.advantages[1] == 0).all()
        others = [0, 2, 3, 4]
        rest = Experience.of(Rollout(*(tensor[others] for tensor in vars(r).values())), **OF)
        torch.testing.assert_close(got.advantages[others], rest.advantages)
        torch.testing.assert_close(got.returns[others], rest.returns)

    def test_each_pass_has_an_order_of_its_own(self):
        order = Experience.of(rollout(), **{**OF, "epochs": 20}).order
        assert all(sorted(one) == list(range(B)) for one in order.tolist())
        assert len({tuple(one) for one in order.tolist()}) > 10

    def test_saved_and_read_back(self, tmp_path):
        saved = Experience.of(rollout(), **OF)
        saved.save(tmp_path / "rollout.safetensors")
        read = Experience.load(tmp_path / "rollout.safetensors", torch.device("cpu"))
        for name, tensor in vars(saved).items():
            again = getattr(read, name)
            assert again.dtype == tensor.dtype and torch.equal(again, tensor), name


def arguments(per_device, accumulation, mini_batches, epochs=1, world_size=1, **more):
    settings = {"local_batch_size": None, "total_episodes": None, "max_steps": -1, "num_train_epochs": 3.0, **more}
    return SimpleNamespace(
        per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation, num_mini_batches=mini_batches,
        num_ppo_epochs=epochs, world_size=world_size, **settings,
    )


@st.composite
def schedules(draw):
    per_device, accumulation = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rows = per_device * accumulation
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    args = arguments(per_device, accumulation, draw(st.sampled_from(divisors)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return args, Schedule.of(args, draw(st.integers(1, 200)))


class TestSchedule:
    @given(schedules())
    def test_its_numbers_fit(self, case):
        args, schedule = case
        assert schedule.rollout == args.per_device_train_batch_size * args.gradient_accumulation_steps
        assert schedule.micro_batch <= args.per_device_train_batch_size
        assert schedule.accumulation * schedule.micro_batch == schedule.mini_batch
        assert schedule.mini_batch * args.num_mini_batches == schedule.rollout
        assert schedule.steps == args.num_ppo_epochs * args.num_mini_batches
        assert schedule.micro_steps * schedule.micro_batch == args.num_ppo_epochs * schedule.rollout
        bigger = [n for n in range(schedule.micro_batch + 1, args.per_device_train_batch_size + 1) if schedule.mini_batch % n == 0]
        assert not bigger, "the largest that fits"

    @settings(max_examples=30)
    @given(schedules())
    def test_every_row_is_visited_once_a_pass(self, case):
        _, schedule = case
        rows = schedule.rollout
        numbers = torch.arange(rows, dtype=torch.float32)
        mask = torch.ones(rows, 2, dtype=torch.bool)
        mask[::2, 1] = False
        r = Rollout(
            torch.arange(rows)[:, None].expand(rows, 3).contiguous(), torch.ones(rows, 3, dtype=torch.long), mask,
            torch.zeros(rows, 2), torch.zeros(rows, 2), torch.zeros(rows, 2), numbers,
        )
        experience = Experience.of(r, **{**OF, "epochs": schedule.epochs})
        micros = [experience.micro_batch(index, schedule) for index in range(schedule.micro_steps)]
        per_pass = schedule.micro_steps // schedule.epochs
        for epoch in range(schedule.epochs):
            seen = [row for micro in micros[epoch * per_pass : (epoch + 1) * per_pass] for row in micro.input_ids[:, 0].tolist()]
            assert sorted(seen) == list(range(rows)) and seen == experience.order[epoch].tolist()
        for start in range(0, len(micros), schedule.accumulation):
            mini = micros[start : start + schedule.accumulation]
            assert {int(micro.tokens) for micro in mini} == {sum(int(micro.mask.sum()) for micro in mini)}
            assert {int(micro.states) for micro in mini} == {sum(int(micro.value_mask.sum()) for micro in mini)}

    @pytest.mark.parametrize(("more", "steps", "updates"), [
        ({"total_episodes": 100}, 7 * 6, 7),  # 16 prompts an update over both processes: rounded up
        ({"total_episodes": 96}, 6 * 6, 6),
        ({"total_episodes": 32, "max_steps": 5}, 2 * 6, 2),  # total_episodes wins
        ({"max_steps": 8}, 8, 2),
        ({"num_train_epochs": 2.0}, -1, 8),
        ({"num_train_epochs": 0.3}, -1, 2),
        ({"num_train_epochs": 0.01}, -1, 1),
    ])
    def test_what_it_makes_of_the_arguments(self, more, steps, updates):
        args = arguments(4, 2, 2, epochs=3, world_size=2, **more)
        Schedule.of(args, 70).written_to(args)
        assert args.max_steps == steps and args.num_total_batches == updates
        assert (args.local_batch_size, args.batch_size) == (8, 16)
        assert (args.local_mini_batch_size, args.mini_batch_size, args.micro_batch_size) == (4, 8, 8)
        assert args.gradient_accumulation_steps == 1

    def test_arguments_that_a_trainer_has_computed_mean_the_same_again(self):
        args = arguments(4, 2, 2)
        first = Schedule.of(args, 70)
        first.written_to(args)
        assert Schedule.of(args, 70) == first

    def test_mini_batches_must_divide_the_rollout(self):
        with pytest.raises(ConfigurationError, match="num_mini_batches=3 does not divide the 8 prompts"):
            Schedule.of(arguments(4, 2, 3), 10)
        with pytest.raises(ConfigurationError, match="train_dataset is empty"):
            Schedule.of(arguments(4, 2, 2), 0)
