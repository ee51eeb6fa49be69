"""Whether the module trackio is what trainers take it for, and what is done where it is not.

transformers and TRL ask only whether a module of that name can be found, and use it as trackio. A file, a folder or a
test's stub of the name, a half-installed or blocked package then ends a training. Never called by `import rldk`. Sends
nothing, and never touches a trackio that is sound.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..integrations.trl._stray import is_own, names_in, own_file, spec_of, where
from ..text import clean
from ._stand_in import complete, lacking, make_module

__all__ = ["Health", "ensure_trackio"]

logger = logging.getLogger("rldk")

_NAME = "trackio"
_NEEDED = ("init", "log", "finish", "config", "context_vars")
_MARK = "__rldk_health__"  # on a module that was made, completed or loaded past a stray one
_LONGEST = 300
_PROGRAM = "is the program itself"


class Health(NamedTuple):
    """What stands under the name trackio.

    Attributes:
        verdict: `sound`: trackio itself, untouched. `recovered`: trackio itself, loaded past what stood before it.
            `patched`: something else of that name, given what it lacked. `fallback`: a stand-in that does nothing.
            `absent`: nothing, or nothing that would be used. `off`: not looked at, by `RLDK_TRACKIO=off`.
        path: The file or folder that was found in its place, or trackio's own; None if there is none.
        detail: What was found and done, for people; empty for what is sound.
    """

    verdict: str
    path: str | None
    detail: str


_lock = threading.RLock()
_looking = False
_told = False


def ensure_trackio(create: bool = True, *, wanted: bool = True) -> Health:
    """Makes sure that the name trackio gives trainers what they will ask of it.

    Cheap to call again. Does nothing with `RLDK_TRACKIO=off` in the environment. What it does is said in one warning,
    which names the file or folder that stood in the way. Never raises.

    Args:
        create: Whether to put a stand-in where there is nothing of that name. In transformers 4 a module of the name is
            enough for `report_to`'s default to take it, so leave it where nobody asks for trackio. trackio itself, where it
            is installed and would be found, is only then imported.
        wanted: Whether somebody is going to log to it. If not, only what TRL itself would trip over is mended, by adding
            what is missing, and nothing is run that would not have been.

    Returns:
        What stands under the name now.
    """
    global _looking
    if os.environ.get("RLDK_TRACKIO", "").lower() == "off":
        return Health("off", None, "RLDK_TRACKIO=off")
    with _lock:
        if _looking:
            return Health("absent", None, "it is being looked at")  # asked from within what is being imported
        _looking = True
        try:
            return _look(create, wanted)
        except Exception as error:  # noqa: BLE001  # a check must not end what it is to keep alive
            health = Health("absent", None, f"the check of trackio failed: {_short(error)}")
            _tell(health)
            return health
        finally:
            _looking = False


def _look(create: bool, wanted: bool) -> Health:
    if _NAME not in sys.modules:
        return _look_on_disk(create, wanted)
    module: Any = sys.modules[_NAME]
    if module is None:
        # Blocked, as one does in tests. To those who ask for it by name it must not be an error all the same.
        if not create:
            return Health("absent", None, "its import is blocked")
        return _stand_in(None, "import of trackio is blocked (sys.modules['trackio'] is None)")
    path = _path_of(module)
    mark = getattr(module, "__dict__", {}).get(_MARK)
    if isinstance(mark, tuple):
        health, whole = mark
        return health if whole or not wanted else _mend(module, path, health.detail.partition(";")[0], wanted)
    missing = lacking(module)
    if not missing:
        return Health("sound", path, "")
    if not wanted and "__spec__" not in missing and not _trl_will_ask():
        return Health("absent", path, "it is not used")
    return _mend(module, path, f"has no {', '.join(missing)}", wanted)


def _look_on_disk(create: bool, wanted: bool) -> Health:
    spec = spec_of(_NAME)
    if spec is None:
        if not create:
            return Health("absent", None, "trackio is not installed")
        return _stand_in(None, "trackio is not installed")
    path = where(spec)
    if spec.origin is not None and is_own(_NAME, spec.origin):
        return _import(path, wanted) if create else Health("sound", path, "")
    if not wanted and not _trl_will_ask():
        return Health("absent", path, "it is not used")
    problem = _problem_of(spec)
    recovered = _recover(path, problem) if problem else None
    if recovered is not None:
        return recovered
    if problem == _PROGRAM:
        return _stand_in(path, problem)  # importing it would run the whole program a second time
    return _import(path, wanted)


def _import(path: str, wanted: bool) -> Health:
    """Imports what is found under the name, and looks at it."""
    problem = ""
    try:
        module: Any = importlib.import_module(_NAME)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stray file does when it is run
        problem = f"cannot be imported: {_short(error)}"
    else:
        missing = lacking(module)
        if not missing:
            return Health("sound", path, "")
        return _mend(module, path, f"has no {', '.join(missing)}", wanted)
    return _recover(path, problem) or _stand_in(path, problem)


def _mend(module: Any, path: str | None, problem: str, wanted: bool) -> Health:
    """What is loaded under the name is not what trainers take it for."""
    if wanted:
        recovered = _recover(path, problem)
        if recovered is not None:
            return recovered
    replaced = complete(module, replace=wanted)
    said = "what it lacks was added, and does nothing"
    if replaced:
        said += f"; its own {', '.join(replaced)} cannot be used as trackio's, and now does nothing either"
    return _done(module, Health("patched", path, f"{problem}; {said}"), wanted)


def _recover(path: str | None, problem: str) -> Health | None:
    """Loads the installed trackio under its name, whatever stands before it; None if that cannot be done."""
    own = own_file(_NAME)
    if own is None or (path is not None and is_own(_NAME, path)):
        return None
    before = {name: module for name, module in sys.modules.items() if name == _NAME or name.startswith(f"{_NAME}.")}
    for name in before:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(_NAME, own, submodule_search_locations=[str(own.parent)])
    try:
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
        missing = lacking(module)
        if missing:
            raise ImportError(f"the installed trackio has no {', '.join(missing)}")
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a damaged installation, or one that lacks a requirement
        logger.debug("rldk: the installed trackio cannot be loaded in place of %s: %s", path, _short(error))
        for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
            del sys.modules[name]
        sys.modules.update(before)
        return None
    _keep_names(module, before.get(_NAME), path)
    return _done(module, Health("recovered", path, f"{problem}; the installed trackio is used in its place"), True)


def _keep_names(module: ModuleType, stray: ModuleType | None, path: str | None) -> None:
    """Lets what only the stray module has be found still: it may be a part of the user's program."""
    source = Path(path) if stray is None and path is not None else None  # not loaded yet

    def other_name(name: str) -> Any:
        nonlocal stray, source
        if not name.startswith("__"):
            if source is not None and source.is_file():
                place, source = source, None
                stray = _load_beside(place)
            if hasattr(stray, name):
                return getattr(stray, name)
        raise AttributeError(f"module 'trackio' has no attribute {name!r}")

    if not hasattr(module, "__getattr__"):
        module.__getattr__ = other_name  # type: ignore[method-assign]  # a module's own, by PEP 562


def _load_beside(place: Path) -> ModuleType | None:
    """Loads a stray module under no name; None if it cannot be."""
    try:
        spec = importlib.util.spec_from_file_location("_stray_trackio", place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # it was found to be broken, and that was said
        logger.debug("rldk: %s cannot be loaded: %s", place, _short(error))
        return None
    return module


def _stand_in(path: str | None, problem: str) -> Health:
    module = make_module()
    sys.modules[_NAME] = module
    return _done(module, Health("fallback", path, f"{problem}; nothing goes to trackio"), True)


def _done(module: Any, health: Health, whole: bool) -> Health:
    setattr(module, _MARK, (health, whole))
    # TRL's modules look for it once, as they are imported.
    for name, other in list(sys.modules.items()):
        if name.startswith("trl.") and isinstance(other, ModuleType) and "is_trackio_available" in vars(other):
            vars(other)[_NAME] = module
    _tell(health)
    return health


def _tell(health: Health) -> None:
    """One warning a process: what comes later is said quietly."""
    global _told
    first = os.environ.get("RANK", "0") in ("", "0") and not _told
    _told = True
    found = f"{clean(health.path)}, found as the module trackio, " if health.path else ""
    if health.verdict in ("patched", "recovered") and not found:
        found = "the module trackio, which a program made, "
    cure = ""
    if health.verdict == "fallback" and own_file(_NAME) is None:
        cure = " To log to it: pip install trackio."
    elif health.path and not is_own(_NAME, health.path):
        cure = " To be rid of this, rename it."
    elif health.path:
        cure = " Try: pip install --upgrade trackio."
    kept = " RLDKCallback's files have everything." if health.verdict in ("fallback", "patched") else ""
    logger.log(
        logging.WARNING if first else logging.DEBUG, "rldk: %s%s. Training is not affected.%s%s", found, health.detail, kept, cure,
    )


# What is found, without running it


def _problem_of(spec: ModuleSpec) -> str:
    """What is certain to be wrong with a module that is no distribution's; empty if that takes an import to tell."""
    if spec.origin is None:
        return "is a folder without __init__.py"
    source = Path(spec.origin)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and os.path.realpath(main) == os.path.realpath(source):
        return _PROGRAM
    if source.suffix != ".py":
        return ""
    names = names_in(source)
    if names is None:
        return "cannot be read as Python"
    missing = [] if "*" in names else [name for name in _NEEDED if name not in names]
    return f"has no {', '.join(missing)}" if missing else ""


def _path_of(module: Any) -> str | None:
    spec = getattr(module, "__spec__", None)
    place = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    folders = getattr(module, "__path__", ())
    return str(place) if place else (", ".join(map(str, folders)) or None)


def _trl_will_ask() -> bool:
    """Whether the TRL that is loaded writes trackio's address into model cards, whatever it reports to."""
    return hasattr(sys.modules.get("trl.trainer.utils"), "get_trackio_space_url")


def _short(error: BaseException) -> str:
    return clean(" ".join(f"{type(error).__name__}: {error}".split()))[:_LONGEST]
