"""Raw names to canonical names: what real trainers logged, and what people put into logs."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pytest
import torch
from captures import capture, captures
from hypothesis import given, settings
from hypothesis import strategies as st

from rldk.metrics import METRICS, SYNONYMS, canonical_name, canonical_names, lookup, nearest
from rldk.vocabulary import MAX_NAMES, Vocabulary, families, family_of, plain_number, recognise

FAMILIES = list(families().values())
# Told by the arguments alone: RLOO logs GRPO's keys.
LOOKS_LIKE = {"rloo": "grpo"}
CORE = [
    "reward_mean", "reward_std", "kl_mean", "entropy_mean", "clip_frac", "grad_norm", "lr", "loss", "policy_loss",
    "value_loss", "grad_norm_policy", "grad_norm_value", "tokens_in", "tokens_out",
]
DILUTED = {
    "num_mini_batches": 2,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2,
    "per_device_train_batch_size": 4,
}


def vocabulary(family: str, trl: str | None = None, arguments=None) -> Vocabulary:
    return Vocabulary(families()[family], trl, arguments)


@pytest.mark.parametrize("capture", captures(), ids=str)
class TestCaptures:
    def test_every_key_is_known(self, capture):
        """Every key that the trainer logged has a row in the table of metrics."""
        words = vocabulary(capture.family, capture.trl)
        for logs in capture.logs:
            for name in words.translate(logs).metrics:
                assert lookup(name) is not None, name

    def test_nothing_is_lost_and_nothing_invented(self, capture):
        """Every raw key becomes one canonical name with its own value, and there is no name besides."""
        words = vocabulary(capture.family, capture.trl)
        for logs in capture.logs:
            translated = words.translate(logs)
            assert len(translated.metrics) == len(logs)
            assert list(translated.metrics.values()) == list(logs.values())
            assert translated.skipped == {}

    def test_family_from_keys(self, capture):
        """The family is recognised from the keys of its logs, from the first training row on where that tells."""
        expected = LOOKS_LIKE.get(capture.family, capture.family)
        assert recognise({key for logs in capture.logs for key in logs}).name == expected
        if not (capture.family == "reward" and capture.trl == "0.23.1"):  # logs nothing of its own but at evaluation
            assert recognise(capture.logs[0]).name == expected

    def test_phases(self, capture):
        """Rows are training, evaluation or the last summary, and evaluation never touches training's names."""
        words = vocabulary(capture.family, capture.trl)
        for logs in capture.logs:
            phase, metrics, _ = words.translate(logs)
            expected = "summary" if "train_loss" in logs else "eval" if "eval_runtime" in logs else "train"
            assert phase == expected
            if phase == "eval":
                assert "loss" not in metrics
                assert {name for name in metrics if not name.startswith("eval_")} <= {
                    "epoch",
                    "num_tokens",
                    "num_input_tokens_seen",
                }

    def test_units_of_all(self, capture):
        """Every metric of the run has a unit in force."""
        words = vocabulary(capture.family, capture.trl)
        names = {name for logs in capture.logs for name in words.translate(logs).metrics}
        assert all(words.units(names)[name] for name in names)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
class TestFamilies:
    def test_terms_are_metrics(self, family):
        """Every name that a family translates to is in the table of metrics."""
        assert {term.name for term in family.terms} <= METRICS.keys()

    def test_raw_names_share_only_synonyms(self, family):
        """Raw names that share a canonical name are other spellings of one thing, never two things of one log."""
        by_name: dict[str, set[str]] = {}
        for raw, row in Vocabulary(family).table().items():
            by_name.setdefault(row["name"], set()).add(raw)
        shared = {name: raws for name, raws in by_name.items() if len(raws) > 1}
        allowed = {
            "lr": {"learning_rate", "lr"},
            "clip_frac": {"clip_ratio", "clip_ratio/region_mean"},
            "length_mean": {"completions/mean_length", "completion_length"},
            "entropy_mean": {"entropy", "policy/entropy_avg"},
        }
        assert {name: raws for name, raws in shared.items() if raws != allowed.get(name)} == {}

    def test_marks_are_recognised(self, family):
        """Logs that hold one of a family's marks, or that mark with `eval_` in front, are of that family."""
        for mark in family.marks:
            assert recognise(mark) is family
            assert recognise({f"eval_{key}" for key in mark} | {"epoch"}) is family

    def test_no_version_is_the_newest(self, family):
        """Without a known version, or with one that is no version, the newest meaning is taken."""
        newest = Vocabulary(family, "99.0")
        names = [row["name"] for row in newest.table().values()]
        for version in (None, "unknown", ""):
            assert Vocabulary(family, version).units(names) == newest.units(names)

    def test_configs(self, family):
        """A subclass of a family's arguments is of that family."""
        for name in family.configs:
            config = type(name, (), {})
            assert family_of(type("MyConfig", (config,), {})) is family

    @pytest.mark.parametrize("trl", ["0.23.1", "0.27.0", "0.27.0.dev0", "1.0.0rc1", "1.16.0+cu121"])
    def test_every_version_knows_every_name(self, family, trl):
        """No version falls between two rows, pre-releases and local versions included."""
        assert Vocabulary(family, trl).table().keys() == {
            raw for version in ("0.23.1", "99") for raw in Vocabulary(family, version).table()
        }


def test_unknown_arguments_are_generic():
    """Arguments of a class that nobody lists are those of the generic family."""
    assert family_of(type("TrainingArguments", (), {})).name == "generic"
    assert recognise({"loss", "grad_norm", "my_metric"}).name == "generic"
    assert recognise([]).name == "generic"


class TestUnits:
    def test_kl(self):
        """KL is per token in GRPO and RLOO, by other estimators, and per sequence in PPO, OnlineDPO and KTO."""
        units = {family.name: Vocabulary(family).units(["kl_mean"])["kl_mean"] for family in FAMILIES}
        assert {name for name, unit in units.items() if unit.startswith("nats/sequence")} == {
            "ppo",
            "online_dpo",
            "kto",
        }
        assert units["grpo"].startswith("nats/token")
        assert units["rloo"].startswith("nats/token")
        assert units["grpo"] != units["rloo"]

    @pytest.mark.parametrize("family", ["grpo", "rloo"])
    def test_reward_std(self, family):
        """The spread of rewards is within groups before TRL 0.27, over the whole batch from there on."""
        units = {
            trl: vocabulary(family, trl).units(["reward_std"])["reward_std"]
            for trl in ("0.23.1", "0.26.2", "0.27.2", "1.16.0")
        }
        assert units["0.23.1"] == units["0.26.2"]
        assert units["0.27.2"] == units["1.16.0"]
        assert "within groups" in units["0.23.1"]
        assert "whole batch" in units["1.16.0"]

    def test_entropy(self):
        """PPO's sum over the sequence and its mean over tokens are two metrics of two units."""
        metrics = vocabulary("ppo").translate({"objective/entropy": 70.0, "policy/entropy_avg": 5.9}).metrics
        assert metrics == {"entropy_seq": 70.0, "entropy_mean": 5.9}
        units = vocabulary("ppo").units(metrics)
        assert units["entropy_mean"] == "nats/token"
        assert units["entropy_seq"].startswith("nats/sequence")

    @pytest.mark.parametrize(
        ("loss_type", "unit"), [("sigmoid", "nats/sequence"), ("ipo", "nats/token"), (["sigmoid", "ipo"], "nats/token")]
    )
    def test_dpo_by_loss(self, loss_type, unit):
        """DPO's log-probabilities are means over tokens with the ipo loss, on the versions that did so."""
        old = vocabulary("dpo", "0.23.1", {"loss_type": loss_type}).units(["logp_chosen"])["logp_chosen"]
        new = vocabulary("dpo", "1.16.0", {"loss_type": loss_type}).units(["logp_chosen"])["logp_chosen"]
        assert old.startswith(unit)
        assert new == "nats/sequence"

    def test_evaluation_has_the_same_unit(self):
        """An evaluation metric has the unit of its training metric; a custom one has none."""
        units = vocabulary("ppo").units(["kl_mean", "eval_kl_mean", "my_metric"])
        assert units["eval_kl_mean"] == units["kl_mean"]
        assert "my_metric" not in units


class TestDilution:
    @pytest.mark.parametrize("name", ["0.23.1_ppo", "1.12.0_ppo"])
    def test_captured_ratio(self, name):
        """With the captured run's arguments the ratio reads 1.00 and its variance about 0, as they were."""
        run = capture(name)
        words = vocabulary("ppo", run.trl, DILUTED)
        for logs in run.logs:
            metrics = words.translate(logs).metrics
            assert logs["val/ratio"] == pytest.approx(0.5, abs=1e-3)
            assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-3)
            assert metrics["ratio_var"] == pytest.approx(0.0, abs=1e-4)
            assert metrics["ratio_var"] >= 0
            assert metrics["entropy_mean"] == 2 * logs["policy/entropy_avg"]
            assert metrics["kl_mean"] == logs["objective/kl"]  # not an average over slots

    @pytest.mark.parametrize(
        ("mini_batches", "accumulation", "ratio"), [(1, 4, 1.0), (2, 2, 0.5), (2, 4, 0.5), (4, 4, 0.25), (2, 1, 1.0)]
    )
    def test_measured_factors(self, mini_batches, accumulation, ratio):
        """The factors measured on real trainers at a true ratio of 1 are undone."""
        arguments = {**DILUTED, "num_mini_batches": mini_batches, "gradient_accumulation_steps": accumulation}
        metrics = (
            vocabulary("ppo", "0.23.1", arguments)
            .translate({"val/ratio": ratio, "policy/clipfrac_avg": 0.1 * ratio})
            .metrics
        )
        assert metrics["ratio_mean"] == pytest.approx(1.0)
        assert metrics["clip_frac"] == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("mini_batches", "accumulation", "processes"), [(2, 2, 1), (2, 4, 1), (4, 4, 2), (2, 2, 4)]
    )
    def test_against_a_buffer(self, mini_batches, accumulation, processes):
        """Mean and variance come out as those of the written slots of a buffer like TRL's."""
        draw = np.random.default_rng(0)
        epochs, per_device = 3, 4
        written = math.ceil(per_device * accumulation / mini_batches / per_device)
        buffer = np.zeros((processes, epochs, mini_batches, accumulation))
        buffer[..., :written] = draw.normal(1.0, 0.2, buffer[..., :written].shape)
        words = vocabulary(
            "ppo", "1.12.0",
            {"num_mini_batches": mini_batches, "gradient_accumulation_steps": accumulation, "num_ppo_epochs": epochs,
             "per_device_train_batch_size": per_device, "world_size": processes},
        )
        metrics = words.translate(
            {"val/ratio": float(buffer.mean()), "val/ratio_var": float(buffer.var(ddof=1))}
        ).metrics
        assert metrics["ratio_mean"] == pytest.approx(buffer[..., :written].mean())
        assert metrics["ratio_var"] == pytest.approx(buffer[..., :written].var(ddof=1))

    @pytest.mark.parametrize(
        "arguments",
        [
            None,
            {},
            {**DILUTED, "num_mini_batches": 0},
            {**DILUTED, "num_mini_batches": "many"},
            {**DILUTED, "num_mini_batches": 1},
        ],
        ids=str,
    )
    def test_unknown_dilution_changes_nothing(self, arguments):
        """Where the arguments do not tell, or nothing is diluted, values stay as they were logged."""
        words = vocabulary("ppo", "0.23.1", arguments)
        assert words.correction is None
        assert words.translate({"val/ratio": 0.5}).metrics == {"ratio_mean": 0.5}

    def test_absent_stays_absent(self):
        """The correction makes no metric that was not logged, and leaves None and NaN what they are."""
        words = vocabulary("ppo", "0.23.1", DILUTED)
        assert words.translate({"objective/kl": 1.0}).metrics == {"kl_mean": 1.0}
        metrics = words.translate({"val/ratio": math.nan, "val/ratio_var": math.nan, "loss/value_avg": None}).metrics
        assert math.isnan(metrics["ratio_mean"])
        assert metrics["value_loss"] is None

    def test_it_says_so(self):
        """The correction describes itself, with its numbers, for the run's manifest."""
        text = vocabulary("ppo", "0.23.1", DILUTED).correction.text
        assert "8 slots" in text
        assert "4 are written" in text
        assert "0.5" in text


class Stubborn:
    """A number that cannot be had."""

    def item(self):
        raise RuntimeError("no data")


class TestOddValues:
    @pytest.mark.parametrize(
        ("value", "number"),
        [
            (1, 1), (True, 1.0), (None, None), (math.nan, math.nan), (-math.inf, -math.inf), (-0.0, -0.0),
            (np.float32(0.5), 0.5), (np.float16("nan"), math.nan), (np.int8(-3), -3.0), (np.bool_(False), 0.0),
            (np.array(2.5), 2.5), (np.array([[2.5]]), 2.5), (torch.tensor(2.5), 2.5), (torch.tensor([3]), 3.0),
            (torch.tensor(2.5, requires_grad=True), 2.5), (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
            (2**63, 2.0**63), (10**400, math.inf), (-(10**400), -math.inf), (2**63 - 1, 2**63 - 1),
        ],
        ids=repr,
    )
    def test_read_as_numbers(self, value, number):
        """Numpy, torch, bools, None, NaN and huge integers are recorded as plain numbers."""
        translated = vocabulary("sft").translate({"x": value, "loss": 1.0})
        assert translated.skipped == {}
        assert translated.metrics["loss"] == 1.0
        found = translated.metrics["x"]
        assert type(found) in (float, int, type(None))
        assert found == number or (found != found and number != number)
        assert plain_number(value) == number or number != number

    @pytest.mark.parametrize(
        "value",
        [
            "0.5",
            b"1",
            [1.0],
            (1.0,),
            {},
            {"a": 1},
            1j,
            object(),
            decimal.Decimal(1),
            np.array([1.0, 2.0]),
            np.array("x"),
            np.array([]),
            torch.tensor([1.0, 2.0]),
            torch.tensor([]),
            torch.empty(1, device="meta"),
            Stubborn(),
            np.complex64(1),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_skipped_with_a_reason(self, value):
        """What is no one number is left out, named, with a reason, and the rest of the log is recorded."""
        translated = vocabulary("sft").translate({"odd": value, "loss": 1.0})
        assert translated.metrics == {"loss": 1.0}
        assert translated.skipped.keys() == {"odd"}
        assert translated.skipped["odd"]

    def test_keys_that_are_no_text(self):
        """Keys of other types are recorded under their text, twice over if asked."""
        words = vocabulary("sft")
        for _ in range(2):
            assert words.translate({1: 2.0, None: 3.0, (1, "a"): 4.0, "": 5.0}).metrics == {
                "1": 2.0,
                "None": 3.0,
                "(1, 'a')": 4.0,
                "": 5.0,
            }

    def test_custom_metrics_pass(self):
        """Unknown keys pass under their own name, evaluation's too."""
        logs = {"my/metric": 1.0, "rewards/my_func/mean": 2.0, "eval_mine": 3.0, "loss": 1.0}
        assert vocabulary("grpo").translate(logs).metrics == logs

    @pytest.mark.parametrize("order", [("kl", "kl_mean"), ("kl_mean", "kl")])
    def test_a_custom_metric_of_the_same_name(self, order):
        """A custom metric named like a trainer's canonical one never takes its place, nor is it lost in silence."""
        values = {"kl": 0.1, "kl_mean": 99.0}
        translated = vocabulary("grpo").translate({key: values[key] for key in order})
        assert translated.metrics == {"kl_mean": 0.1}
        assert translated.skipped.keys() == {"kl_mean"}

    def test_two_spellings_in_one_log(self):
        """Two of the trainer's keys for one metric are both recorded, the second under its raw name."""
        translated = vocabulary("grpo").translate(
            {"clip_ratio/region_mean": 0.1, "clip_ratio": 0.2, "eval_entropy": 1.0, "eval_entropy_mean": 2.0}
        )
        assert translated.metrics == {"clip_frac": 0.1, "clip_ratio": 0.2, "eval_entropy_mean": 1.0}
        assert translated.skipped.keys() == {"eval_entropy_mean"}

    @given(
        st.dictionaries(
            st.sampled_from(
                [*(term.raw for term in families()["grpo"].terms), "kl_mean", "lr", "learning_rate", "a", 3, "3"]
            )
            | st.text(max_size=4),
            st.none() | st.floats(allow_nan=False) | st.booleans() | st.text(max_size=2),
            max_size=12,
        )
    )
    @settings(max_examples=400, deadline=None, derandomize=True)
    def test_recorded_or_skipped(self, logs):
        """Of any log, every value is either recorded or skipped with a reason, and none is invented."""
        translated = vocabulary("grpo", "1.16.0").translate(logs)
        assert len(translated.metrics) + len(translated.skipped) >= len({str(key) for key in logs})
        assert len(translated.metrics) <= len(logs)
        numbers = [None if value is None else float(value) for value in logs.values() if not isinstance(value, str)]
        assert all(value in numbers for value in translated.metrics.values())

    def test_names_are_capped(self):
        """Ever new names stop at a limit: the tables do not grow with the run, and it is said; known names go on."""
        words = vocabulary("sft")
        recorded: set[str] = set()
        for step in range(200):
            translated = words.translate(
                {f"sample_{step * 100 + index}": 1.0 for index in range(100)} | {"loss": float(step)}
            )
            recorded |= translated.metrics.keys()
            assert translated.metrics["loss"] == step
        assert len(recorded) <= MAX_NAMES
        assert len(recorded) > MAX_NAMES - 200
        assert translated.metrics == {"loss": 199.0}
        assert str(MAX_NAMES) in translated.skipped["..."]


class TestPhases:
    @pytest.mark.parametrize(
        ("logs", "phase"),
        [
            ({"loss": 1.0, "epoch": 0.1}, "train"),
            ({"eval_loss": 1.0, "epoch": 0.1}, "eval"),
            ({"eval_loss": 1.0, "loss": 1.0}, "train"),
            ({"test_runtime": 1.0, "test_samples_per_second": 2.0}, "eval"),
            ({"train_loss": 1.0, "train_runtime": 2.0, "train_samples_per_second": 3.0}, "summary"),
            ({"train_runtime": 2.0, "loss": 1.0}, "train"),
            ({"my_metric": 1.0}, "train"),
            ({}, "train"),
        ],
        ids=str,
    )
    def test_phase(self, logs, phase):
        """The kind of a row is told by its keys, whatever prefix an evaluation has."""
        assert vocabulary("sft").translate(logs).phase == phase


class TestTable:
    @pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
    def test_rows(self, metric):
        """Every metric has a unit, a known bad direction and one sentence."""
        assert metric.unit
        assert metric.bad in ("high", "low", "both", "")
        assert metric.meaning.endswith(".")
        assert metric.name not in SYNONYMS

    @pytest.mark.parametrize("core", CORE)
    def test_core_names(self, core):
        """The names that users know are there."""
        assert core in METRICS

    @pytest.mark.parametrize(("typed", "name"), SYNONYMS.items())
    def test_synonyms(self, typed, name):
        """What people type resolves to a metric, with `eval_` in front too, and only once."""
        assert name in METRICS
        assert canonical_name(typed) == name
        assert canonical_name(f"eval_{typed}") == f"eval_{name}"
        assert canonical_name(name) == name
        assert canonical_names({typed: 1}) == {name: 1}

    @given(st.dictionaries(st.sampled_from([*SYNONYMS, *SYNONYMS.values(), "mine"]), st.integers(), max_size=8))
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_canonical_names_lose_nothing(self, metrics):
        """However many synonyms meet in one record, every value is kept."""
        assert sorted(canonical_names(metrics).values()) == sorted(metrics.values())

    def test_nearest(self):
        """A typing error gets a hint, nonsense gets none."""
        assert "'kl_divergence'" in nearest("kl_divergance", ["kl_divergence", "zero_loss"])
        assert nearest("qqq", ["kl_divergence"]) == ""
