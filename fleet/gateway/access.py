"""Who may ask, and how much: what an endpoint needs of :mod:`fleet.gateway.keys`."""

from __future__ import annotations

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
        """It will cost about so many.

        Raises:
            EdgeBundleError: that many are not left.
        """

    def settle(self, tokens: int) -> None:
        """It is over and has cost so many."""


class Access(Protocol):
    """Lets requests in."""

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

    async def admit(self, authorization: str | None) -> Grant:
        return _AnybodysGrant()
