"""Two runs that are the same do not part; two that are not part where they do; and only like is held against like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import captures
import orjson
import pytest
import zoo

from rldk import RLDKCallback
from rldk.compare import compare
from rldk.event import Event, encode
from rldk.exceptions import ConfigurationError, NoLogsError
from rldk.ingest import events_of
from rldk.metrics import headline, of_the_machine
from rldk.timeline import resume_note

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Real runs: one, the same again, with another seed, logged less often, and cut off and resumed."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name, resume=False, **config):
        recorder = RLDKCallback(output_dir=folder / name, run_id=name, log_interval=0)
        trainer = zoo.trainer("grpo", folder / "out" / name, callbacks=[recorder], **{"max_steps": 6, **config})
        trainer.train(resume_from_checkpoint=resume)

    train("first")
    train("again")
    train("other_seed", seed=1)
    train("seldom", logging_steps=3)
    # Five steps are taken, and two of them again after the resume from the checkpoint of step 3.
    train("cut", save_steps=3, max_steps=5, lr_scheduler_type="constant")
    train("cut", save_steps=3, resume=str(folder / "out" / "cut" / "checkpoint-3"), max_steps=6, lr_scheduler_type="constant")
    train("uncut", save_steps=3, max_steps=6, lr_scheduler_type="constant")
    return folder


def pair(runs, *names, **options):
    found = compare([runs / name for name in names], **options)
    return found, found["divergence"][0]


def test_a_run_and_itself(runs):
    """Nothing parts, nothing differs."""
    found, held = pair(runs, "first", "first")
    assert held["step"] is None and held["same_arguments"] is True and held["steps_compared"] == 6
    assert held["checksums_compared"] >= 3 and held["only_in"] == {"A": [], "B": []}
    assert found["arguments"] == {"what": {}, "where": {}, "unknown": []}
    assert found["versions"] == {} == found["not_compared"] == found["measured_otherwise"] and found["notes"] == []


def test_the_same_training_again(runs):
    """Trained twice by a real trainer: equal to the last bit, wherever it was written to."""
    found, held = pair(runs, "first", "again")
    assert held["step"] is None and held["same_arguments"] is True and held["last_equal_step"] == 6
    assert found["arguments"]["what"] == {} and "output_dir" in found["arguments"]["where"]


def test_another_seed(runs):
    """Parts at the first step; the argument that did it is named."""
    found, held = pair(runs, "first", "other_seed")
    assert held["step"] == 1 and held["last_equal_step"] is None and held["same_arguments"] is False
    assert held["random_state"][0] != held["random_state"][1] and len(held["metrics"]["loss"]) == 2
    assert found["arguments"]["what"] == {"seed": [0, 1]}
    assert not any(of_the_machine(name) for name in held["metrics"])


def test_other_logging_steps_are_no_divergence(runs):
    """What was logged every three steps is a mean over three: evaluations and random states are what can be compared."""
    found, held = pair(runs, "first", "seldom")
    assert held["step"] is None and held["other_spans"] == 2 and held["checksums_compared"] >= 2
    assert found["arguments"]["what"] == {"logging_steps": [1, 3]}
    assert found["metrics"]["reward_mean"]["common_steps"] == 2 and found["metrics"]["reward_mean"]["logged"] == [6, 2]


def test_a_resumed_run(runs):
    """What the resume made void is left out; the rest is held against a run that was not cut off."""
    found, held = pair(runs, "uncut", "cut")
    assert found["runs"][1]["resumed_at"] == [3] and any("resumed at step 3" in note for note in found["notes"])
    assert held["step"] is None and held["steps_compared"] == 6, held


def test_three_runs_and_a_folder_of_runs(runs, tmp_path):
    """All are held against the first; a folder stands for the runs in it."""
    found = compare([runs / name for name in ("first", "again", "other_seed")])
    assert [held["between"] for held in found["divergence"]] == [["A", "B"], ["A", "C"]]
    assert [held["step"] for held in found["divergence"]] == [None, 1]
    row = found["metrics"]["reward_mean"]
    for values in (row["end"], row["best"], row["mean"]):
        assert len(values) == 3 and values[0] == values[1] != values[2]
    logged = [item.metrics["reward_mean"] for item in events_of(runs / "first") if item.phase == "train"]
    assert row["end"][0] == logged[-1] and row["best"][0] == max(logged) and row["common_steps"] == 6
    assert row["mean"][0] == pytest.approx(sum(logged) / 6)
    for name in ("first", "again"):
        for path in (runs / name).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert {run["name"] for run in compare([tmp_path])["runs"]} == {"first", "again"}


def stream(path, values, *, run_id="r", trainer="grpo", phase="train", states=(), **more):
    """A stream in which one metric takes the values, by step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {"run_id": run_id, "trainer": trainer}
    with open(path, "ab") as file:
        for step, value in values.items():
            rng = {"seed": 0, "state": states[step]} if step in states else {"seed": 0}
            file.write(encode(Event(step, step / 10, {"reward_mean": value, **more}, phase, rng, model_info=info)))
    return path


def test_the_first_step_is_named(tmp_path):
    """By a metric, by the random state alone, by a NaN; a value that is missing in one is no difference."""
    a = stream(tmp_path / "a" / "r_events.jsonl", {step: step * 0.1 for step in range(1, 9)}, states={4: "aa"}, extra=1.0)
    late = {step: step * 0.1 + 1e-9 * (step >= 5) for step in range(1, 9)}
    b = stream(tmp_path / "b" / "r_events.jsonl", late)
    (held,) = compare([a, b])["divergence"]
    assert (held["step"], held["last_equal_step"], held["metrics"]) == (5, 4, {"reward_mean": [0.5, 0.500000001]})
    assert held["only_in"] == {"A": ["extra"], "B": []} and held["same_arguments"] is None
    assert compare([a, b], tolerance=1e-6)["divergence"][0]["step"] is None
    assert compare([a, b], ignore=["reward"])["divergence"][0]["step"] is None
    c = stream(tmp_path / "c" / "r_events.jsonl", {step: step * 0.1 for step in range(1, 9)}, states={4: "bb"})
    (held,) = compare([a, c])["divergence"]
    assert (held["step"], held["metrics"], held["random_state"]) == (4, {}, ["aa", "bb"])
    nan = {step: float("nan") if step == 6 else step * 0.1 for step in range(1, 9)}
    d = stream(tmp_path / "d" / "r_events.jsonl", nan)
    assert compare([a, d])["divergence"][0]["step"] == 6
    assert compare([d, d])["divergence"][0]["step"] is None
    row = compare([a, d])["metrics"]["reward_mean"]
    assert row["nonfinite"] == [0, 1] and row["common_steps"] == 7


def test_no_step_in_common(tmp_path):
    """Then nothing is said to be equal."""
    a = stream(tmp_path / "a" / "r_events.jsonl", {1: 1.0, 3: 1.0})
    b = stream(tmp_path / "b" / "r_events.jsonl", {2: 1.0, 4: 1.0})
    found = compare([a, b])
    held = found["divergence"][0]
    assert held["step"] is None and held["steps_compared"] == 0 == held["checksums_compared"]
    assert found["metrics"]["reward_mean"]["mean"] == [None, None] and held["ends"] == [3, 4]


def test_the_time_to_a_level(tmp_path):
    """By default nine tenths of the way of the first run, rewards below zero included; a level of one's own; never."""
    a = stream(tmp_path / "a" / "r_events.jsonl", {1: -10.0, 2: -4.0, 3: -0.5, 4: 0.0})
    b = stream(tmp_path / "b" / "r_events.jsonl", {1: -10.0, 2: -1.0, 3: -1.5, 4: -2.0})
    time_to = compare([a, b])["time_to"]
    assert (time_to["metric"], time_to["level"]) == ("reward_mean", pytest.approx(-1.0))
    assert [reached["step"] for reached in time_to["runs"]] == [3, 2]
    assert [reached["seconds"] for reached in time_to["runs"]] == [pytest.approx(0.3), pytest.approx(0.2)]
    given = compare([a, b], to={"reward": -0.5})["time_to"]
    assert given["runs"][0]["step"] == 3 and given["runs"][1] is None
    with pytest.raises(ConfigurationError, match=r"no run logs 'rewrad_mean'.*reward_mean"):
        compare([a, b], to={"rewrad_mean": 1.0})


def test_a_loss_is_reached_from_above(tmp_path):
    """Where no run has a reward."""
    rows = [orjson.dumps({"step": step, "loss": 4.0 - step, "learning_rate": 1e-4}) for step in range(1, 4)]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(rows) + b"\n")
    time_to = compare([path, path])["time_to"]
    assert (time_to["metric"], time_to["reached_by"], time_to["runs"][0]["step"]) == ("loss", "at most", 3)


def test_other_units_are_not_compared(tmp_path):
    """KL per token and KL per sequence are two quantities of one name."""
    ppo = tmp_path / "ppo.jsonl"
    grpo = tmp_path / "grpo.jsonl"
    for path, name in ((ppo, "1.12.0_ppo"), (grpo, "1.12.0_grpo")):
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in captures.capture(name).rows))
    found = compare([ppo, grpo])
    assert found["not_compared"]["kl_mean"][0].startswith("nats/sequence")
    assert found["not_compared"]["kl_mean"][1].startswith("nats/token")
    assert "kl_mean" not in found["metrics"] and "reward_mean" in found["metrics"]
    assert "kl_mean" not in found["divergence"][0]["metrics"]
    assert "kl_mean" not in {name for held in found["divergence"] for name in held["metrics"]}


def test_the_manifests_unit_is_the_one_in_force(tmp_path):
    """It wins over what the trainer's family would say."""
    a = stream(tmp_path / "a" / "r_events.jsonl", {1: 1.0}, kl_mean=0.1)
    b = stream(tmp_path / "b" / "r_events.jsonl", {1: 1.0}, kl_mean=0.1)
    for path, unit in ((a, "nats/token (k3)"), (b, "nats/token (k1)")):
        manifest = {"run_id": "r", "vocabulary": {"kl": {"name": "kl_mean", "unit": unit}}}
        (path.parent / "r_run.json").write_bytes(orjson.dumps(manifest))
    found = compare([a, b])
    assert found["measured_otherwise"] == {"kl_mean": ["nats/token (k3)", "nats/token (k1)"]} and "kl_mean" in found["metrics"]


def test_alerts_by_code(tmp_path):
    """The run's own where they are there; found by the same engine where not: the same."""
    values = {step: 1.0 if step < 30 else float("nan") for step in range(1, 40)}
    a = stream(tmp_path / "a" / "r_events.jsonl", values)
    b = stream(tmp_path / "b" / "r_events.jsonl", dict.fromkeys(range(1, 40), 1.0))
    (b.parent / "r_alerts.json").write_bytes(b"[]")
    found = compare([a, b])
    assert found["alerts"]["non_finite"][0]["first_step"] == 30 and found["alerts"]["non_finite"][1] is None
    assert [run["judged"] for run in found["runs"]] == ["replay", "run"]


def test_resumed_without_a_mark(tmp_path):
    """In other logs a training that goes back was resumed there: the newest recording of a step counts."""
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, "loss": 9.0} for step in (1, 2, 3, 4, 5)] + [{"step": step, "loss": 1.0} for step in (3, 4)]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    found = compare([path, path])
    assert found["metrics"]["loss"]["logged"] == [4, 4] and found["runs"][0]["steps"] == 4
    marked = tmp_path / "r_events.jsonl"
    stream(marked, dict.fromkeys(range(1, 8), 9.0))
    with open(marked, "ab") as file:
        file.write(encode(Event(3, 0.3, {}, model_info={"run_id": "r", "trainer": "grpo"}, notes=(resume_note(3),))))
    stream(marked, {4: 1.0})
    assert compare([marked, marked])["runs"][0]["steps"] == 4


def test_trainer_states(tmp_path):
    """What transformers leaves in a checkpoint is enough; what it does not say is said to be unknown."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        state = {"log_history": captures.capture("1.16.0_sft").rows}
        (tmp_path / name / "trainer_state.json").write_bytes(orjson.dumps(state))
    found, held = pair(tmp_path, "a", "b")
    assert held["step"] is None and held["steps_compared"] > 0 and held["same_arguments"] is None
    assert found["arguments"]["unknown"] == ["A", "B"] and found["notes"]


def test_bad_use(runs, tmp_path):
    """One run is no comparison; what is not there is named."""
    with pytest.raises(ConfigurationError, match="two runs or more; got 1"):
        compare([runs / "first"])
    with pytest.raises(NoLogsError, match="nowhere"):
        compare([runs / "first", tmp_path / "nowhere"])
    with pytest.raises(ConfigurationError, match="tolerance"):
        compare([runs / "first", runs / "first"], tolerance=-1.0)


def cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rldk", "compare", *map(str, arguments)], capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )


def test_the_command(runs):
    """Says it in words, as JSON, and by its exit code where that is asked for."""
    done = cli(runs / "first", runs / "again", "--fail-on-divergence")
    assert done.returncode == 0 and b"do not part: 6 steps" in done.stdout and not done.stderr
    done = cli(runs / "first", runs / "other_seed", "--fail-on-divergence")
    text = done.stdout.decode()
    assert done.returncode == 1 and "A and B part at step 1" in text and "\x1b" not in text
    done = cli(runs / "first", runs / "other_seed", "--json", "--to", "reward=0.0")
    assert done.returncode == 0 and orjson.loads(done.stdout)["time_to"]["level"] == 0.0
    assert cli(runs / "first", runs / "again", "--to", "reward").returncode == 2
    assert cli(runs / "first").returncode == 2


def test_hostile_names_are_shown_and_not_obeyed(tmp_path):
    """Names and values come from logs and manifests."""
    bad = "[red]x\x1b]0;owned\x07\u202e"
    for name, value in (("a", 1.0), ("b", 2.0)):
        path = stream(tmp_path / name / "r_events.jsonl", {1: value}, run_id=f"{bad}{name}", **{bad: value})
        del path
    done = cli(tmp_path / "a" / "r_events.jsonl", tmp_path / "b" / "r_events.jsonl")
    text = done.stdout.decode()
    assert done.returncode == 0 and not any(sign in text for sign in ("\x1b", "\x07", "\u202e")) and "[red]x" in text


def test_what_a_person_looks_at_first():
    """The headline in its order, then reward functions, then what else there is, without the machine's."""
    names = ["zzz", "rewards/f/mean", "runtime", "lr", "epoch", "loss", "memory_bytes", "reward_mean"]
    assert headline(names) == ["reward_mean", "loss", "lr", "rewards/f/mean", "zzz"]
    assert headline(names, fill=0) == ["reward_mean", "loss", "lr", "rewards/f/mean"]
