"""What would be found under the name of a package: looked up and read, never imported or run.

For trackio, of which trainers ask no more than whether the name can be found: a file, a folder or a half-made module of
that name ends them later.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["is_own", "names_in", "own_file", "spec_of", "where"]


def spec_of(module: str) -> ModuleSpec | None:
    """Where a top-level module would be imported from."""
    try:
        return importlib.util.find_spec(module)
    except Exception:  # noqa: BLE001  # a module without a spec, or an import hook that raises: it cannot be found
        return None


def where(spec: ModuleSpec | None) -> str:
    """A module's place, in words."""
    if spec is None:
        return "made by a program"
    return spec.origin or ", ".join(spec.submodule_search_locations or ()) or "unknown place"


def own_file(distribution: str) -> Path | None:
    """The `__init__.py` that an installed distribution put there for its package of the same name."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(f"{distribution}/__init__.py")))
    except Exception:  # noqa: BLE001  # not installed, or with metadata that cannot be read: then it is not known
        return None
    return found if found.is_file() else None


def is_own(distribution: str, source: str | os.PathLike[str]) -> bool:
    """Whether a file is the one that the installed distribution put there."""
    own = own_file(distribution)
    return own is not None and os.path.realpath(own) == os.path.realpath(source)


def names_in(source: Path) -> set[str] | None:
    """The names that a module's source gives itself, submodules included, `*` if that cannot be told; None if unreadable."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    names: set[str] = set()
    if source.name == "__init__.py":
        names.update(path.stem for path in source.parent.glob("*.py"))
        names.update(path.parent.name for path in source.parent.glob("*/__init__.py"))
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add("*" if node.name == "__getattr__" else node.name)
            continue  # what is inside is not the module's
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting.extend(ast.iter_child_nodes(node))
    return names
