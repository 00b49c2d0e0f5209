"""One operation of the API: the same record makes its route, its checks and its description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from contract.errors import RequestInvalid
from contract.schema_faults import nearest
from fleet.access.roles import Permission
from fleet.store.database import Transaction
from fleet.web.identity import Identity
from fleet.web.settings import Settings


class Parameter(Struct, frozen=True):
    """One of the query, or of the path. Numbers are within ``least`` and ``most``."""

    name: str
    text: str
    kind: Literal["string", "integer"] = "string"
    default: Any = None
    least: int = 0
    most: int = 2**31 - 1

    def read(self, text: str) -> Any:
        """Its value.

        Raises:
            RequestInvalid: it is none.
        """
        if self.kind == "string":
            return text
        if not text.isascii() or not text.isdigit() or not self.least <= int(text[:20]) <= self.most:
            raise RequestInvalid(
                f"{self.name} is a number from {self.least} to {self.most}, not {text[:40]!r}", field=self.name
            )
        return int(text)


class Call(Struct, frozen=True, kw_only=True):
    """A request that was read. ``prepared`` is what ``Operation.prepare`` made of it."""

    settings: Settings
    identity: Identity
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Any
    if_match: str | None
    now: float
    prepared: Any = None

    def check_match(self, etag: str) -> None:
        """See that what is changed is as it was looked at.

        Raises:
            RequestInvalid: it is not, by ``If-Match``.
        """
        if self.if_match is None or self.if_match.strip() == "*":
            return
        if etag not in [each.strip() for each in self.if_match.split(",")]:
            raise RequestInvalid(
                "it has changed since you looked: look again", code=412, kind="precondition_failed", field="If-Match"
            )


class Reply(Struct, frozen=True):
    """``etag`` as the header has it, with quotation marks."""

    document: Any
    etag: str | None = None
    location: str | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """``run`` is called within one transaction, which is one that writes if it ``changes`` something; ``prepare``
    before it, for what takes long. ``matches``: it takes ``If-Match``.
    """

    method: Literal["GET", "POST", "PATCH"]
    path: str
    name: str
    summary: str
    permission: Permission
    reply: type[Any]
    run: Callable[[Transaction, Call], Reply]
    prepare: Callable[[Call], Any] = lambda call: None
    parameters: tuple[Parameter, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: type[Any] | None = None
    body_required: bool = True
    status: int = 200
    changes: bool = False
    matches: bool = False

    def read_query(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The parameters of the query, with their defaults.

        Raises:
            RequestInvalid: one is not known, or cannot be read.
        """
        known = {each.name: each for each in self.query}
        for name in given:
            if name not in known:
                near = nearest(name, list(known))
                hint = "" if near is None else f"; did you mean {near}?"
                raise RequestInvalid(f"there is no parameter {name[:64]!r}{hint}", field=name[:64])
        return {name: each.read(given[name]) if given.get(name) else each.default for name, each in known.items()}


def etag_of(*parts: Any) -> str:
    """A strong tag of what ``parts`` say."""
    return f'"{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]}"'
