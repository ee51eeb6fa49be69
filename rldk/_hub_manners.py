"""How one gets on with the Hub: the ids it takes, a dataset's card, and what its library's errors mean.

What the library says and draws while it works is kept from a training's output, as far as it comes from rldk's own threads:
the program's other uses of it are left alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .exceptions import ConfigurationError

__all__ = ["CARD", "advice", "check_dataset_id", "quietly", "short", "status_code"]

# They warn of each retry, and of a commit that would be empty. rldk says once what became of it.
_LOGGERS = ("huggingface_hub.utils._http", "huggingface_hub.hf_api", "huggingface_hub._commit_api", "huggingface_hub.file_download")


CARD = """---
tags:
- rldk
- trl
configs:
- config_name: metrics
  data_files: "*/*_metrics.csv"
---
# Training runs, recorded by rldk

A folder a run: the events as they were logged, alerts, metrics, the final report and a page to look at. Read all of them,
or one:

```python
import rldk

df = rldk.ingest_runs("hf://datasets/{repo}")
run = rldk.load("hf://datasets/{repo}/RUN")
```
"""


def check_dataset_id(dataset_id: object) -> str:
    """Refuses what cannot be a dataset's id.

    Raises:
        ConfigurationError: Unless it is `name` or `user/name`, as the Hub takes them.
    """
    text = dataset_id if isinstance(dataset_id, str) else ""
    name = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
    bad = ".." in text or "--" in text or text.endswith(".git") or len(text.rpartition("/")[2]) > 96
    if bad or not re.fullmatch(rf"(?:{name}/)?{name}", text):
        plain = re.sub(r"^(?:\w+://)?(?:[\w.]+\.\w+/)?datasets/", "", text)
        hint = f" Did you mean {plain!r}?" if plain != text and plain.count("/") <= 1 and plain else ""
        raise ConfigurationError(f"hub_dataset_id must be 'user/name' or 'name' of a dataset on the Hub; got {dataset_id!r}.{hint}")
    return text


class _NotFrom(logging.Filter):
    """Drops what a thread of that name says."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.threadName != self.name


@contextmanager
def quietly(thread: str) -> Iterator[None]:
    """Without the library's warnings from the threads of that name, and without progress bars.

    The bars can only be switched off for the whole process, and come back after it.
    """
    # Here and not above, as in `rldk._hub_uploads`.
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    for name in _LOGGERS:
        found = logging.getLogger(name)
        if not any(isinstance(item, _NotFrom) for item in found.filters):
            found.addFilter(_NotFrom(thread))
    shown = HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()  # else the user has decided
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def status_code(error: BaseException | str) -> int | None:
    """The HTTP status that an error of huggingface_hub, requests or httpx is about."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def short(text: str) -> str:
    """What an error says, in a line, without the page about HTTP that httpx refers to."""
    return " ".join(re.sub(r"For more information check: \S+", "", text).split())


def advice(error: BaseException | str) -> str:
    """What to do about it, for the end of a sentence; empty if that is not known."""
    if status_code(error) == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "; log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    if status_code(error) == 403:
        return "; the token needs the right to write there"
    return ""
