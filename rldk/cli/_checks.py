"""What `rldk doctor` looks at. Each check looks, changes nothing, and says what it found in plain values."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "Problem", "compatibility", "gpus", "known_problems", "output_folder", "ppo_home", "stray_modules", "unused_gpu", "versions",
]

_PACKAGES = ("rldk", "trl", "transformers", "torch", "accelerate", "datasets", "peft")
# Modules that training imports by name, and the distributions that bring them. `trl` and its like are found to be stray by
# what does not work; these fail late, in the middle of a run.
_MODULES = {
    "trackio": ("trackio",), "wandb": ("wandb",), "mlflow": ("mlflow", "mlflow-skinny"), "tensorboard": ("tensorboard",),
    "trl": ("trl",), "transformers": ("transformers",), "torch": ("torch",), "accelerate": ("accelerate",),
    "datasets": ("datasets",), "peft": ("peft",),
}
_LITTLE_ROOM = 1 << 30


class Problem(NamedTuple):
    """Something that is wrong, or known to go wrong.

    Attributes:
        severity: `critical`: training or recording will fail. `warning`: some of it will. `info`: worth knowing.
        code: Short name.
        message: What was found.
        remedy: What to do.
    """

    severity: str
    code: str
    message: str
    remedy: str


def versions() -> dict[str, str | None]:
    """Versions by package, from their metadata: nothing is imported. None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        found[package] = _version(package)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpus() -> tuple[list[dict[str, Any]], str]:
    """The GPUs that NVIDIA's driver shows, or torch where it is loaded already; and why there are none."""
    try:
        import pynvml  # here, since it loads the driver's library

        pynvml.nvmlInit()
    except ImportError:
        return _torch_gpus(), "nvidia-ml-py is not installed"
    except Exception as error:  # noqa: BLE001  # the library's own errors, of which no driver is the usual one
        return _torch_gpus(), str(error)
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found.append({
                "name": name.decode() if isinstance(name, bytes) else str(name),
                "memory_bytes": int(memory.total), "memory_used_bytes": int(memory.used),
            })
        return found, "" if found else "the driver shows none"
    except pynvml.NVMLError as error:
        return _torch_gpus(), str(error)
    finally:
        pynvml.nvmlShutdown()


def _torch_gpus() -> list[dict[str, Any]]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [{"name": torch.cuda.get_device_name(index)} for index in range(torch.cuda.device_count())]


def unused_gpu(found: list[dict[str, Any]], torch: str | None) -> list[Problem]:
    """A GPU that torch was built without."""
    if not found or torch is None or not torch.endswith("+cpu"):
        return []
    return [Problem(
        "warning", "gpu_unused", f"there is a GPU ({found[0]['name']}), and torch {torch} was built without CUDA",
        "pip install torch from the index that suits the driver: https://pytorch.org/get-started/locally",
    )]


def compatibility() -> dict[str, Any]:
    """The answer of `check_trl_compatibility`; empty where this rldk does not have it."""
    check = getattr(importlib.import_module("rldk.integrations.trl"), "check_trl_compatibility", None)
    found = check() if callable(check) else {}
    return found if isinstance(found, dict) else {}


def known_problems(found: dict[str, Any], installed: dict[str, str | None]) -> list[Problem]:
    """The warnings of the compatibility check, by how much they matter here.

    What is wrong with this installation comes before what is known of the version: a clash of two versions will fail, a
    peculiarity may never be met.
    """
    rows = {str(row.get("code")): row for row in found.get("issues") or () if isinstance(row, dict)}
    problems = []
    for text, remedy in zip(found.get("warnings") or (), found.get("recommendations") or ()):
        code = next((code for code in rows if str(text).endswith(f"[{code}]")), None)
        if code is None:
            broken = installed["trl"] is not None and not found.get("trl_available", True)
            problems.append(Problem("critical" if broken else "warning", "trl", str(text), str(remedy)))
    for code, row in rows.items():
        if code == "stray_trackio":
            severity = "critical"
        else:
            severity = "warning" if row.get("transformers") or code == "needs_requests" else "info"
        problems.append(Problem(severity, code, f"{row.get('affects')}: {row.get('symptom')}", str(row.get("remedy"))))
    if not found and installed["trl"] is None:
        problems.append(Problem("warning", "trl", "TRL is not installed; reading logs works without", "pip install trl"))
    if installed["transformers"] is None:
        problems.append(Problem("warning", "transformers", "transformers is not installed", "pip install transformers"))
    return problems


def stray_modules(folder: Path) -> list[Problem]:
    """Files and folders that Python finds in place of a package.

    Looks in the folder as well: a training script has its own folder first on its path, the `rldk` command has not.

    Args:
        folder: Where training will be started.
    """
    problems = []
    for module, distributions in _MODULES.items():
        installed = next((name for name in distributions if _version(name) is not None), None)
        spec = PathFinder.find_spec(module, [str(folder)]) or _spec(module)
        if spec is None:
            continue
        place = spec.origin or ", ".join(spec.submodule_search_locations or ())
        if installed is None:
            what = "a folder" if spec.origin is None else "a file"
            problems.append(Problem(
                "critical" if module in ("trackio", "wandb") else "warning", f"stray_{module}",
                f"{what} is found as the module {module}, and the package {distributions[0]} is not installed: {place}. "
                f"transformers and TRL take it for the package, and fail on what it lacks",
                f"rename or remove it, or pip install {distributions[0]}"
                f"{'; RLDKCallback and rldk.trackio.install() get a training past it' if module == 'trackio' else ''}",
            ))
        elif spec.origin is not None and Path(spec.origin).resolve().is_relative_to(folder.resolve()) and not _own(installed, spec):
            problems.append(Problem(
                "critical", f"stray_{module}", f"a file is found in place of the installed package {installed}: {place}",
                "rename or remove it, or start training in another folder",
            ))
    return problems


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a module in sys.modules without a spec: nothing that could be looked at
        return None


def _own(distribution: str, spec: ModuleSpec) -> bool:
    """Whether a module is the distribution's own, also in an environment inside of the folder."""
    top = importlib.metadata.distribution(distribution).locate_file("")
    return Path(str(spec.origin)).resolve().is_relative_to(Path(str(top)).resolve())


def ppo_home(found: dict[str, Any]) -> str | None:
    """Where PPO comes from: `trl`, `trl.experimental.ppo`, `rldk.ppo`, or None."""
    home = found.get("ppo")
    if home == "rldk":
        return "rldk.ppo" if importlib.util.find_spec("rldk.ppo") is not None else None
    return str(home) if home else None


def output_folder(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Whether files can be made where the run's will go, and how much room there is. A folder that is missing stays so."""
    there = folder.absolute()
    while not there.exists() and there.parent != there:
        there = there.parent
    state: dict[str, Any] = {"path": str(folder), "exists": folder.exists(), "writable": False, "free_bytes": None}
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        with tempfile.TemporaryFile(dir=there):
            state["writable"] = True
        state["free_bytes"] = shutil.disk_usage(there).free
    except OSError as error:
        reason = error.strerror or str(error)
        return state, [Problem(
            "critical", "output_dir", f"nothing can be written to {folder}: {reason}", "give RLDKCallback another output_dir"
        )]
    if state["free_bytes"] < _LITTLE_ROOM:
        return state, [Problem(
            "warning", "output_dir", f"{state['free_bytes'] / 1e6:,.0f} MB are left where {folder} is; a long run takes about one "
            "kilobyte a logged step, a checkpoint far more", "make room, or give another output_dir",
        )]
    return state, []
