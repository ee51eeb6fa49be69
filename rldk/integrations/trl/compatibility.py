"""`check_trl_compatibility`: what is true of the TRL that is installed here, and what to do about it.

The versions come from the packages' metadata, where PPO lives from the folders on disk. By default only `import trl` is
run: about 0.1 s, and without torch, from TRL 0.29 on, whose package is lazy; 2 to 3 s and with torch before that.
"""

from __future__ import annotations

import glob
import importlib
import importlib.metadata
import os
import platform
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier

from ._stray import is_own, names_in, spec_of, where
from .known_issues import in_force, matches

__all__ = ["check_trl_compatibility"]

_OLDEST = "0.23.0"  # the oldest TRL that rldk supports
_TRAINERS = ("SFTTrainer", "RewardTrainer", "DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer")
# Where Linux shows an accelerator. The folder for graphics is among them: a card in it may be one that torch can use.
_NVIDIA = ("/dev/nvidia[0-9]*", "/dev/dxg")
_OTHERS = ("/dev/kfd", "/dev/dri/render*", "/dev/accel*", "/dev/habana*", "/dev/hl[0-9]*", "/dev/davinci*", "/dev/neuron*",
           "/dev/cambricon*", "/dev/mtgpu*", "/dev/vfio/[0-9]*")


def check_trl_compatibility(probe: bool = False) -> dict[str, Any]:
    """Says what is known to go wrong with the installed TRL, and what to do.

    Never raises, and works with TRL absent or broken. Every warning is true of what is installed.

    Args:
        probe: Imports the trainers too and asks torch for its devices. This takes some seconds and loads torch. Without
            it a TRL whose package can be imported counts as sound, and a device is looked for in the file system.

    Returns:
        `trl_available`: TRL is installed and can be imported. `version`, `transformers`, `python`: versions, None for
        what is not installed. `ppo`: where PPO comes from, "trl", "trl.experimental.ppo", "rldk", or None without TRL.
        `import_errors`: by name, the errors of what is installed and cannot be imported. `issues`: the rows of the table of
        known issues in force, as dicts. `warnings` and `recommendations`: one line each, in the same order.
    """
    report: dict[str, Any] = {
        "trl_available": False, "version": None, "transformers": None, "python": platform.python_version(), "ppo": None,
        "import_errors": {}, "issues": [], "warnings": [], "recommendations": [],
    }
    try:
        _fill(report, probe)
    except Exception as error:  # noqa: BLE001  # a check that fails must say so, and not end the program that asked
        _say(report, f"the check itself failed: {type(error).__name__}: {error}", "please report this to rldk")
    return report


def _fill(report: dict[str, Any], probe: bool) -> None:
    report["version"], report["transformers"] = _version("trl"), _version("transformers")
    spec = spec_of("trl")
    if spec is None and report["version"] is None:
        _say(report, "TRL is not installed", "pip install trl")
    else:
        _look_at_trl(report, spec, probe)
    facts = {**_where_ppo_is(spec), **_machine(report["version"], probe)}
    report["ppo"] = _home_of_ppo(facts)
    issues = in_force(report["version"], report["transformers"], facts)
    if report["version"] is None:
        issues = [issue for issue in issues if issue.code == "stray_trackio"]  # the others speak of TRL
    for issue in issues:
        symptom = issue.symptom
        if issue.code == "stray_trackio":
            symptom = f"{_stray_trackio(report['version'])}. {symptom}"
        report["issues"].append({
            "code": issue.code, "affects": issue.affects, "trl": issue.trl, "transformers": issue.transformers,
            "symptom": symptom, "remedy": issue.remedy, "cure": issue.cure, "evidence": issue.evidence, "until": issue.until,
        })
        _say(report, f"{issue.affects}: {symptom} Remedy: {issue.remedy} [{issue.code}]", f"{issue.remedy} [{issue.code}]")


def _say(report: dict[str, Any], warning: str, recommendation: str) -> None:
    report["warnings"].append(warning)
    report["recommendations"].append(recommendation)


# TRL itself


def _look_at_trl(report: dict[str, Any], spec: ModuleSpec | None, probe: bool) -> None:
    """Whether TRL can be imported, and whether it has what it requires."""
    error = _import_error("trl")
    report["trl_available"] = error is None
    if error is None and report["version"] is None:
        # A checkout on the path has no metadata.
        report["version"] = _text(getattr(sys.modules["trl"], "__version__", None))
    if error is not None:
        report["import_errors"]["trl"] = error
        _say(
            report, f"TRL {report['version'] or ''} is installed and cannot be imported: {error}".replace("  ", " "),
            "read the error, and install what it names; if that does not help: pip install --force-reinstall trl",
        )
    elif spec is not None and spec.origin is None:
        report["trl_available"] = False
        _say(
            report, f"a folder named trl, without __init__.py, is found in place of TRL: {where(spec)}",
            "rename the folder or start Python elsewhere",
        )
    for unmet in _unmet_requirements():
        _say(report, f"TRL {report['version']} requires {unmet}", 'pip install --upgrade "trl=={}"'.format(report["version"]))
    if report["version"] is not None and matches(f"<{_OLDEST}", report["version"]):
        _say(report, f"rldk supports TRL {_OLDEST} and newer, and this is {report['version']}", "pip install --upgrade trl")
    if probe and report["trl_available"]:
        for name in _TRAINERS:
            broken = _import_error("trl", name)
            if broken is not None:
                report["import_errors"][name] = broken
                _say(report, f"trl.{name} cannot be imported: {broken}", "see the other warnings, and install what is named")


def _import_error(module: str, name: str | None = None) -> str | None:
    """What importing a module, or a name from it, raises; None if nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a package warns of is not what was asked, and must not count as an error
        try:
            found = importlib.import_module(module)
            if name is not None:
                getattr(found, name)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a broken package raises is the answer
            return f"{type(error).__name__}: {error}"
    return None


def _unmet_requirements() -> list[str]:
    """What TRL's metadata requires and the installation has not, in words."""
    try:
        lines = importlib.metadata.requires("trl") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    unmet = []
    for line in lines:
        try:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            installed = _version(requirement.name)
            if installed is None:
                unmet.append(f"{requirement.name}{requirement.specifier}, which is not installed")
            elif not matches(str(requirement.specifier), installed):
                unmet.append(f"{requirement.name}{requirement.specifier}, and {installed} is installed")
        except (InvalidRequirement, InvalidSpecifier):
            continue  # a line that packaging cannot read says nothing about the installation
    return unmet


# Where PPO is


def _where_ppo_is(spec: ModuleSpec | None) -> dict[str, bool]:
    """The facts that rows ask for in `probe`: looked up on disk, since importing PPO would load torch."""
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return {}  # no TRL, or an empty folder of that name: then the version has to do
    roots = list(spec.submodule_search_locations)
    experimental = _has_module("trl.experimental.ppo", [os.path.join(root, "experimental") for root in roots])
    top = _has_module("trl.trainer.ppo_trainer", [os.path.join(root, "trainer") for root in roots])
    return {
        "ships_ppo": experimental or top, "no_ppo": not (experimental or top), "ppo_shim": experimental and top,
        "ppo_experimental_only": experimental and not top,
    }


def _home_of_ppo(facts: dict[str, bool]) -> str | None:
    if not facts.get("ships_ppo", False):
        return "rldk" if facts.get("no_ppo", False) else None
    return "trl.experimental.ppo" if facts["ppo_shim"] or facts["ppo_experimental_only"] else "trl"


def _has_module(name: str, folders: list[str]) -> bool:
    found = PathFinder.find_spec(name, folders)
    return found is not None and found.origin is not None


# The machine


def _machine(trl: str | None, probe: bool) -> dict[str, bool]:
    """The facts that rows ask for in `machine`."""
    return {
        "no_requests": spec_of("requests") is None,
        "stray_trackio": _stray_trackio(trl) is not None,
        "no_bf16_device": _no_bf16_device(probe),
    }


def _no_bf16_device(probe: bool) -> bool:
    """Whether it is certain that transformers will find no device with bf16."""
    if spec_of("torch") is None or spec_of("torch_xla") is not None:
        return False
    if probe:
        try:
            # Transformers' own question, on which TRL's configurations fail. It may start CUDA, after which the process
            # cannot be forked: hence not by default.
            check = importlib.import_module("transformers.utils").is_torch_bf16_gpu_available
            return not check()
        except Exception:  # noqa: BLE001  # a transformers that cannot be imported is reported elsewhere; look at the machine instead
            pass
    if (_version("torch") or "").endswith("+cpu"):
        return True
    if sys.platform != "linux":
        return False  # Apple's chips, and Windows: nothing to look at without torch
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not any(glob.glob(pattern) for pattern in (() if hidden else _NVIDIA) + _OTHERS)


def _stray_trackio(trl: str | None) -> str | None:
    """What is found in place of the package trackio and lacks what trainers use; None if nothing is.

    Nothing of it is imported: its source is read for the names that it has.
    """
    needed = ["init", "log", "finish", "config"] + (["context_vars"] if matches(">=0.29.0", trl) else [])
    if "trackio" in sys.modules:
        module = sys.modules["trackio"]
        if module is None:
            return None  # blocked on purpose: to everybody it is not installed
        missing = [name for name in needed if not hasattr(module, name)]
        place = where(getattr(module, "__spec__", None))
        return f"the loaded module trackio has no {', '.join(missing)}: {place}" if missing else None
    spec = spec_of("trackio")
    if spec is None or spec.origin in ("built-in", "frozen"):
        return None
    if spec.origin is None:
        return f"a folder without __init__.py is found as the module trackio: {where(spec)}"
    source = Path(spec.origin)
    if is_own("trackio", source) or source.suffix != ".py":
        return None
    has = names_in(source)
    if has is None:
        return f"the file found as the module trackio cannot be read as Python: {source}"
    missing = [] if "*" in has else [name for name in needed if name not in has]
    return f"the file found as the module trackio has no {', '.join(missing)}: {source}" if missing else None


# What is installed, asked with care


def _version(package: str) -> str | None:
    """The version in a package's metadata; None if it is not installed or does not say."""
    try:
        return _text(importlib.metadata.version(package))
    except Exception:  # noqa: BLE001  # not installed, or damaged metadata, which raises as it likes
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
