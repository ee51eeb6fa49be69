"""What stands where trackio is expected and is not there: every name that trainers ask for, and nothing behind it.

Writes nothing, sends nothing, takes any arguments. rldk's own record is made elsewhere. Imports nothing of rldk's, and
never decides what needs a stand-in: that is `_health`.
"""

from __future__ import annotations

import enum
import inspect
import sys
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Nothing", "Run", "complete", "fits", "lacking", "make_module", "silence"]

# What is asked of the module: by transformers' callback (init, config, log, finish, context_vars; with a Space also
# freeze, sync and __version__), by TRL (context_vars in every model card, log, Table, Image, Trace) and by accelerate.
_FUNCTIONS = ("init", "log", "finish")
_VARIABLES = ("current_run", "current_project", "current_space_id")
_TRACKING = (*_FUNCTIONS, "config")


class Nothing:
    """Takes any arguments and methods, and does nothing with them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Does nothing."""


class Config(dict[str, Any]):
    """A configuration that nobody reads; also with wandb's `allow_val_change` and as attributes."""

    def update(self, *others: Any, allow_val_change: bool = True, **more: Any) -> None:
        """As of a dictionary. What is no mapping is passed over."""
        for other in others:
            if isinstance(other, dict):
                super().update(other)
        super().update(more)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Run(Nothing):
    """A run that keeps nothing.

    Attributes:
        deaf: True: nothing that is told to it arrives anywhere.
    """

    deaf = True
    id = url = group = None
    _space_id = None

    def __init__(self, project: Any = None, name: Any = None, **kwargs: Any) -> None:
        super().__init__()
        self.project = project or "huggingface"
        self.name = name or "run"
        self.config = Config(kwargs.get("config") or {})


class AlertLevel(str, enum.Enum):
    """Levels of alerts, as trackio names them."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


def _init(*args: Any, **kwargs: Any) -> Run:
    """Begins nothing."""
    return Run(**{name: kwargs.get(name) for name in ("project", "name")})


def _contents() -> dict[str, Any]:
    variables = ModuleType("trackio.context_vars", "Nothing is ever in them.")
    variables.__spec__ = ModuleSpec("trackio.context_vars", None, origin="rldk")
    for name in _VARIABLES:
        setattr(variables, name, ContextVar(name, default=None))
    functions = ("log", "finish", "alert", "freeze", "sync", "log_system", "save")
    classes = ("Table", "Image", "Trace", "Video", "Audio", "Html", "Histogram", "Markdown", "Artifact")
    return {
        "__version__": "0", "init": _init, "config": Config(), "context_vars": variables, "AlertLevel": AlertLevel, "Run": Run,
        **dict.fromkeys(functions, _nothing), **{name: type(name, (Nothing,), {}) for name in classes},
    }


def lacking(module: Any) -> list[str]:
    """What trainers will ask of a module of this name and not find; empty if it is all there. Calls nothing of it."""
    missing = [name for name in _FUNCTIONS if not callable(getattr(module, name, None))]
    config = getattr(module, "config", None)
    if not (callable(getattr(config, "update", None)) and hasattr(type(config), "__setitem__")):
        missing.append("config")
    if _variables_lacking(getattr(module, "context_vars", None)):
        missing.append("context_vars")
    if getattr(module, "__spec__", None) is None:
        missing.append("__spec__")
    return missing


def _variables_lacking(variables: Any) -> list[str]:
    return [name for name in _VARIABLES if not callable(getattr(getattr(variables, name, None), "get", None))]


def fits(module: Any) -> bool:
    """Whether a module's own functions can be used as trackio's are, as far as their parameters tell. Calls none."""
    if not {*_TRACKING}.isdisjoint(lacking(module)):
        return False
    row: dict[str, float] = {}
    return (
        _takes(module.init, project="", name="") and _takes(module.log, row) and _takes(module.log, row, step=0)
        and _takes(module.finish)
    )


def _takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True  # written in C: it does not say
    return True


def complete(module: Any, replace: bool) -> list[str]:
    """Gives a module what it lacks. It stays the same object, so whoever has it sees the difference.

    Args:
        module: What is found under the name.
        replace: Whether to put the stand-in in place of its own functions too, where they do not fit. They are one whole:
            with another's `init`, its `log` would fail.

    Returns:
        The names of its own that were replaced.
    """
    contents = _contents()
    replaced: list[str] = []
    missing = lacking(module)
    if not fits(module) and replace:
        replaced = [name for name in _TRACKING if name not in missing and hasattr(module, name)]
        missing += replaced
    variables = getattr(module, "context_vars", None)
    if isinstance(variables, ModuleType):
        # An older trackio's: its own code goes on using what is there.
        for name in _variables_lacking(variables):
            setattr(variables, name, ContextVar(name, default=None))
        contents["context_vars"] = variables
    if "__spec__" in missing:
        module.__spec__ = ModuleSpec("trackio", None, origin="rldk")
    for name, value in contents.items():
        if name in missing or not hasattr(module, name):
            setattr(module, name, value)
    if isinstance(module.context_vars, ModuleType):
        sys.modules["trackio.context_vars"] = module.context_vars
    return replaced


def silence(module: Any) -> None:
    """Puts the stand-in in place of a module's own functions."""
    contents = _contents()
    for name in _TRACKING:
        setattr(module, name, contents[name])


def make_module() -> ModuleType:
    """A whole module of that name, in nobody's reach yet."""
    module = ModuleType("trackio", "In place of trackio, which cannot be used here. Made by rldk; nothing in it does anything.")
    module.__spec__ = ModuleSpec("trackio", None, origin="rldk")
    complete(module, replace=True)
    module.__getattr__ = _any_name  # type: ignore[method-assign]  # a module's own, by PEP 562
    return module


def _any_name(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'trackio' has no attribute {name!r}")
    return Nothing if name[0].isupper() else _nothing
