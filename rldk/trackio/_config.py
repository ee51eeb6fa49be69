"""The configuration of a run as wandb and trackio offer it: a dictionary that is also written as attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Config"]


class Config(dict[str, Any]):
    """A run's configuration; also before the run has begun. Nothing about it raises but the look-up of what is not there.

    Args:
        changed: Called with what was set.

    Example:
        ```python
        rldk.trackio.config.update({"beta": 0.1}, allow_val_change=True)
        rldk.trackio.config.seed = 42
        ```
    """

    def __init__(self, changed: Callable[[Mapping[str, Any]], object]) -> None:
        super().__init__()
        object.__setattr__(self, "_changed", changed)

    def update(self, *others: Any, allow_val_change: bool = True, **more: Any) -> None:
        """Sets several values. What is no mapping is passed over.

        Args:
            others: Mappings, or objects with the values as attributes (an `argparse.Namespace`, a dataclass).
            allow_val_change: As wandb takes it. Values may always be changed.
            more: Further values.
        """
        values: dict[str, Any] = {}
        for other in others:
            found = other if isinstance(other, Mapping) else getattr(other, "__dict__", {})
            values.update({str(name): value for name, value in found.items()})
        values.update(more)
        super().update(values)
        object.__getattribute__(self, "_changed")(values)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        object.__getattribute__(self, "_changed")({name: value})

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As of a dictionary."""
        if name not in self:
            self[name] = default
        return self[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the run's config has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value
