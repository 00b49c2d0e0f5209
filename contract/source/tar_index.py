"""Reading the headers of a ``.edgebundle`` file: where each member's bytes lie, without extracting anything.

Accepts what ``tar`` and Python write for regular files: ustar (POSIX.1-1988), pax headers (POSIX.1-2001, ``path`` and
``size``) and GNU long names and binary sizes. Links, directories, devices, sparse files and unknown members are
refused: a repository has only regular files. Member names are looked up, never used as paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from contract.bundle.layout import is_repository_path
from contract.errors import BundleRefused
from contract.reasons import Reason

BLOCK = 512
MAX_MEMBERS = 8192
"""Members of one tar: 1,024 files and a manifest, 1,024 roots, and room for several bundles."""

MAX_EXTENDED_BYTES = 8192
"""Bytes of one pax or long-name member: it holds one path of at most 255 bytes and a size."""

MAX_TRAILING_BYTES = 2**20
"""Zeros after the end mark; writers pad to 10 KiB, tapes to a little more."""

MAX_TAR_BYTES = 2**46
"""64 TiB: beyond any disk here, far below where offsets overflow."""

_EXTENDED = (b"x", b"g", b"L")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) ")


class Member(NamedTuple):
    """Where a file's bytes lie in the tar."""

    offset: int
    size: int


def _refuse(why: str) -> BundleRefused:
    return BundleRefused(Reason.TAR_INVALID, f"the tar {why}")


def index_members(read_at: Callable[[int, int], bytes], total: int) -> dict[str, Member]:
    """Index the tar of ``total`` bytes; ``read_at(offset, length)`` returns fewer bytes only at the end.

    Raises:
        BundleRefused: TAR_INVALID, with what is wrong.
    """
    if total > MAX_TAR_BYTES:
        raise _refuse("is larger than any disk")
    members: dict[str, Member] = {}
    extended: dict[str, str] = {}
    position = 0
    for _ in range(3 * MAX_MEMBERS):
        header = read_at(position, BLOCK)
        if len(header) < BLOCK:
            raise _refuse("is truncated: its end mark is missing")
        position += BLOCK
        if not any(header):
            if extended:
                raise _refuse("ends after a header that announces another member")
            _check_end(read_at, position, total)
            return members
        _check_header(header)
        if header[156:157] in _EXTENDED:
            size = _number(header[124:136])
            extended |= _read_extended(header[156:157], read_at, position, size)
        else:
            name, size = _describe(header, extended)
            extended = {}
            if size > total - position:
                raise _refuse(f"is truncated, or the size of {name[:120]!r} is wrong")
            if name in members:
                raise _refuse(f"contains {name!r} twice")
            members[name] = Member(position, size)
        position += -(-size // BLOCK) * BLOCK
        if len(members) > MAX_MEMBERS:
            break
    raise _refuse(f"has more than {MAX_MEMBERS} members")


def _read_extended(kind: bytes, read_at: Callable[[int, int], bytes], position: int, size: int) -> dict[str, str]:
    """The name and size that a pax or GNU long-name member gives to the member after it."""
    if size > MAX_EXTENDED_BYTES:
        raise _refuse("has an extended header that is too long")
    body = read_at(position, size)
    if len(body) < size:
        raise _refuse("is truncated in an extended header")
    found = {"path": _text(body.rstrip(b"\0"))} if kind == b"L" else _pax(body)
    if kind == b"g" and found:
        raise _refuse("sets a name or size for all members")
    return found


def _describe(header: bytes, extended: dict[str, str]) -> tuple[str, int]:
    """Name and size of a regular file of the repository; anything else is refused."""
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        raise _refuse(f"contains a member of type {kind!r}; only regular files are allowed")
    name = extended.get("path") or _name(header)
    if not is_repository_path(name):
        raise _refuse(f"contains {name[:120]!r}, which does not belong in a repository")
    return name, _decimal(extended["size"]) if "size" in extended else _number(header[124:136])


def _check_end(read_at: Callable[[int, int], bytes], position: int, total: int) -> None:
    if total - position > MAX_TRAILING_BYTES:
        raise _refuse("continues after its end mark")
    rest = read_at(position, total - position)
    if len(rest) < BLOCK:
        raise _refuse("is truncated: its end mark is incomplete")
    if any(rest):
        raise _refuse("continues after its end mark")


def _check_header(header: bytes) -> None:
    if header[257:265] not in (b"ustar\x0000", b"ustar  \x00"):
        raise _refuse("has a header that is not ustar")
    stored = header[148:156].rstrip(b" \0").lstrip(b" ")
    if re.fullmatch(rb"[0-7]{1,7}", stored) is None:
        raise _refuse("has a header without a checksum")
    # POSIX: the sum of all bytes, the checksum field taken as spaces.
    if int(stored, 8) != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
        raise _refuse("has a header whose checksum is wrong")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's big-endian binary with the top bit set; never negative."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
        if value > MAX_TAR_BYTES:
            raise _refuse("claims a size beyond any disk")
        return value
    digits = field.rstrip(b" \0").lstrip(b" ")
    if re.fullmatch(rb"[0-7]{1,12}", digits) is None:
        raise _refuse("has a size that is not a number")
    return int(digits, 8)


def _decimal(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,15}", text) is None:
        raise _refuse("has a size that is not a number")
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refuse("has a name that is not UTF-8") from error


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0", 1)[0])
    if header[257:265] == b"ustar\x0000":
        prefix = _text(header[345:500].split(b"\0", 1)[0])
        return f"{prefix}/{name}" if prefix else name
    return name


def _pax(body: bytes) -> dict[str, str]:
    """``LENGTH KEY=VALUE\\n`` records; keys that change what the data are refuse, harmless ones are skipped."""
    found: dict[str, str] = {}
    while body:
        match = _PAX_RECORD.match(body)
        length = int(match[1]) if match else 0
        if match is None or length > len(body) or length <= match.end() or body[length - 1 : length] != b"\n":
            raise _refuse("has a pax header that cannot be read")
        key, equals, value = body[match.end() : length - 1].partition(b"=")
        if not equals:
            raise _refuse("has a pax header that cannot be read")
        if key in (b"path", b"size"):
            if key.decode() in found:
                raise _refuse(f"has a pax header with two {key.decode()}s")
            found[key.decode()] = _text(value)
        elif key.startswith((b"GNU.sparse", b"SCHILY.realsize", b"linkpath", b"hdrcharset")):
            raise _refuse(f"has a pax header with {_text(key)[:40]!r}, which is not allowed")
        body = body[length:]
    return found
