"""Every error that rldk raises on purpose.

    RLDKError
    |-- ConfigurationError (ValueError)    a parameter is wrong; raised at construction
    |   |-- RunExistsError                 the run's files are there already
    |-- TrainingStopped                    `stop_on` ended a trainer that cannot be asked to stop
    |-- IngestError                        a log cannot be read back
        |-- NoLogsError (FileNotFoundError)    nothing to read where one looked
        |-- EmptyLogError (ValueError)         a file without a single readable record
        |-- UnknownSchemaError (ValueError)    records, but none that rldk understands
        |-- MissingLibraryError (ImportError)  the library is not installed that wrote the log

Catch `RLDKError` to handle all of them. The built-in bases are there so that code which knows nothing of rldk
(``except ValueError``, ``except FileNotFoundError``) still does the right thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "ConfigurationError",
    "EmptyLogError",
    "IngestError",
    "MissingLibraryError",
    "NoLogsError",
    "RLDKError",
    "RunExistsError",
    "TrainingStopped",
    "UnknownSchemaError",
]


class RLDKError(Exception):
    """Base of all errors that rldk raises on purpose."""


class ConfigurationError(RLDKError, ValueError):
    """A parameter has a value that rldk cannot use. The message shows the value and what is allowed."""


class RunExistsError(ConfigurationError):
    """Files of a run with this `run_id` exist, and nothing says that the run is being resumed."""


class TrainingStopped(RLDKError):
    """Training was ended because of an alert, as `stop_on` asked for.

    Raised out of `train()` only where the trainer ignores `should_training_stop`, as TRL's PPOTrainer does. The checkpoint,
    if one was due, has been saved, and the run's record is whole.
    """


class IngestError(RLDKError):
    """Base of the errors of reading logs back."""


class NoLogsError(IngestError, FileNotFoundError):
    """The path, folder or glob holds nothing that could be a log. The message says what was looked for."""


class EmptyLogError(IngestError, ValueError):
    """The files exist but hold no readable record."""


class UnknownSchemaError(IngestError, ValueError):
    """Records were read but no step or metric was recognised; the message suggests a `field_map`.

    Attributes:
        field_map: The suggestion.
    """

    field_map: Mapping[str, str] = MappingProxyType({})


class MissingLibraryError(IngestError, ImportError):
    """A log that can be read only with the library that wrote it, which is not installed. The message says what to install."""
