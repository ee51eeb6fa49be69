"""Trainings beside modules called trackio, good and bad, each in a process of its own.

One driver a group: `python trackio_cases.py group.json` imports what the group's cases share, and forks once for each
case, which imports the rest, trains, and ends as any program ends. Meant for `test_trackio_health.py`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import types
from pathlib import Path

# What stands in a folder at the front of the path; a key with no suffix is a folder.
STRAYS = {
    "A": {},
    "B": {"trackio.py": ""},
    "C": {"trackio.py": "config = {}\ndef keep(what):\n    with open('own.txt', 'a') as file: print(what, file=file)\n"
                        "def init(**kw): keep('init')\ndef log(row, step=None): keep(f'log {step}')\ndef finish(): keep('finish')\n"},
    "D": {"trackio/notes.txt": "a folder"},
    "E": {"trackio.py": "import nonexistent_dep_xyz"},
    "F": {"trackio.py": "def init(:"},
    "G": {"trackio.py": "def init(project, name): return 'theirs'\ndef helper(): return 'theirs'\n"},
    "raises": {"trackio.py": "config = {}\ndef init(**kw): pass\ndef finish(): pass\n"
                             "def log(row, step=None):\n    if step > 2: raise ValueError('theirs')\n"},
    "exits": {"trackio.py": "config = {}\ndef init(**kw): raise SystemExit(3)\ndef finish(): pass\ndef log(row, step=None): pass\n"},
    "hangs": {"trackio.py": "import time\nconfig = {}\ndef init(**kw): pass\ndef finish(): time.sleep(99)\n"
                            "def log(row, step=None):\n    if step > 2: time.sleep(99)\n"},
}


class Told(logging.Handler):
    """Keeps what rldk says of trackio."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        if "trackio" in record.getMessage():
            self.lines.append(record.getMessage())


def run_case(case, folder):
    """Trains as a user's program would, and writes down what came of it."""
    os.chdir(folder)
    os.environ.update(case.get("env", {}), TRACKIO_DIR=str(folder / "trackio_dir"))
    if case.get("full"):
        (folder / "trackio_dir").touch()  # a file where the folder should be
    sys.path.insert(0, str(folder / "stray"))
    told = Told()
    logging.getLogger("rldk").addHandler(told)
    if "stub" in case:
        sys.modules["trackio"] = types.ModuleType("trackio") if case["stub"] == "module" else None
    if case.get("trl_first"):
        from trl import GRPOTrainer  # noqa: F401  # as users' programs begin
    callbacks = []
    if case["by"] == "import":
        import rldk  # which knows `report_to="rldk"`
    elif case["by"] == "install":
        import rldk.trackio

        rldk.trackio.install()
    elif case["by"] == "callback":
        from rldk.integrations.trl import RLDKCallback

        callbacks = [RLDKCallback(log_interval=0)]
    elif case["by"] == "added":
        from rldk.integrations.trl import RLDKCallback
    import zoo

    family = case.get("family", "sft")
    settings = {"max_steps": 4, "save_steps": 2, "eval_steps": 100, "report_to": "trackio", **case.get("settings", {})}
    fields = zoo.classes(family)[1].__dataclass_fields__
    if settings["report_to"] == "default":
        settings["report_to"] = fields["report_to"].default
    if "trackio_space_id" in fields:
        settings.setdefault("trackio_space_id", None)  # transformers 4.57 has a Space by default
    began = time.perf_counter()
    trainer = zoo.trainer(family, folder / "out", callbacks=callbacks, **settings)
    if case["by"] == "added":
        trainer.add_callback(RLDKCallback(log_interval=0))
    trainer.train(**case.get("train", {}))
    seconds = time.perf_counter() - began
    if case.get("evaluate"):
        trainer.evaluate()
    if case.get("again"):
        trainer = zoo.trainer(family, folder / "out", callbacks=[RLDKCallback(log_interval=0)], **{**settings, "max_steps": 6})
        trainer.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))
    said = list(told.lines)  # before rldk is asked again
    from transformers.integrations.integration_utils import is_trackio_available

    import rldk.trackio

    (folder / "result.json").write_text(json.dumps({
        "steps": trainer.state.global_step, "seconds": seconds, "told": said,
        "saved": sorted(path.name for path in (folder / "out").glob("checkpoint-*")),
        "available": is_trackio_available(), "health": rldk.trackio.ensure_trackio(create=False),
        "loaded": "trackio" in sys.modules, "report_to": trainer.args.report_to,
        "helper": getattr(sys.modules.get("trackio"), "helper", str)(),
    }))


def main(group):
    """Forks for each case, one after the other."""
    for name in group["preload"]:
        __import__(name)
    if "zoo" in group["preload"]:
        import zoo

        zoo.classes("sft")
    for name, case in group["cases"].items():
        folder = Path(group["folder"]) / name
        for file, text in STRAYS[case["stray"]].items():
            (folder / "stray" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "stray" / file).write_text(text)
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            run_case(case, folder)
            return  # and out, as any program: what is to run at exit runs
        _, status = os.waitpid(child, 0)
        (folder / "status.txt").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
