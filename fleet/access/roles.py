"""Roles, and what each permits. An account has one or more; what they permit adds up."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import StrEnum

from contract.errors import RequestInvalid
from contract.schema_faults import nearest


class Permission(StrEnum):
    """``READ``: see everything but accounts. ``OPERATE``: devices and rollouts. ``ADMINISTER``: accounts."""

    READ = "read"
    PROMPT = "prompt"
    OPERATE = "operate"
    APPROVE = "approve"
    ADMINISTER = "administer"


class Role(StrEnum):
    VIEWER = "viewer"
    PROMPTER = "prompter"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


_P = Permission

PERMITS: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({_P.READ}),
    Role.PROMPTER: frozenset({_P.READ, _P.PROMPT}),
    Role.OPERATOR: frozenset({_P.READ, _P.PROMPT, _P.OPERATE}),
    Role.APPROVER: frozenset({_P.READ, _P.APPROVE}),
    Role.ADMIN: frozenset(Permission),
}
"""That the author of a rollout does not approve it holds for every role (:func:`fleet.rollout.operate.approve`)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


def permissions(roles: Iterable[Role]) -> frozenset[Permission]:
    """What ``roles`` permit together."""
    return frozenset(permission for role in roles for permission in PERMITS[role])


def read_roles(names: Collection[str]) -> tuple[Role, ...]:
    """The roles that are named, in the order of their definition.

    Raises:
        RequestInvalid: one is none, or there is none.
    """
    known = [str(role) for role in Role]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = "" if near is None else f"; did you mean {near}?"
            raise RequestInvalid(f"{name[:64]!r} is no role; roles are {', '.join(known)}{hint}", field="roles")
    if not names:
        raise RequestInvalid(f"an account needs a role: {', '.join(known)}", field="roles")
    return tuple(role for role in Role if role in names)


def check_name(name: str) -> str:
    """``name`` as it can be of an account.

    Raises:
        RequestInvalid: it cannot.
    """
    if _NAME.fullmatch(name) is None:
        raise RequestInvalid(
            f"{name[:80]!r} cannot name an account: 1 to 64 of A-Z a-z 0-9 _ . @ + -, a letter or digit first",
            field="name",
        )
    return name
