"""The protobuf wire format, read with every length checked (protobuf.dev/programming-guides/encoding).

Reads spans of one buffer and copies nothing but what is asked for, so a graph with gigabytes of inline weights costs
as much as one without.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from contract.errors import BundleRefused
from contract.reasons import Reason

MAX_STRING_BYTES = 65536
"""Longest name or attribute string that is read; real graphs stay below 1,000 (a JSON-valued property aside)."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10  # 64 bits at 7 a byte


class Field(NamedTuple):
    """One field: ``value`` for the numeric wire types, ``[start, end)`` in the buffer for all of them."""

    number: int
    wire: int
    value: int
    start: int
    end: int


def refuse(what: str) -> BundleRefused:
    """The one error of these readers."""
    return BundleRefused(Reason.GRAPH_INVALID, f"the graph cannot be read: {what}")


def read_varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    """The unsigned 64-bit number at ``at`` and where it ends.

    Raises:
        BundleRefused: GRAPH_INVALID, it does not end within 10 bytes or before ``end``.
    """
    value = shift = 0
    for position in range(at, min(end, at + _MAX_VARINT_BYTES)):
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise refuse(f"a number has more than 64 bits at byte {at}")
            return value, position + 1
        shift += 7
    raise refuse(f"a number does not end at byte {at}")


def read_fields(buffer: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``[start, end)``, in order.

    Raises:
        BundleRefused: GRAPH_INVALID, at the first field that does not fit.
    """
    at = start
    while at < end:
        key = buffer[at]
        if key < 0x80:
            body = at + 1
        else:
            key, body = read_varint(buffer, at, end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise refuse(f"field number {number} at byte {at}")
        value = 0
        if wire == VARINT:
            value, at = read_varint(buffer, body, end)
        elif wire == BYTES:
            size, body = read_varint(buffer, body, end)
            at = body + size
        elif wire == FIXED64:
            at = body + 8
        elif wire == FIXED32:
            at = body + 4
        else:
            raise refuse(f"wire type {wire} at byte {at}")
        if at > end:
            raise refuse(f"field {number} at byte {body} is longer than what holds it")
        yield Field(number, wire, value, body, at)


def signed(value: int) -> int:
    """A varint as int64."""
    return value - 2**64 if value >= 2**63 else value


def read_bytes(buffer: memoryview, field: Field) -> bytes:
    """A copy of a bytes field.

    Raises:
        BundleRefused: GRAPH_INVALID, it is longer than :data:`MAX_STRING_BYTES`.
    """
    if field.end - field.start > MAX_STRING_BYTES:
        raise refuse(f"a string of {field.end - field.start} bytes at byte {field.start}")
    return bytes(buffer[field.start : field.end])


def read_text(buffer: memoryview, field: Field) -> str:
    """A string field.

    Raises:
        BundleRefused: GRAPH_INVALID, too long or not UTF-8.
    """
    try:
        return read_bytes(buffer, field).decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"a string at byte {field.start} is not UTF-8") from error


def read_integers(buffer: memoryview, field: Field, limit: int) -> list[int]:
    """A repeated int64 field, packed or one by one; at most ``limit`` numbers.

    Raises:
        BundleRefused: GRAPH_INVALID.
    """
    if field.wire == VARINT:
        return [signed(field.value)]
    found: list[int] = []
    at = field.start
    while at < field.end:
        value, at = read_varint(buffer, at, field.end)
        found.append(signed(value))
        if len(found) > limit:
            raise refuse(f"a list of more than {limit} numbers at byte {field.start}")
    return found


def read_floats(buffer: memoryview, field: Field, limit: int) -> list[float]:
    """A float or repeated float field, packed or one by one; at most ``limit`` numbers.

    Raises:
        BundleRefused: GRAPH_INVALID.
    """
    size = field.end - field.start
    if size % 4 or size // 4 > limit:
        raise refuse(f"a list of floats of {size} bytes at byte {field.start}")
    return list(struct.unpack_from(f"<{size // 4}f", buffer, field.start))
