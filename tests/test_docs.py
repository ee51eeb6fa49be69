"""The documentation is true: its code runs, its links lead somewhere, its generated pages are current.

What the pages may use without making it, since it is the reader's own: a block that calls `SFTTrainer`, `GRPOTrainer` or
`create_ppo_trainer` finds `model`, `tokenizer`, `args` and `dataset` that suit it, and for GRPO `reward`, fresh for each such block. The
model is tiny. `SFTConfig`, `GRPOConfig` and `PPOConfig` have other defaults here: those that a machine without a GPU needs, and small
batches. Everything else a page makes itself; its blocks run in order, share their names, and have a folder of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import datasets
import jsonschema
import pytest
import trl
import zoo

import rldk.integrations.trl

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
DETECTORS = sorted((ROOT / "docs" / "detectors").glob("*.md"))

CPU = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False, "disable_tqdm": True,
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
}
CONFIGS = {
    "SFT": {**CPU, "learning_rate": 3e-3},
    "GRPO": {**CPU, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12},
    "PPO": CPU,
}
HOMES = {"SFT": trl, "GRPO": trl, "PPO": rldk.integrations.trl}


def blocks(page, language):
    """The fenced blocks of a language, with the line that each begins at."""
    found, start, inside = [], 0, None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is None and line.startswith("```"):
            start, inside, kind = number, [], line[3:].strip()
        elif inside is not None and line == "```":
            if kind == language:
                found.append((start, "\n".join(inside) + "\n"))
            inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page.name}: the block at line {start} has no end"
    return found


def readers_own(kind, folder):
    """The model, data and arguments that a reader would bring to a trainer of this kind."""
    model, tokenizer = zoo.causal_lm(eos_bias=0.0 if kind == "SFT" else 2.0), zoo.tokenizer()
    tokenizer.padding_side = "right" if kind == "SFT" else "left"
    # Trainers load reference models and tokenizers from where the model came from.
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.config._name_or_path = str(folder)
    column = "text" if kind == "SFT" else "prompt"
    rows = [{column: text} for text in ("the cat sat on a mat.", "a dog sat on the box.", "the old hen sat on a log.")]
    args = getattr(HOMES[kind], f"{kind}Config")(output_dir="out", max_steps=6, logging_steps=1, report_to="none")
    return {
        "model": model, "tokenizer": tokenizer, "args": args, "dataset": datasets.Dataset.from_list(rows * 8),
        "reward": zoo.length,
    }


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_runs(page, tmp_path, tmp_path_factory, monkeypatch):
    """Every block of Python of a page runs, in order, in an empty folder."""
    for kind, defaults in CONFIGS.items():
        config = functools.partial(getattr(HOMES[kind], f"{kind}Config"), **defaults)
        monkeypatch.setattr(HOMES[kind], f"{kind}Config", config, raising=False)  # PPO's is looked up when asked for
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = {"__name__": "__docs__"}
    for line, source in blocks(page, "python"):
        kind = re.search(r"\b(SFT|GRPO)Trainer\(|create_(ppo)_trainer\(", source)
        if kind:
            names.update(readers_own((kind[1] or kind[2]).upper(), tmp_path_factory.mktemp("readers_own")))
        code = compile("\n" * line + source, str(page), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a page shows the library's defaults, of which third parties warn
            warnings.filterwarnings("error", module=r"rldk(\.|$)")
            warnings.filterwarnings("error", message="rldk:")
            exec(code, names)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_shell_blocks_name_real_targets(page):
    """Each `make` target in a block for the shell, or in code style, is in the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shell = "".join(source for _, source in blocks(page, "bash"))
    for target in re.findall(r"\bmake +([\w-]+)", shell) + re.findall(r"`make ([\w-]+)", page.read_text()):
        assert target in targets, target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_json_blocks(page):
    """Blocks of JSON parse; those that are events fit the schema, in its order of keys."""
    schema = json.loads((ROOT / "docs" / "event.schema.json").read_text())
    for line, source in blocks(page, "json"):
        value = json.loads(source)
        if isinstance(value, dict) and "metrics" in value:
            jsonschema.Draft202012Validator(schema).validate(value)
            order = [key for key in schema["properties"] if key in value]
            assert list(value) == order, f"{page.name}:{line}"


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", [*PAGES, *DETECTORS], ids=[*NAMES, *(page.stem for page in DETECTORS)])
def test_links_lead_somewhere(page):
    """Relative links name files that exist, and headings that they have."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.is_file() and there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=[*NAMES, "CHANGELOG.md"])
def test_nothing_of_one_machine(page):
    """No absolute path of the machine on which it was written, and no emoji."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.:/)])/(?:work|tmp|home|root|usr|opt|var|mnt|Users)/[\w.-]*", text)
    assert not found
    drawn = {chr(point) for point in range(0x2500, 0x25A0)}  # lines and blocks, of which `rldk watch` makes its courses
    assert not [character for character in text if unicodedata.category(character) in ("So", "Cs", "Co") and character not in drawn]


def test_every_page_is_reachable():
    """docs/index.md leads to every page, and the list of detectors to the page of each."""
    detectors = (ROOT / "docs" / "detectors.md").read_text()
    assert DETECTORS and all(f"(detectors/{page.name})" in detectors for page in DETECTORS)
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index, page.name


def generator():
    """scripts/docs.py as a module."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestGeneratedPages:
    def test_they_are_current(self):
        """If this fails: make docs."""
        assert generator().stale() == []

    def test_they_say_so(self):
        """A generated page tells its reader not to edit it."""
        for name in generator().PAGES:
            assert "Generated by scripts/docs.py; do not edit." in (ROOT / "docs" / name).read_text().splitlines()[:3]

    def test_the_check_names_a_stale_page(self, tmp_path, monkeypatch, capsys):
        """--check changes nothing and exits with 1 if a page is not what it would be now."""
        module = generator()
        pages = tmp_path / "docs"
        (pages / "detectors").mkdir(parents=True)
        for name in module.PAGES:
            (pages / name).write_text((ROOT / "docs" / name).read_text())
        for record in (ROOT / "docs" / "matrix").glob("*.json"):
            (pages / "matrix").mkdir(exist_ok=True)
            (pages / "matrix" / record.name).write_text(record.read_text())
        monkeypatch.setattr(module, "DOCS", pages)
        assert module.main(["--check"]) == 0
        (pages / "metrics.md").write_text("old")
        assert module.main(["--check"]) == 1
        assert "docs/metrics.md" in capsys.readouterr().err
        assert (pages / "metrics.md").read_text() == "old"

    def test_it_runs_as_a_script(self):
        """The command that the Makefile calls."""
        done = subprocess.run(
            [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
