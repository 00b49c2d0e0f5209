"""Who wants to hear of something: parts are made one after the other, and told afterwards whom to notify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Observers(Generic[P]):
    """Of one kind of notice; none of them may block."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[P, object]] = []

    def add(self, callback: Callable[P, object]) -> None:
        """``callback`` is called at every notice from now on, after those that were added before."""
        self._callbacks.append(callback)

    def notify(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """It happened."""
        for callback in self._callbacks:
            callback(*args, **kwargs)
