"""The house keeps its walls: who may import what, who may print, what importing rldk loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rldk

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rldk"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first; a module imports only from rows below its own (or its own).
ROWS = (
    ("exceptions", "_registry", "_guard", "_bounded", "_register", "text"),
    ("event", "metrics"),
    ("vocabulary", "detectors"),
    ("_files", "emit", "sinks", "summary", "report", "runfiles", "environment", "follow", "live_view", "remote"),
    ("monitor", "alerts_file", "recorder", "resources", "checkpoints", "lifecycle", "timeline", "silence",
     "hub", "_hub_manners", "_hub_uploads", "_outbox"),
    ("adapters",),
    ("frame", "ingest", "_judging", "rebuild", "replay", "runs", "_session_names", "_session_plan", "session", "loaded", "live", "_compared", "compare", "model_card", "ppo"),
    ("integrations", "trackio"),
    ("cli", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(ROWS) for name in names}


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Absolute names that a module imports, wherever in it, with the line."""
    here = ["rldk", *path.relative_to(PACKAGE).with_suffix("").parts]
    if here[-1] == "__init__":
        package = here[:-1]
    else:
        package = here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                if node.module:
                    yield ".".join([*base, node.module]), node.lineno
                else:
                    for alias in node.names:
                        yield ".".join([*base, alias.name]), node.lineno
            elif node.module:
                yield node.module, node.lineno


def users_of(library):
    return {name_of(path) if "/" not in str(path.relative_to(PACKAGE)) else str(path.relative_to(PACKAGE))
            for path in MODULES for name, _ in imports(path) if name.split(".")[0] == library}


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py" or path.parent != PACKAGE],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    """A module imports from its own row or lower ones; later imports inside functions are for heavy libraries."""
    own = HEIGHT[name_of(path)]
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "rldk" and len(parts) > 1:
            late = str(path.relative_to(PACKAGE)) in ("adapters/trl.py", "_register.py")  # each says why beside it
            assert late or HEIGHT[parts[1]] <= own, f"{path.name}:{line} imports {name}"


def test_every_module_has_its_row():
    """A new module has to say where it stands."""
    assert {name_of(path) for path in MODULES} - {"__init__"} == set(HEIGHT)


def test_walls():
    """trl, transformers, pandas and torch are each known in one corner."""
    assert users_of("trl") == set()  # looked up by name, in integrations/trl/_compat.py
    assert all(user.startswith(("integrations/trl/", "ppo/")) for user in users_of("transformers"))
    annotated = {"ingest", "loaded", "adapters/trl.py", "cli/ingest.py", "report/plot.py"}  # with what frame gives them
    assert users_of("pandas") <= {"frame", *annotated}
    assert all(user.startswith(("integrations/", "ppo/")) or user == "checkpoints" for user in users_of("torch"))
    assert users_of("matplotlib") <= {"report/plot.py", "loaded"}  # the latter for an annotation


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_swallowed_or_printed(path):
    """Only cli/_output.py prints; `except Exception` only where a comment says why; no handler that does nothing without a word."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and path != PACKAGE / "cli" / "_output.py":
            called = ast.unparse(node.func)
            prints = called in ("print", "Console", "typer.echo") or called.endswith(("stdout.write", "stderr.write"))
            assert not prints, f"{path.name}:{node.lineno} prints; only cli/_output.py does"
        if isinstance(node, ast.ExceptHandler):
            line = source.splitlines()[node.lineno - 1]
            if node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"):
                assert "#" in line, f"{path.name}:{node.lineno} catches everything without a reason"
        assert not (isinstance(node, ast.Name) and node.id == "pickle")


def test_importing_is_light():
    """Reading logs imports neither torch nor transformers nor trl; `import rldk` not even pandas."""
    code = (
        "import sys\nimport rldk\nassert 'pandas' not in sys.modules\n"
        "import rldk.emit, rldk.ingest, rldk.adapters.trl, rldk.rebuild, rldk.report\n"
        "from rldk import EventWriter, ingest_runs, rebuild_run\nimport rldk.frame\n"
        "heavy = {'torch', 'transformers', 'trl', 'accelerate', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_without_trl_or_transformers():
    """Without TRL the package imports; what needs it is an ImportError with the cure."""
    code = (
        "import sys, importlib.metadata as m\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('trl', 'transformers', 'torch'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'trl': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "import rldk, rldk.integrations.trl as t\n"
        "for name in ('RLDKCallback', 'EventWriterCallback', 'PPOTrainer', 'PPOConfig'):\n"
        "    try:\n        getattr(t, name)\n"
        "    except ImportError as error:\n"
        "        assert str(error).startswith('TRL not available. Install with: pip install trl'), error\n"
        "    else:\n        raise SystemExit(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names():
    """The public API is a list."""
    assert sorted(rldk.__all__) == [
        "EventWriter", "EventWriterCallback", "RLDKCallback", "__version__", "add_training_health", "ingest_runs", "load",
        "rebuild_run",
    ]
    for name in rldk.__all__:
        assert getattr(rldk, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(rldk, "nothing")  # noqa: B009  # the attribute access is what is tested


@pytest.mark.matrix
def test_ppo_lives_where_it_lives():
    """PPOTrainer and PPOConfig are TRL's own where it has them, else rldk's."""
    import zoo

    import rldk.ppo
    from rldk.integrations import trl

    found = (trl.PPOTrainer, trl.PPOConfig)
    if zoo.has("ppo"):
        # From TRL 0.26 to 0.28 the top level has subclasses that only warn.
        assert all(issubclass(*pair) for pair in zip(zoo.classes("ppo"), found))
    else:
        assert found == (rldk.ppo.PPOTrainer, rldk.ppo.PPOConfig)
