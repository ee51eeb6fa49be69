"""Every trainer that the installed TRL ships is recorded truly: real trainers, tiny models."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import zoo
from transformers import TrainerCallback

import rldk
from rldk.integrations.trl import EventWriterCallback, RLDKCallback
from rldk.metrics import lookup
from rldk.vocabulary import families

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]
TRL = importlib.metadata.version("trl")
RECORD = ROOT / "docs" / "matrix" / f"{TRL}.json"
FAMILIES = [family for family in zoo.FAMILIES if zoo.has(family)]
# Added by rldk: resources, rates, checkpoints.
OURS = {"samples_per_second", "tokens_per_second", "grad_norm_policy", "grad_norm_value"}


class RawLogs(TrainerCallback):
    """An independent witness: keeps what the trainer itself logged."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append((state.global_step, dict(logs)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Trains each family once and keeps what came of it."""
    cache = {}

    def record(family):
        if family not in cache:
            folder = tmp_path_factory.mktemp(family)
            witness = RawLogs()
            full = RLDKCallback(output_dir=folder / "logs", run_id=f"{family}-run", log_interval=2)
            light = EventWriterCallback(folder / "light_events.jsonl", tags={"kind": "light"})
            zoo.trainer(family, folder / "out", callbacks=[witness, full, light]).train()
            cache[family] = (folder, witness, full, light)
        return cache[family]

    return record


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryTrainer:
    def test_every_logged_value_is_recorded(self, family, recorded):
        """Each raw key of each log call stands in the event of that call, under one name, with the same value."""
        _, witness, full, _ = recorded(family)
        events = [line for line in lines(full.files["events"]) if line["model_info"]["phase"] != "checkpoint"]
        names = {raw: row["name"] for raw, row in json.loads(full.files["manifest"].read_text())["vocabulary"].items()}
        corrected = json.loads(full.files["manifest"].read_text())["corrections"]
        assert len(witness.rows) == len(events)
        for (step, logs), event in zip(witness.rows, events):
            assert step == event["step"]
            for raw, value in logs.items():
                bare = raw.removeprefix("eval_")
                name = ("eval_" if raw != bare else "") + names.get(bare, bare)
                recorded_value = event["metrics"][name]
                if corrected and name in corrected[0]:
                    assert math.isfinite(recorded_value)
                else:
                    assert recorded_value == pytest.approx(value, rel=0, abs=0, nan_ok=True), (raw, name)

    def test_nothing_is_invented(self, family, recorded):
        """An event has no metric that neither the trainer logged nor rldk measured."""
        _, witness, full, light = recorded(family)
        events = lines(light.event_log_path)
        # rldk's own PPO says the learning rate twice: by TRL's name for it in PPO, and by transformers'.
        said = [len(logs.keys() - ({"lr"} if "learning_rate" in logs else set())) for _, logs in witness.rows]
        assert said == [len(event["metrics"]) for event in events]
        train = [line for line in lines(full.files["events"]) if line["model_info"]["phase"] == "train"]
        for (_, logs), event in zip([row for row in witness.rows if "loss" in row[1] or family == "ppo"], train):
            extra = {name for name in event["metrics"] if not name.endswith(("_percent", "_bytes", "_frac"))} - OURS
            assert len(extra) <= len(logs)

    def test_family_and_names_are_known(self, family, recorded):
        """The arguments' class tells the trainer, and every key that it logs has its place in the table."""
        _, _, full, _ = recorded(family)
        manifest = json.loads(full.files["manifest"].read_text())
        name = family.removeprefix("rldk_")  # rldk's own PPO logs TRL's names
        assert manifest["trainer"]["family"] == name
        for event in lines(full.files["events"]):
            assert event["model_info"]["trainer"] == name
            assert [name for name in event["metrics"] if lookup(name) is None] == []

    def test_a_healthy_run_raises_no_alert(self, family, recorded):
        """The detectors say nothing of a healthy run, and nothing of rldk's failed."""
        _, _, full, light = recorded(family)
        assert full.alerts == []
        assert json.loads(full.files["alerts"].read_text()) == []
        assert full.guard.failures == {} and light.guard.failures == {}

    def test_files_agree(self, family, recorded):
        """Events, CSV and report tell the same of the run; the report says that it completed."""
        _, witness, full, _ = recorded(family)
        df = rldk.ingest_runs(full.files["events"])
        csv = pd.read_csv(full.files["metrics"])
        train = df[df.phase == "train"]
        first = "kl_mean" if family == "ppo" else "loss"
        assert csv[first].dropna().tolist() == pytest.approx(train[first].dropna().tolist())
        assert csv["step"].tolist() == sorted(set(df.step))
        assert df.attrs["skipped_lines"] == 0 and train.step.is_monotonic_increasing
        report = json.loads(full.files["report"].read_text())
        assert report["status"] == "completed" and report["reason"] is None
        assert report["totals"]["steps"] == witness.rows[-1][0]
        assert report["metrics"][first]["count"] == len(train[first].dropna())
        assert report["lost"]["events"] == 0

    def test_lines_fit_the_schema(self, family, recorded):
        """Real lines of both callbacks validate against the published JSON Schema, keys in order."""
        _, _, full, light = recorded(family)
        schema = json.loads((ROOT / "docs" / "event.schema.json").read_text())
        validator = jsonschema.Draft202012Validator(schema)
        for path in (full.files["events"], light.event_log_path):
            for event in lines(path):
                validator.validate(event)
                assert list(event)[:7] == [
                    "step", "wall_time", "metrics", "rng", "data_slice", "model_info", "notes",
                ]

    def test_tokens_are_counted_where_the_trainer_counts_them(self, family, recorded):
        """Differences of the trainer's own count add up to it; without a count there is none."""
        _, witness, full, _ = recorded(family)
        counted = [logs["num_tokens"] for _, logs in witness.rows if "num_tokens" in logs]
        total = json.loads(full.files["report"].read_text())["totals"].get("tokens_in")
        assert total == (counted[-1] if counted else None)

    def test_the_table_of_the_docs_is_current(self, family, recorded):
        """What this trainer fills on this TRL is what docs/matrix.md says. UPDATE_MATRIX=1 records it anew."""
        _, _, full, _ = recorded(family)
        df = rldk.ingest_runs(full.files["events"])
        filled = sorted(
            name for name in df.columns[4:]
            if df[name].notna().any() and not name.endswith(("_percent", "_bytes")) and "memory" not in name
        )
        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        if os.environ.get("UPDATE_MATRIX"):
            known[family] = filled
            RECORD.parent.mkdir(parents=True, exist_ok=True)
            RECORD.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        if RECORD.exists():  # a version that is only tried out has no page
            assert known[family] == filled


if zoo.has("ppo"):  # TRL removed PPO in 1.13.0

    def test_ppo_averages_are_corrected(tmp_path):
        """PPO's diluted averages read their true values: the ratio is 1 whatever the mini-batches; the manifest says so."""
        for mini_batches, accumulation in ((1, 2), (2, 2), (2, 4), (4, 4), (2, 1)):
            callback = RLDKCallback(output_dir=tmp_path / f"{mini_batches}-{accumulation}", log_interval=0)
            zoo.trainer(
                "ppo", tmp_path / f"out-{mini_batches}-{accumulation}", callbacks=[callback], max_steps=2,
                num_mini_batches=mini_batches, gradient_accumulation_steps=accumulation, learning_rate=1e-6,
            ).train()
            df = rldk.ingest_runs(callback.files["events"])
            ratio = df.ratio_mean.dropna()
            assert ratio.to_numpy() == pytest.approx(1.0, abs=0.02)
            assert (df.ratio_var.dropna() < 0.01).all()
            corrections = json.loads(callback.files["manifest"].read_text())["corrections"]
            assert bool(corrections) == (mini_batches > 1 and accumulation > 1)


def test_units_are_recorded(tmp_path):
    """The manifest has the unit in force for each name: KL per token in GRPO, reward_std by TRL version."""
    callback = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
    zoo.trainer("grpo", tmp_path / "out", callbacks=[callback], max_steps=1).train()
    vocabulary = json.loads(callback.files["manifest"].read_text())["vocabulary"]
    assert vocabulary["kl"]["unit"].startswith("nats/token")
    within_groups = tuple(map(int, TRL.split(".")[:2])) < (0, 27)
    assert ("within groups" in vocabulary["reward_std"]["unit"]) == within_groups


def test_none_and_nan_rewards(tmp_path):
    """A reward function that judges nothing (None) or returns NaN is recorded as such and ends nothing."""

    def silent(completions, **_):
        return [None] * len(completions)

    def broken(completions, **_):
        return [math.nan] * len(completions)

    def sound(completions, **_):
        return [float(len(str(completion)) % 3) for completion in completions]

    callback = RLDKCallback(output_dir=tmp_path / "logs", log_interval=0)
    zoo.trainer(
        "grpo", tmp_path / "out", callbacks=[callback], max_steps=3, reward_funcs=[silent, broken, sound],
        eval_strategy="no",
    ).train()
    assert callback.report["status"] == "completed" and callback.guard.failures == {}
    events = [line for line in lines(callback.files["events"]) if "rewards/silent/mean" in line["metrics"]]
    assert events and all(line["metrics"]["rewards/silent/mean"] is None for line in events)
    assert all(math.isfinite(line["metrics"]["reward_mean"]) for line in events if line["metrics"]["reward_mean"] is not None)


def test_families_cover_the_zoo():
    """There is a vocabulary for each trainer of the zoo."""
    assert {family.removeprefix("rldk_") for family in zoo.FAMILIES} <= set(families())
