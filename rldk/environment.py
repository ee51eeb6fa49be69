"""What the run ran on: versions, hardware, the state of the repository. No secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import psutil

__all__ = ["describe", "git_commit", "redact", "versions"]

_PACKAGES = (
    "rldk", "trl", "transformers", "torch", "accelerate", "datasets", "peft", "numpy", "pandas", "vllm", "deepspeed",
    "bitsandbytes", "liger-kernel", "flash-attn", "trackio", "wandb",
)
_GIT_LIMIT_S = 5.0
_SECRET_NAME = re.compile(r"token|secret|password|passwd|api_?key|credential|private_key", re.IGNORECASE)
# Token counts and the like have harmless names that hold the word.
_NOT_SECRET = re.compile(r"token_?id|tokens|tokeniz|eos_token|bos_token|pad_token|stop_token|special_token", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_HIDDEN = "<redacted>"


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those installed; read from their metadata, nothing is imported."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Python, platform, processors, memory, GPUs, package versions."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpu_names(),
        "versions": versions(),
    }


def _gpu_names() -> list[str]:
    torch = sys.modules.get("torch")  # asked only if the run uses it: importing it here would be the heaviest import
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def git_commit() -> dict[str, Any]:
    """The commit of the working folder and whether it has changes; empty where there is no repository or no git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit} if changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_LIMIT_S, check=True,
            stdin=subprocess.DEVNULL, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def redact(value: Any, name: str = "") -> Any:
    """A copy of a JSON value without secrets, by the names of keys and the look of values."""
    if isinstance(value, Mapping):
        return {str(key): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if isinstance(value, str):
        if value and _SECRET_NAME.search(name) and not _NOT_SECRET.search(name):
            return _HIDDEN
        return _SECRET_VALUE.sub(_HIDDEN, value)
    return value
