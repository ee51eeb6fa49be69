"""A logger with trackio's and wandb's habits that cannot end a run: `init`, `log`, `finish`.

Everything logged is also rldk's own record, judged by the detectors. The real trackio gets it too, where it is installed
and sound. No function here raises, whatever it is given, whatever trackio or the network does; each does nothing before
`init` and after `finish`. Nothing here imports torch, transformers or TRL.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .._guard import Guard
from ..detectors import make_detectors
from ..emit import check_tags
from ..hub import check_dataset_id
from ..runfiles import check_path
from ..session import Logged, Session
from ..sinks.trackers import TrackerSink
from ..text import clean
from ._config import Config
from ._health import Health, ensure_trackio
from ._install import install
from ._tracker import Tracker

__all__ = [
    "Health", "config", "ensure_trackio", "finish", "get_experiment_url", "get_monitor", "init", "install", "is_available",
    "log", "log_checkpoint", "log_config", "log_evaluation_results",
]

logger = logging.getLogger("rldk")

OUTPUT_DIR = "./rldk_logs"
PROJECT = "huggingface"  # as transformers calls it by default

F = TypeVar("F", bound=Callable[..., Any])

_guard = Guard()


class _Run:
    """What `init` began."""

    def __init__(self, session: Session, tracker: Tracker | None) -> None:
        self.session = session
        self.tracker = tracker


_run: _Run | None = None
_told: set[str] = set()


def _total(otherwise: Any = None) -> Callable[[F], F]:
    """What goes wrong in a function, wrong arguments too, is logged once and costs the call alone."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  # the module's promise: nothing in it ends a run
                _guard.caught(f"rldk.trackio.{function.__name__}", error)
                return otherwise

        return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature

    return wrap


@_total("")
def init(
    project: str | None = None,
    name: str | None = None,
    group: str | None = None,
    space_id: str | None = None,
    server_url: str | None = None,
    dataset_id: str | None = None,
    bucket_id: str | None = None,
    config: Mapping[str, Any] | None = None,
    resume: str = "never",
    private: bool | None = None,
    *,
    project_name: str | None = None,
    experiment_name: str | None = None,
    trackio_url: str | None = None,
    trackio_token: str | None = None,
    hf_token: str | None = None,
    dataset_repo: str | None = None,
    hub_dataset_id: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    tags: Mapping[str, Any] | Sequence[str] | None = None,
    alert_thresholds: Mapping[str, Any] | None = None,
    log_interval: int = 0,
    **more: Any,
) -> str:
    """Begins a run; one that is going on is finished first.

    Args:
        project: The project in trackio. By default the environment's `TRACKIO_PROJECT`, else `huggingface`.
        name: The run's name, and that of its files. By default the project, the UTC time and four random digits.
        group: As trackio takes it.
        space_id: The Space that trackio logs to; by default the environment's `TRACKIO_SPACE_ID`.
        server_url: The server that trackio logs to; by default the environment's `TRACKIO_SERVER_URL`.
        dataset_id: As trackio takes it.
        bucket_id: As trackio takes it.
        config: The run's configuration.
        resume: `never`, `allow` or `must`: whether to go on with the run of that name.
        private: As trackio takes it; for the dataset of `hub_dataset_id` too.
        project_name: Older name of `project`.
        experiment_name: Older name of `name`.
        trackio_url: Older name of `server_url`.
        trackio_token: The write token of that server; by default the environment's `TRACKIO_WRITE_TOKEN`.
        hf_token: The Hub's token; by default the environment's `HF_TOKEN`, or the one of `hf auth login`.
        dataset_repo: Older name of `hub_dataset_id`.
        hub_dataset_id: A dataset on the Hub that rldk's files of the run go to, every five minutes and at the end.
        output_dir: Folder of rldk's files. By default the environment's `RLDK_OUTPUT_DIR`, else `./rldk_logs`.
        tags: Free labels, into every event.
        alert_thresholds: As of `RLDKCallback`.
        log_interval: Steps between console lines; 0 for none.
        more: What else the installed trackio's `init` takes, such as `webhook_url`.

    Returns:
        The run's id, by which its files are called. Empty on processes other than the first, which record nothing.

    Example:
        ```python
        import rldk.trackio as trackio

        trackio.init(project="ppo", name="run-1", config={"learning_rate": 1e-5})
        for step in range(100):
            trackio.log({"loss": 0.5, "reward": 0.1}, step=step)
        trackio.finish()
        ```
    """
    global _run
    finish()
    if os.environ.get("RANK", "0") not in ("", "0"):
        return ""
    if isinstance(hf_token, str) and hf_token and not os.environ.get("HF_TOKEN"):
        os.environ["HF_TOKEN"] = hf_token  # where trackio and huggingface_hub look for it
    project = str(project or project_name or os.environ.get("TRACKIO_PROJECT") or PROJECT)
    name = name or experiment_name
    folder = _checked("output_dir", output_dir, _folder) or _folder(os.environ.get("RLDK_OUTPUT_DIR")) or OUTPUT_DIR
    given = dict(config) if isinstance(config, Mapping) else {}
    begun = {**_config, **given}
    tracker = _begin_tracker(str(folder), {
        "embed": False, **more, "project": project, "name": name, "group": group, "space_id": space_id,
        "server_url": _with_token(server_url or trackio_url, trackio_token), "dataset_id": dataset_id, "bucket_id": bucket_id,
        "config": begun or None, "resume": resume, "private": private,
    })
    sink = TrackerSink(["trackio"], kept_in=str(folder)) if tracker is not None and tracker.run is not None else None
    run_name = name if name is None else str(name)
    session = _begin_session(
        run_name, folder, name=project, resume=resume in ("allow", "must"), config=begun, tags=_checked("tags", tags, check_tags),
        alert_thresholds=_checked("alert_thresholds", alert_thresholds, make_detectors),
        log_interval=log_interval if isinstance(log_interval, int) else 0, trackers=sink, after=_after,
        hub_dataset_id=_checked("hub_dataset_id", hub_dataset_id or dataset_repo, check_dataset_id), hub_private=private,
        hub_token=hf_token,
    )
    _run = _Run(session, tracker)
    dict.update(_config, given)
    return session.run_id


@_total()
def log(metrics: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
    """Logs a dictionary of metrics.

    Numbers are recorded and judged by rldk; everything, tables and images too, goes to trackio. Memory, GPU and speed, as
    rldk measures them, go there under `rldk/`.

    Args:
        metrics: Names to values.
        step: The caller's step. By default `train/global_step` of the metrics, else the one after the last.
        more: Passed over; wandb takes `commit` here.
    """
    run = _current("log")
    if run is None:
        return
    logged = run.session.log(metrics, step)
    own = logged.own if logged is not None else {}
    _pass_on(run, logged, {**metrics, **{f"rldk/{item}": value for item, value in own.items()}})


@_total()
def log_config(config: Mapping[str, Any], **more: Any) -> None:
    """Adds to the run's configuration, as `config.update` does."""
    _config.update(config, **more)


@_total()
def log_checkpoint(
    path: str | os.PathLike[str] | None = None, step: int | None = None, metrics: Mapping[str, Any] | None = None, **more: Any
) -> None:
    """Logs that a checkpoint was saved. Its weights are looked through for NaN and Inf, in a thread.

    Args:
        path: Its folder.
        step: By default the last step.
        metrics: Numbers that belong to it.
        more: More of them.
    """
    run = _current("log_checkpoint")
    if run is None:
        return
    numbers = {**(metrics or {}), **more}
    logged = run.session.log_checkpoint(path, step, numbers)
    told = {f"checkpoint/{item}": value for item, value in numbers.items()}
    _pass_on(run, logged, {"checkpoint/path": "" if path is None else Path(path).name, **told})


@_total()
def log_evaluation_results(results: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
    """Logs the results of an evaluation, by default at the last step.

    Args:
        results: Names to numbers, with or without `eval_`.
        step: The step that was evaluated.
        more: More of them.
    """
    run = _current("log_evaluation_results")
    if run is None:
        return
    numbers = {**results, **more}
    logged = run.session.log_evaluation(numbers, step)
    _pass_on(run, logged, {
        f"eval/{str(item).removeprefix('eval/').removeprefix('eval_')}": value for item, value in numbers.items()
    })


@_total()
def finish(status: str | None = None, reason: str | None = None) -> None:
    """Ends the run: writes rldk's report, and lets trackio and the Hub have what is left, for a bounded time.

    Args:
        status: `completed`, `stopped` or `failed`. By default `completed`; while an exception is on its way, as in a
            `finally`, `failed`, or `stopped` for Ctrl-C.
        reason: Why, if not completed.
    """
    if _run is not None:
        _run.session.finish(status if status in ("completed", "stopped", "failed") else None, reason)


@_total()
def get_experiment_url() -> str | None:
    """The address of the run in trackio; None for one on this machine only, or before `init`."""
    return None if _run is None or _run.tracker is None else _run.tracker.url()


@_total(False)
def is_available() -> bool:
    """Whether the real trackio can be used here; rldk's own record is made in any case."""
    return ensure_trackio(create=False).verdict in ("sound", "recovered")


@_total()
def get_monitor() -> Session | None:
    """The run that is recorded, or was last: `run_id`, `files`, `alerts`, `report`. None before `init`."""
    return None if _run is None else _run.session


# How


def _current(asked: str) -> _Run | None:
    if _run is not None and _run.session.recording:
        return _run
    if asked not in _told and os.environ.get("RANK", "0") in ("", "0"):
        _told.add(asked)
        when = "before init()" if _run is None else "after finish()" if _run.session.closed else "in a process forked from the run's"
        logger.warning("rldk: rldk.trackio.%s() was called %s, and did nothing", asked, when)
    return None


def _pass_on(run: _Run, logged: Logged | None, metrics: Mapping[str, Any]) -> None:
    """Gives trackio what was logged, at the step that it was recorded at."""
    if run.tracker is not None:
        run.tracker.log(metrics, logged.step if logged is not None else None)


def _checked(argument: str, given: Any, check: Callable[[Any], Any]) -> Any:
    """What was given, if it passes its check; else None, with one line: no exception may tell."""
    try:
        if given is not None:
            check(given)
    except Exception as error:  # noqa: BLE001  # whatever was passed
        logger.warning("rldk: rldk.trackio.init() goes on without %s=: %s", argument, clean(str(error)))
        return None
    return given


def _folder(given: Any) -> Any:
    return check_path("output_dir", given, folder=True) if given else None


def _begin_tracker(folder: str, asked: Mapping[str, Any]) -> Tracker | None:
    """The real trackio's run; None where there is no trackio to use."""
    if ensure_trackio(create=False).verdict not in ("sound", "recovered"):
        return None
    import trackio  # the real one: half a second, and only for who asked for a run in it

    return Tracker(trackio, folder, asked)


def _begin_session(run_id: str | None, folder: str | os.PathLike[str], **settings: Any) -> Session:
    """The record; in the default folder, if it cannot be begun where it was asked for."""
    try:
        return Session(run_id, folder, **settings)
    except Exception as error:  # noqa: BLE001  # what no check foresaw
        _guard.caught("rldk.trackio.init", error)
        kept = {name: settings[name] for name in ("name", "resume", "config", "trackers", "after")}
        return Session(run_id, OUTPUT_DIR, **kept)


def _after(status: str) -> None:
    """The record is whole: lets go of trackio."""
    if _run is not None and _run.tracker is not None:
        _run.tracker.finish(hurried=status == "failed")
    _config.clear()  # it was this run's


def _with_token(url: str | None, token: str | None) -> str | None:
    """A server's address with the token to write to it, as trackio takes both."""
    if not isinstance(url, str) or not token or "write_token=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}write_token={token}"


def _configured(values: Mapping[str, Any]) -> None:
    """`config` was changed."""
    if _run is not None and _run.session.recording:
        _run.session.log_config(values)
        if _run.tracker is not None:
            _run.tracker.configure(values)


_config = Config(lambda values: _guard.call("rldk.trackio.config", _configured, values))
config = _config
