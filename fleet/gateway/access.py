"""Who may ask, and how much: what an endpoint needs of :mod:`fleet.gateway.keys`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Grant(Protocol):
    """One request that was let in."""

    @property
    def owner(self) -> str:
        """Whose it is: the token's id; what one owner writes never touches another's requests."""

    @property
    def headers(self) -> dict[str, str]:
        """What is left of the quota."""

    def may_ask(self, model: str) -> bool:
        """Whether its key is for ``model``."""

    def reserve(self, tokens: int) -> None:
        """It will cost about so many."""

    def settle(self, tokens: int) -> None:
        """It is over and has cost so many."""


class Access(Protocol):
    """Lets requests in."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Around its whole life."""

    def warnings(self) -> dict[str, str]:
        """What is wrong with it, although it works: a name and a sentence each."""

    async def admit(self, authorization: str | None) -> Grant:
        """Let the request with this header in.

        Raises:
            RequestInvalid: 401, 429.
        """


class _AnybodysGrant:
    owner = "anybody"
    headers: dict[str, str] = {}  # noqa: RUF012 # never changed

    def may_ask(self, model: str) -> bool:
        return True

    def reserve(self, tokens: int) -> None:
        pass

    def settle(self, tokens: int) -> None:
        pass


class Anybody:
    """Lets everybody in."""

    def warnings(self) -> dict[str, str]:
        return {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def admit(self, authorization: str | None) -> Grant:
        return _AnybodysGrant()
