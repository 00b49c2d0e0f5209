"""Every error this project raises on purpose, by whose fault it is, since fault decides whether to retry.

::

    EdgeBundleError
    ├── BundleRefused       the bundle, its metadata or its signatures: never retried until it changes
    ├── SourceUnavailable   the network or the medium: retried
    │   └── SourceInvalid   it delivers what is not what was signed: retried, elsewhere and later
    ├── StoreFull           no room on this disk: retried when there is some
    ├── StoreBroken         this disk cannot be written or read: retried, reported
    ├── EngineFailed        ours: the runtime crashed, hung or could not load
    ├── RequestInvalid      the client's request: answered with an error frame
    ├── ConfigInvalid       the operator's configuration file
    ├── BuildRefused        the packager's source or options, or a build that is not what was asked for
    └── UsageError          the command line

Adapters raise only these, with the cause chained. "Could not check" is a :class:`BundleRefused`, never a pass.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from contract.causes import Cause, cause_of
from contract.reasons import Reason


class Fault(NamedTuple):
    """One of the faults of an input: where, what, and what was probably meant."""

    field: str | None
    message: str
    suggestion: str | None = None


def printable(text: str) -> str:
    """``text`` on one line, with escapes in place of control characters and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class EdgeBundleError(Exception):
    """One sentence for a person, a reason code for a program, an exit status for a shell.

    ``field`` names the offending field of the input, if there is one. What cannot be printed is escaped in both: names
    and paths from outside stand in them, and must not draw on a terminal, break a line of a log, or be half a
    character. ``details`` are all the faults that were found in an input, the one that ``message`` tells first.
    """

    exit_status: ClassVar[int] = 1
    details: tuple[Fault, ...] = ()

    def __init__(self, message: str, *, reason: Reason | None = None, field: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = None if field is None else printable(field)


class BundleRefused(EdgeBundleError):
    """The bundle, its metadata or its signatures are not acceptable; ``reason`` is always set.

    ``signed``: it is about what a trusted signature vouches for, so that no way of delivering it changes anything.
    """

    exit_status: ClassVar[int] = 3
    reason: Reason

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str | None = None,
        signed: bool = False,
        details: tuple[Fault, ...] = (),
    ) -> None:
        super().__init__(message, reason=reason, field=field)
        self.signed = signed
        self.details = details

    @property
    def cause(self) -> Cause:
        """Who brought it about."""
        return cause_of(self.reason, signed=self.signed)


class SourceUnavailable(EdgeBundleError):
    """The source cannot be reached, stalled or broke off; worth trying again or elsewhere.

    ``retry_after``: seconds that the source asks to be left alone for.
    """

    exit_status: ClassVar[int] = 4

    def __init__(
        self,
        message: str,
        *,
        reason: Reason = Reason.SOURCE_UNAVAILABLE,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, field=field)
        self.retry_after = retry_after


class SourceInvalid(SourceUnavailable):
    """The source answers, with other bytes than were signed: a captive portal, an error page, a stale or hostile
    mirror. ``reason`` says what is wrong with them.
    """


class StoreFull(EdgeBundleError):
    """The disk has no room for what was to be written."""

    exit_status: ClassVar[int] = 5

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.STORE_FULL)


class StoreBroken(EdgeBundleError):
    """The state directory cannot be read or written (read-only, I/O error, locked by another agent)."""

    exit_status: ClassVar[int] = 5

    def __init__(self, message: str, *, reason: Reason = Reason.STORE_BROKEN) -> None:
        super().__init__(message, reason=reason)


class EngineFailed(EdgeBundleError):
    """The runtime crashed, hung, or could not load what it was given."""

    exit_status: ClassVar[int] = 6

    def __init__(self, message: str, *, reason: Reason = Reason.ENGINE_FAILED) -> None:
        super().__init__(message, reason=reason)


class LoadTimedOut(EngineFailed):
    """A model was not loaded in the time that there is for it."""


class RequestInvalid(EdgeBundleError):
    """A client's request cannot be served as it stands; ``code`` follows HTTP (400, 404, 409, 410, 413, 429…)."""

    exit_status: ClassVar[int] = 2

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        code: int = 400,
        kind: str = "invalid_request",
        details: tuple[Fault, ...] = (),
    ):
        super().__init__(message, field=field)
        self.details = details
        self.code = code
        self.kind = kind


class ConfigInvalid(EdgeBundleError):
    """The configuration file cannot be used. 78 is EX_CONFIG of sysexits.h: systemd must not restart on it.

    ``faults``: each by itself; ``line``: where it stands in the file, if that is known.
    """

    exit_status: ClassVar[int] = 78

    def __init__(self, message: str, *, field: str | None = None, faults: tuple[ConfigInvalid, ...] = ()) -> None:
        super().__init__(message, field=field)
        self.faults = faults or (self,)
        self.line: int | None = None


class BuildRefused(EdgeBundleError):
    """The source or the options cannot be built, or the build is not what was asked for."""

    exit_status: ClassVar[int] = 3


class UsageError(EdgeBundleError):
    """The command line asks for something that makes no sense."""

    exit_status: ClassVar[int] = 2
