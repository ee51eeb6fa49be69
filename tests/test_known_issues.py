"""The table of known issues is true: each row is judged right by version, and shown on the real TRL that is installed.

A row's proof does what provokes the issue. Where the row is in force the symptom must come, and where it is not the
same must work; for PPO after 1.12 it is the trainer itself that must be gone. Every row has a proof of its name, below.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import signal
import sys
import warnings
from pathlib import Path

import packaging
import pytest
import torch
import transformers
import trl
import zoo
from packaging.version import Version

from rldk.integrations.trl import check_trl_compatibility
from rldk.integrations.trl.known_issues import KNOWN_ISSUES, in_force, matches

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[1]
TRL = Version(importlib.metadata.version("trl"))
ROWS = {issue.code: issue for issue in KNOWN_ISSUES}
MACHINE = {issue.machine: True for issue in KNOWN_ISSUES if issue.machine}
REPORT = check_trl_compatibility()
HERE = {issue["code"] for issue in REPORT["issues"]}

# By hand: TRL versions that have the issue, and that have not. With transformers 5.23.0, on a machine that has all
# that a row may ask of one.
PPO = (["0.23.0", "0.23.1", "0.25.1", "0.28.0", "1.0.0", "1.12.0", "1.12.0+local", "1.12.0.post1"],
       ["1.13.0", "1.13.0.dev0", "1.13.0rc1", "1.16.0", "1.16.0+local", "1.17.0.dev0", "2.0"])
VERSIONS = {
    "ppo_moved": (["0.26.0", "0.26.2", "0.28.0", "0.26.0.dev0"], ["0.23.1", "0.25.1", "0.29.0", "0.29.0.dev0", "1.12.0"]),
    "ppo_experimental_only": (["0.29.0", "1.0.0rc1", "1.12.0", "1.12.0+local"], ["0.23.1", "0.28.0", "1.13.0", "1.16.0"]),
    "ppo_removed": (PPO[1], PPO[0]),
    "value_head_attributes": PPO,
    "value_head_generation_config": PPO,
    "value_head_policy": PPO,
    "ppo_sample_generations": (["0.23.0", "0.23.1", "0.28.0"], ["0.29.0", "0.29.0.dev0", "1.12.0", "1.16.0"]),
    "ppo_endless_loop": PPO,
    "ppo_mini_batches": PPO,
    "ppo_diluted_averages": PPO,
    "ppo_entropy_padding": (["0.23.1", "1.8.0", "1.9.2", "1.9.2+local"], ["1.10.0", "1.10.0.dev0", "1.12.0", "1.16.0"]),
    "ppo_ignores_stop": PPO,
    "ppo_no_resume": PPO,
    "trl_transformers_5_3": (["0.23.1", "0.28.0"], ["0.29.0", "1.12.0", "1.16.0"]),
    "trl_transformers_5_1": (["0.23.1", "0.27.0"], ["0.27.2", "0.28.0", "1.12.0", "1.16.0"]),
    "token_type_ids": (["0.23.0", "0.23.1+local", "0.29.0"], ["0.29.1", "0.29.1.dev0", "1.12.0", "1.16.0"]),
    "needs_requests": (["0.28.0", "1.12.0", "1.14.1"], ["0.23.1", "0.27.2", "1.14.2", "1.15.0", "1.16.0"]),
    "bf16_on_cpu": (["0.23.1", "1.12.0", "1.16.0", "1.17.0.dev0"], []),
    "stray_trackio": (["0.23.1", "1.12.0", "1.16.0", "1.17.0.dev0"], []),
    "reward_std_within_groups": (["0.23.1", "0.26.2"], ["0.27.0", "0.27.0rc1", "1.12.0", "1.16.0"]),
    "kto_summed_logits": (["0.23.1", "1.8.0"], ["1.9.0", "1.12.0", "1.16.0"]),
}


class TestByVersion:
    """The arithmetic alone; nothing is asked of what is installed."""

    @pytest.mark.parametrize("code", ROWS)
    def test_every_row_on_versions_that_have_it_and_that_have_not(self, code):
        """Pre-releases and local versions count as their release."""
        having, others = VERSIONS[code]
        for version in having:
            assert ROWS[code] in in_force(version, "5.23.0", MACHINE), version
        for version in others:
            assert ROWS[code] not in in_force(version, "5.23.0", MACHINE), version
        assert having and (others or ROWS[code].machine)

    @pytest.mark.parametrize("code", [issue.code for issue in KNOWN_ISSUES if issue.machine])
    def test_rows_on_the_machine_need_the_machine(self, code):
        """A fact that is false, or not known, keeps the row out."""
        version = VERSIONS[code][0][0]
        assert ROWS[code] not in in_force(version, "5.23.0", {**MACHINE, ROWS[code].machine: False})
        assert ROWS[code] not in in_force(version, "5.23.0", {})

    def test_rows_on_transformers(self):
        """A row on two libraries needs both."""
        def codes(version):
            return {issue.code for issue in in_force("0.23.1", version, {})}

        assert {"trl_transformers_5_1", "trl_transformers_5_3"} <= codes("5.3.0") & codes("5.23.0+local")
        assert "trl_transformers_5_3" not in codes("5.2.0") and "trl_transformers_5_1" in codes("5.2.0")
        for version in ("4.57.6", "5.0.0", None, "not a version"):
            assert not {"trl_transformers_5_1", "trl_transformers_5_3"} & codes(version)

    def test_a_probe_is_asked_before_the_version(self):
        """A development version of 1.13.0 that still has PPO has PPO's issues."""
        probed = {"ships_ppo": True, "no_ppo": False, "ppo_shim": False, "ppo_experimental_only": True}
        codes = {issue.code for issue in in_force("1.13.0.dev0", "5.23.0", probed)}
        assert {"ppo_experimental_only", "ppo_no_resume", "value_head_policy"} <= codes
        assert "ppo_removed" not in codes

    def test_unreadable_versions_match_nothing_but_everything(self):
        """Without a version only rows without a specifier can be true."""
        assert matches("", None) and matches("", "unknown")
        assert not matches("<2", None) and not matches("<2", "unknown") and not matches(">=0", "")


class TestTheTable:
    def test_every_row_has_a_proof_and_its_versions(self):
        """A new row needs a test of its name here, and a line in VERSIONS."""
        assert set(VERSIONS) == set(ROWS) and len(ROWS) == len(KNOWN_ISSUES)
        for code in ROWS:
            assert callable(globals().get(f"test_{code}")), f"no proof of {code}"

    def test_rows_are_complete(self):
        """Symptom, remedy and evidence for each; what is over has an upper bound; cures are public names."""
        package = importlib.import_module("rldk.integrations.trl")
        for row in KNOWN_ISSUES:
            assert row.affects and len(row.symptom) > 20 and len(row.remedy) > 10 and len(row.evidence) > 10
            assert (row.until == "open") == ("<" not in row.trl), row.code
            assert row.until == "open" or f"<{row.until}" in row.trl, row.code
            assert not row.cure or row.cure in {*package.__all__, "create_ppo_trainer"}, row.code

    def test_every_probe_is_asked(self):
        """No row waits for a fact that nobody finds out."""
        from rldk.integrations.trl import compatibility as module

        spec = importlib.util.find_spec("trl")
        facts = {**module._where_ppo_is(spec), **module._machine(str(TRL), False)}
        assert {row.probe for row in KNOWN_ISSUES} | {row.machine for row in KNOWN_ISSUES} == {*facts, ""}


# Proofs on the TRL that is installed


class Rows(transformers.TrainerCallback):
    """Keeps the logs."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))


def has_ppo():
    """Whether TRL has PPO; if not, PPO's rows must be out of force."""
    if zoo.has("ppo"):
        return True
    assert {"ppo_removed"} == {code for code in HERE if ROWS[code].affects == "PPO"}
    assert REPORT["ppo"] == "rldk"
    return False


def cannot_be_imported(family):
    """Whether another row keeps a trainer from being imported, which is then shown."""
    if "trl_transformers_5_3" not in HERE:
        return False
    with pytest.raises(RuntimeError, match="Failed to import"):
        zoo.has(family)
    return True


def ppo(folder, **settings):
    """A tiny PPO trainer that saves nothing."""
    return zoo.trainer("ppo", folder, **{"max_steps": 1, "save_strategy": "no", **settings})


def value_head(folder, seed=0):
    """A value-head model, loaded as users load it."""
    name = "AutoModelForCausalLMWithValueHead"
    home = trl if hasattr(trl, name) else importlib.import_module("trl.experimental.ppo")
    zoo.causal_lm(seed).save_pretrained(folder / "language_model")
    return getattr(home, name).from_pretrained(str(folder / "language_model"))


def first_row(family, folder, **settings):
    """What the first log call of a short run holds."""
    recorder = Rows()
    zoo.trainer(family, folder, **{
        "max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "callbacks": [recorder], **settings
    }).train()
    return recorder.rows[0]


def test_ppo_moved(tmp_path):
    """At the top level stands a class that warns, or the real one, or none."""
    if not has_ppo() or not hasattr(trl, "PPOTrainer"):
        assert "ppo_moved" not in HERE
        with pytest.raises(ImportError, match="cannot import name 'PPOTrainer' from 'trl'"):
            exec("from trl import PPOTrainer", {})
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ppo(tmp_path)
    told = [str(warning.message) for warning in caught if "is now located in `trl.experimental`" in str(warning.message)]
    assert bool(told) == ("ppo_moved" in HERE)


def test_ppo_experimental_only():
    """The import at the top level fails, and the other one does not."""
    with_home = zoo.has("ppo")
    try:
        exec("from trl import PPOTrainer", {})
        fails = False
    except ImportError as error:
        fails = True
        assert "cannot import name 'PPOTrainer' from 'trl'" in str(error)
    assert (fails and with_home) == ("ppo_experimental_only" in HERE)


def test_ppo_removed():
    """Neither place has it."""
    failed = []
    for home in ("trl", "trl.experimental.ppo"):
        try:
            exec(f"from {home} import PPOTrainer", {})
        except ImportError as error:
            failed.append(str(error))
    assert (len(failed) == 2) == ("ppo_removed" in HERE)
    if "ppo_removed" in HERE:
        assert "cannot import name 'PPOTrainer' from 'trl'" in failed[0]
        assert failed[1] == "No module named 'trl.experimental.ppo'"


def test_value_head_attributes(tmp_path):
    """As value model it fails when the trainer is built, as reward model in train()."""
    if has_ppo():
        assert "value_head_attributes" in HERE
        with pytest.raises(AttributeError, match=r"AutoModelForCausalLMWithValueHead.*base_model_prefix"):
            ppo(tmp_path, value_model=value_head(tmp_path))
        model = value_head(tmp_path)
        trainer = ppo(tmp_path, reward_model=model)
        with pytest.raises(AttributeError, match=r"AutoModelForCausalLMWithValueHead.*base_model_prefix"):
            trainer.train()
        model.base_model_prefix = "pretrained_model"
        with pytest.raises(AttributeError, match="no attribute 'score'"):
            ppo(tmp_path, reward_model=model).train()


def test_value_head_generation_config(tmp_path):
    """As policy it fails at once."""
    if has_ppo():
        assert "value_head_generation_config" in HERE
        model = value_head(tmp_path)
        with pytest.raises(AttributeError, match=r"AutoModelForCausalLMWithValueHead.*generation_config"):
            ppo(tmp_path, model=model)
        model.generation_config = model.pretrained_model.generation_config
        with pytest.raises(AttributeError, match="is_gradient_checkpointing"):
            ppo(tmp_path, model=model)


def test_value_head_policy(tmp_path):
    """With its attributes given it still cannot train; the model inside it can."""
    if has_ppo():
        assert "value_head_policy" in HERE
        model = value_head(tmp_path)
        model.generation_config, model.is_gradient_checkpointing = model.pretrained_model.generation_config, False
        trainer = ppo(tmp_path, model=model)
        with pytest.raises(AttributeError, match="'tuple' object has no attribute 'logits'"):
            trainer.train()
        ppo(tmp_path, model=value_head(tmp_path).pretrained_model).train()


def test_ppo_sample_generations(tmp_path):
    """The default wants an evaluation set; 0 does not."""
    if not has_ppo():
        return
    default = zoo.classes("ppo")[1].__dataclass_fields__["num_sample_generations"].default
    assert default == 10
    trainer = ppo(tmp_path, num_sample_generations=default)
    if "ppo_sample_generations" in HERE:
        with pytest.raises(TypeError, match="object of type 'NoneType' has no len"):
            trainer.train()
        ppo(tmp_path, num_sample_generations=0).train()
    else:
        trainer.train()


class Alarm(Exception):
    pass


def test_ppo_endless_loop(tmp_path):
    """Seven rows for a batch of eight: the generator of batches is where it hangs. Eight are enough."""
    if not has_ppo():
        return
    assert "ppo_endless_loop" in HERE

    def ring(number, frame):
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        raise Alarm(names)

    rows = zoo._rows(("input_ids",), 8, seed=1)
    recorder = Rows()
    trainer = ppo(tmp_path, train_dataset=rows.select(range(7)), callbacks=[recorder])
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    try:
        with pytest.raises(Alarm) as caught:
            trainer.train()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "repeat_generator" in caught.value.args[0] and recorder.rows == []
    ppo(tmp_path, train_dataset=rows, callbacks=[recorder]).train()
    assert len(recorder.rows) == 1


def test_ppo_mini_batches(tmp_path):
    """Four mini-batches make no more steps than one, unless nothing is accumulated."""
    if not has_ppo():
        return
    assert "ppo_mini_batches" in HERE

    class Count(transformers.TrainerCallback):
        steps = 0

        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            optimizer.register_step_post_hook(self.count)

        def count(self, *ignored):
            self.steps += 1

    def steps(accumulation, mini_batches):
        counter = Count()
        ppo(tmp_path, gradient_accumulation_steps=accumulation, num_mini_batches=mini_batches, num_ppo_epochs=2,
            callbacks=[counter]).train()
        return counter.steps

    assert steps(4, 1) == steps(4, 2) == steps(4, 4) == 2
    assert steps(1, 4) == 8


def test_ppo_diluted_averages(tmp_path):
    """At a learning rate of about nothing the ratio is 1; TRL logs what the row says."""
    if has_ppo():
        assert "ppo_diluted_averages" in HERE
        for accumulation, mini_batches, read in ((2, 2, 0.5), (4, 4, 0.25), (2, 1, 1.0), (1, 2, 1.0)):
            row = first_row("ppo", tmp_path, learning_rate=1e-12, gradient_accumulation_steps=accumulation,
                            num_mini_batches=mini_batches)
            assert row["val/ratio"] == pytest.approx(read, abs=1e-3)
            cured = row["val/ratio"] * accumulation / -(-accumulation // mini_batches)
            assert cured == pytest.approx(1, abs=1e-3)


def test_ppo_entropy_padding(tmp_path):
    """Answers that mostly end at once: much padding, and an entropy that is small but never negative."""
    if has_ppo():
        row = first_row("ppo", tmp_path, model=zoo.causal_lm(0, 5.0), per_device_train_batch_size=16,
                        gradient_accumulation_steps=1, num_mini_batches=1)
        assert (row["objective/entropy"] < 0) == ("ppo_entropy_padding" in HERE)


def test_ppo_ignores_stop(tmp_path):
    """Asked to stop after the first update, it makes all three."""
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    for family in ("ppo", "sft") if has_ppo() else ("sft",):
        trainer = zoo.trainer(family, tmp_path / family, max_steps=3, save_strategy="no", callbacks=[Stop()])
        trainer.train()
        ignored = trainer.state.global_step == 3
        assert ignored == ("ppo_ignores_stop" in HERE and family == "ppo")


def test_ppo_no_resume(tmp_path):
    """The argument that every other trainer has."""
    if has_ppo():
        assert "ppo_no_resume" in HERE
        with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'resume_from_checkpoint'"):
            ppo(tmp_path).train(resume_from_checkpoint=True)


def test_trl_transformers_5_3(run_script):
    """These trainers can be imported, in a fresh process, or they cannot."""
    names = ("DPOTrainer", "GRPOTrainer", "RLOOTrainer")
    done = run_script(
        "import json, trl\nerrors = {}\n"
        f"for name in {names}:\n"
        "    try: getattr(trl, name)\n"
        "    except RuntimeError as error: errors[name] = str(error)\n"
        "print(json.dumps(errors))\n"
    )
    errors = json.loads(done.stdout.splitlines()[-1])
    assert set(errors) == (set(names) if "trl_transformers_5_3" in HERE else set())
    assert all("Failed to import trl.trainer" in error and "No module named" in error for error in errors.values())


def test_trl_transformers_5_1(tmp_path):
    """KTO, which the other row does not stop earlier."""
    if "trl_transformers_5_1" in HERE:
        with pytest.raises(AttributeError, match="no attribute 'warnings_issued'"):
            zoo.trainer("kto", tmp_path)
    else:
        zoo.trainer("kto", tmp_path)


@pytest.mark.parametrize("family", ["grpo", "rloo"])
def test_token_type_ids(tmp_path, family):
    """A tokenizer that returns them."""
    if cannot_be_imported(family):
        return
    text = zoo.tokenizer()
    text.padding_side = "left"
    text.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # the default of transformers 4
    assert "token_type_ids" in text("a")
    if "token_type_ids" in HERE:
        with pytest.raises(ValueError, match=r"not used by the model: \['token_type_ids'\]"):
            first_row(family, tmp_path, processing_class=text)
    else:
        first_row(family, tmp_path, processing_class=text)


# What the other libraries need of requests is imported first; then it is as if it were not installed.
WITHOUT_REQUESTS = """
import importlib.machinery, importlib.util, json, sys
from transformers import Trainer, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
import accelerate, datasets, huggingface_hub.hf_api, huggingface_hub.inference._client, huggingface_hub.repocard
import transformers.modeling_utils, transformers.trainer, transformers.integrations
for name in ("trackio", "mlflow", "wandb"):  # which need requests, and which TRL imports where they are installed
    if importlib.util.find_spec(name):
        importlib.import_module(name)
for name in list(sys.modules):
    if name.split(".")[0] == "requests":
        del sys.modules[name]
class WithoutRequests(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "requests" else super().find_spec(name, path, target)
sys.meta_path[:] = [WithoutRequests if item is importlib.machinery.PathFinder else item for item in sys.meta_path]
from rldk.integrations.trl import check_trl_compatibility
listed = [issue["code"] for issue in check_trl_compatibility()["issues"]]
errors = {}
import trl
for name in ("GRPOTrainer", "RLOOTrainer", "SFTTrainer"):
    try:
        getattr(trl, name)
    except Exception as error:
        errors[name] = str(error)
print(json.dumps([listed, errors]))
"""


def test_needs_requests(run_script):
    """Without requests GRPO and RLOO cannot be imported, on the versions that the row names; SFT can."""
    assert "needs_requests" not in HERE  # requests is installed here
    done = run_script(WITHOUT_REQUESTS)
    assert done.returncode == 0, done.stderr
    listed, errors = json.loads(done.stdout.splitlines()[-1])
    if "trl_transformers_5_3" not in HERE:
        expected = {"GRPOTrainer", "RLOOTrainer"} if "needs_requests" in listed else set()
        assert set(errors) == expected
        assert all("No module named 'requests'" in error for error in errors.values())
    assert ("needs_requests" in listed) == matches(ROWS["needs_requests"].trl, str(TRL))


@pytest.mark.parametrize("family", ["sft", "grpo", "reward"])
def test_bf16_on_cpu(tmp_path, family):
    """The configuration fails with nothing set but the folder, and is fine with the remedy."""
    from transformers.utils import is_torch_bf16_gpu_available

    if family == "grpo" and "trl_transformers_5_3" in HERE:
        config = trl.SFTConfig  # the configuration of GRPO is in a package whose import fails
    else:
        config = zoo.classes(family)[1]
    if is_torch_bf16_gpu_available():
        assert "bf16_on_cpu" not in HERE
        config(output_dir=str(tmp_path))
    else:
        assert "bf16_on_cpu" in HERE
        with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu"):
            config(output_dir=str(tmp_path))
        config(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    assert ("bf16_on_cpu" in HERE) == ("bf16_on_cpu" in {row["code"] for row in check_trl_compatibility(probe=True)["issues"]})


TRAIN = """
import sys, warnings
warnings.simplefilter("ignore")
import zoo
zoo.trainer("sft", "out", max_steps=2, save_steps=1, eval_strategy="no", report_to=sys.argv[1]).train()
"""


def test_stray_trackio(run_script, tmp_path):
    """An empty trackio.py beside the script kills the run as the row says; without it the same run is fine."""
    assert "stray_trackio" not in HERE
    done = run_script(TRAIN, "none")
    assert done.returncode == 0, done.stderr
    (tmp_path / "trackio.py").touch()
    done = run_script(TRAIN, "trackio")
    assert done.returncode == 1 and "module 'trackio' has no attribute 'init'" in done.stderr
    done = run_script(TRAIN, "none")
    if matches(">=0.29.0", str(TRL)):
        assert done.returncode == 1 and "cannot import name 'context_vars' from 'trackio'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    report = checked(run_script)
    assert "stray_trackio" in {issue["code"] for issue in report["issues"]}
    assert any("no init, log, finish, config" in line and "trackio.py" in line for line in report["warnings"])


def test_reward_std_within_groups(tmp_path):
    """Two groups, all 0 and all 1: no deviation within a group, and 0.53 over the batch."""
    if cannot_be_imported("grpo"):
        return

    def by_group(completions, **_):
        return [float(index >= len(completions) // 2) for index in range(len(completions))]

    whole = torch.tensor([0.0] * 4 + [1.0] * 4).std().item()
    for family in ("grpo", "rloo"):
        row = first_row(family, tmp_path / family, reward_funcs=by_group)
        expected = 0.0 if "reward_std_within_groups" in HERE else whole
        assert row["reward_std"] == pytest.approx(expected, abs=1e-6)


def test_kto_summed_logits(tmp_path):
    """Every logit is the same channel of a normalised state, so that a mean is at most the root of its width."""
    if "trl_transformers_5_1" in HERE:  # then KTO cannot be built at all, as that row's own test shows
        return
    model = zoo.causal_lm(0)
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        model.lm_head.weight[:, 0] = 1
    row = first_row("kto", tmp_path, model=model)
    largest = model.config.hidden_size ** 0.5
    assert (row["logits/chosen"] > 10 * largest) == ("kto_summed_logits" in HERE)
    assert "kto_summed_logits" in HERE or 0 < row["logits/chosen"] <= largest


# The function


CHECK = """
import json, sys
from rldk.integrations.trl import check_trl_compatibility
report = check_trl_compatibility(probe=len(sys.argv) > 1)
report["torch"] = "torch" in sys.modules
print(json.dumps(report))
"""


def checked(run_script, *arguments, code=CHECK):
    """What the function says in a process of its own."""
    done = run_script(code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class TestTheCheck:
    def test_what_it_says_of_this_installation(self):
        """Versions, where PPO is, and a line for each row in force."""
        assert REPORT["trl_available"] and REPORT["version"] == str(TRL) and REPORT["import_errors"] == {}
        assert REPORT["transformers"] == transformers.__version__
        assert REPORT["python"] == sys.version.split()[0]
        home = REPORT["ppo"]
        assert (home == "rldk") == (not zoo.has("ppo"))
        if home != "rldk":
            assert hasattr(importlib.import_module(home), "PPOTrainer")
        assert len(REPORT["warnings"]) == len(REPORT["recommendations"]) == len(REPORT["issues"])
        for issue, warning, recommendation in zip(REPORT["issues"], REPORT["warnings"], REPORT["recommendations"]):
            assert issue["symptom"] in warning and issue["remedy"] in recommendation
            assert f"[{issue['code']}]" in warning and f"[{issue['code']}]" in recommendation

    def test_it_is_cheap(self, run_script):
        """Nothing heavy is loaded that `import trl` alone does not load: from TRL 0.29 on, not torch."""
        alone = run_script("import sys, trl\nprint('torch' in sys.modules)").stdout.splitlines()[-1]
        report = checked(run_script)
        assert str(report["torch"]) == alone
        assert not report["torch"] or matches("<0.29.0", str(TRL))

    def test_trainers_are_imported_on_demand(self, run_script):
        """With probe=True what cannot be imported is named."""
        report = checked(run_script, "probe")
        broken = {"DPOTrainer", "GRPOTrainer", "RLOOTrainer"} if "trl_transformers_5_3" in HERE else set()
        assert set(report["import_errors"]) == broken and report["torch"]

    def test_without_trl_or_anything(self, tmp_path, run_script):
        """An interpreter that has rldk and packaging, and no site-packages."""
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages" / "packaging").symlink_to(Path(packaging.__file__).parent)
        alone = "import sys\nsys.path[:] = [path for path in sys.path if 'site-packages' not in path] + ['packages']\n"
        report = checked(run_script, code=alone + CHECK)
        assert report["trl_available"] is False and report["version"] is None and report["transformers"] is None
        assert report["ppo"] is None and report["issues"] == []
        assert report["warnings"] == ["TRL is not installed"] and report["recommendations"] == ["pip install trl"]
        # A folder of that name is not TRL.
        (tmp_path / "trl").mkdir()
        report = checked(run_script, code=alone + CHECK)
        assert report["trl_available"] is False and report["ppo"] is None and report["issues"] == []
        assert "a folder named trl, without __init__.py" in report["warnings"][0]

    def test_a_broken_trl(self, tmp_path, run_script):
        """A copy of the installed TRL that lost a file: the error is named, and the rest is still said."""
        shutil.copytree(Path(trl.__file__).parent, tmp_path / "trl", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "trl" / "import_utils.py").unlink()
        report = checked(run_script)
        assert report["trl_available"] is False and report["version"] == str(TRL)
        assert "No module named 'trl.import_utils'" in report["import_errors"]["trl"]
        assert report["import_errors"]["trl"] in report["warnings"][0] and "cannot be imported" in report["warnings"][0]
        assert report["ppo"] == REPORT["ppo"] and {issue["code"] for issue in report["issues"]} == HERE

    def test_requirements_that_are_not_met(self, tmp_path, run_script):
        """Metadata of another accelerate, found first: TRL's own requirement is what it is held against."""
        folder = tmp_path / "accelerate-0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n")
        report = checked(run_script)
        assert report["trl_available"]
        [line] = [line for line in report["warnings"] if "requires" in line]
        assert f"TRL {TRL} requires accelerate>=1." in line and "0.1 is installed" in line

    @pytest.mark.parametrize(
        "files",
        [
            {"trackio.py": ""},
            {"trackio/notes.txt": "a folder"},
            {"trackio.py": "def init(:"},
            {"trackio.py": "import not_there_at_all"},
            {"trackio.py": "def init(): pass\ndef log(): pass\n"},
            {"trackio.py": "class Run:\n    def init(self): pass\n    log = finish = config = context_vars = 0\n"},
            {"trackio.py": "init = log = finish = 0\nconfig = {}\ncontext_vars = 0\n"},
            {"trackio.py": "try:\n    import json as init\nexcept ImportError:\n    init = None\n"
                           "from os import path as log, sep as finish\nconfig: dict = {}\nimport json as context_vars\n"},
            {"trackio.py": "def __getattr__(name): return name\n"},
            {"trackio/__init__.py": "def init(): pass\nlog = finish = config = init\n", "trackio/context_vars.py": ""},
            {},
        ],
        ids=["empty", "folder", "syntax", "import-error", "half", "inside-a-class", "whole", "imported-names", "getattr",
             "package", "none"],
    )
    def test_a_stray_trackio_is_found_without_running_it(self, tmp_path, run_script, files):
        """Held against what importing it really gives, in a process of its own. Nothing of it runs in the check."""
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(source if path.suffix != ".py" or source.startswith("def init(:") else
                            f"open('ran', 'w').close()\n{source}")
        report = checked(run_script)
        assert not (tmp_path / "ran").exists()
        found = "stray_trackio" in {issue["code"] for issue in report["issues"]}
        needed = ["init", "log", "finish", "config"] + (["context_vars"] if matches(">=0.29.0", str(TRL)) else [])
        truth = run_script(
            "import importlib, importlib.util\n"
            "if importlib.util.find_spec('trackio') is None: raise SystemExit(0)\n"
            "import trackio\n"
            "def has(name):\n"
            "    try: return hasattr(trackio, name) or bool(importlib.import_module('trackio.' + name))\n"
            "    except ImportError: return False\n"
            f"raise SystemExit(not all(map(has, {needed})))\n"
        )
        assert found == (truth.returncode != 0), truth.stderr

    def test_a_trackio_that_a_program_made(self, run_script):
        """A module put into sys.modules by hand: with nothing in it, and blocked."""
        made = "import sys, types\nsys.modules['trackio'] = types.ModuleType('trackio')\n"
        report = checked(run_script, code=made + CHECK)
        [line] = [line for line in report["warnings"] if "stray_trackio" in line]
        assert "the loaded module trackio has no init" in line
        report = checked(run_script, code="import sys\nsys.modules['trackio'] = None\n" + CHECK)
        assert "stray_trackio" not in {issue["code"] for issue in report["issues"]}

    def test_import_hooks_that_raise(self, run_script):
        """As some blockers do: nothing is raised, and TRL is said to be unimportable, with the hook's error."""
        hook = (
            "import sys\nclass Hook:\n    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('trl', 'trackio', 'requests'): raise ImportError('blocked: ' + name)\n"
            "sys.meta_path.insert(0, Hook())\n"
        )
        report = checked(run_script, code=hook + CHECK)
        assert report["trl_available"] is False and "blocked: trl" in report["import_errors"]["trl"]
