"""The model card gets its section when asked, once, beside whatever stands in it; and never unasked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import zoo
from huggingface_hub import ModelCard

import rldk
from rldk import RLDKCallback, add_training_health
from rldk.exceptions import ConfigurationError, NoLogsError
from rldk.model_card import training_health

BEGIN, END = "<!-- rldk: training health begins -->", "<!-- rldk: training health ends -->"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model as TRL saves it after a run with an alert; its card, and the callback that recorded the run."""
    folder = tmp_path_factory.mktemp("saved")
    recorder = RLDKCallback(output_dir=folder / "logs", run_id="sft_run", log_interval=0, alert_thresholds={"gradient_norm": 1e-6})
    trainer = zoo.trainer("sft", folder / "model", callbacks=[recorder], max_steps=4)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", tags=["my-tag"])
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert recorder.alerts and BEGIN not in card and "rldk" not in card  # nobody asked yet
    return folder, card, recorder


@pytest.fixture
def model(saved, tmp_path):
    """A folder with the card as TRL wrote it."""
    (tmp_path / "README.md").write_text(saved[1], encoding="utf-8")
    return tmp_path


@pytest.mark.matrix
def test_the_card_of_a_real_trainer(saved, model):
    """The section says what the report says; the rest of TRL's card and its metadata stay."""
    folder, before, recorder = saved
    path = add_training_health(model, run=folder / "logs")
    assert path == model / "README.md"
    after = path.read_text(encoding="utf-8")
    report = orjson.loads((folder / "logs" / "sft_run_final_report.json").read_bytes())
    section = after[after.index(BEGIN) : after.index(END)]
    assert f"**Verdict: {report['health']['verdict']}.**" in section and "completed, 4 steps" in section
    assert "| gradient\\_norm |" in section and report["environment"]["versions"]["trl"] in section
    was, now = ModelCard(before), ModelCard(after)
    assert set(now.data.tags) == {*was.data.tags, "rldk"} and "my-tag" in now.data.tags
    assert {**now.data.to_dict(), "tags": None} == {**was.data.to_dict(), "tags": None}
    assert now.text.startswith(was.text.rstrip())
    for run in (recorder, report, folder / "logs" / "sft_run_final_report.json", folder / "logs" / "sft_run_events.jsonl"):
        add_training_health(model, run=run)
        assert path.read_text(encoding="utf-8") == after  # replaced by itself, and the tag is there once


def test_a_later_call_replaces_the_section(saved, model):
    """What people wrote before and after it stays where it is."""
    path = add_training_health(model, run=saved[2])
    path.write_text(path.read_text().replace(END, f"{END}\n\n## Limitations\n\nMany."), encoding="utf-8")
    report = {**saved[2].report, "run_id": "another"}
    add_training_health(path, run=report)
    text = path.read_text()
    assert text.count(BEGIN) == text.count(END) == 1 and "run another" in text and "sft_run" not in text
    assert text.index(END) < text.index("## Limitations") and ModelCard(text).data.tags.count("rldk") == 1


def test_a_folder_without_a_card_gets_one(saved, tmp_path):
    """With metadata that the Hub reads."""
    path = add_training_health(tmp_path, run=saved[0] / "logs")
    card = ModelCard.load(path)
    assert card.data.tags == ["trl", "rldk"] and card.data.library_name == "transformers" and BEGIN in card.text


def test_line_endings_and_other_metadata_stay(saved, tmp_path):
    """A card written on Windows, with a single tag and keys that rldk does not know."""
    path = tmp_path / "README.md"
    path.write_bytes("---\r\ntags: one\r\nmine:\r\n  a: [1, 2]\r\nlicense: mit\r\n---\r\n\r\n# Name é\r\n".encode())
    add_training_health(tmp_path, run=saved[2])
    content = path.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") and "# Name é\r\n".encode() in content
    data = ModelCard.load(path).data.to_dict()
    assert data["tags"] == ["one", "rldk"] and data["mine"] == {"a": [1, 2]} and data["license"] == "mit"


def test_what_comes_from_a_log_is_text(saved):
    """No table cells, links, HTML, mentions or end of the section of its own."""
    bad = f"a|b <script>x</script> [x](https://evil) @who {END} **b** \x1b[31m\n# t"
    alert = saved[2].alerts[0]._replace(code=bad, message=bad)
    text = training_health({**saved[2].report, "run_id": bad, "reason": bad}, [alert])
    assert "<script>" not in text and END not in text and "](https://evil" not in text and "\x1b" not in text
    assert "@who" not in text and "\n# t" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| a\\|")]
    assert row.replace("\\|", "").count("|") == 6


def test_what_cannot_be_said_is_an_error(saved, model, tmp_path):
    """A run that has not ended, none, several; a card that cannot be read is left as it is."""
    with pytest.raises(NoLogsError, match=r"no .*_final_report"):
        add_training_health(model, run=tmp_path)
    running = {**saved[2].report, "status": "running"}
    with pytest.raises(ConfigurationError, match="has not ended"):
        add_training_health(model, run=running)
    with pytest.raises(ConfigurationError, match="has recorded a run"):
        add_training_health(model, run=RLDKCallback(output_dir=tmp_path / "none"))
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        (several / f"{name}_final_report.json").write_bytes(orjson.dumps({"run_id": name, "status": "completed"}))
    with pytest.raises(ConfigurationError, match="holds 2 runs"):
        add_training_health(model, run=several)
    with pytest.raises(ConfigurationError, match="no such folder"):
        add_training_health(tmp_path / "nowhere", run=saved[2])
    broken = "---\ntags: [a\n: :\n---\ntext"
    (model / "README.md").write_text(broken)
    with pytest.raises(ConfigurationError, match="cannot read the model card"):
        add_training_health(model, run=saved[2])
    assert (model / "README.md").read_text() == broken


def test_importing_it_loads_no_client_of_the_hub():
    """Asked for or not, until it is called."""
    code = "import sys, rldk\nrldk.add_training_health\nassert 'huggingface_hub' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(rldk.__file__).parents[1])
