"""Which devices: ``site=oslo and ram>=4G``, ``not (group=lab or label.rack in (3, 4))``, ``*`` for every one.

A small strict language: a name that is not known is an error with the nearest one that is, never an empty selection.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct

from contract.errors import RequestInvalid
from contract.schema_faults import nearest

MAX_LENGTH = 4096
"""Characters of a selector: a page of names."""

MAX_DEPTH = 32
"""Brackets and ``not`` in each other."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<op>>=|<=|!=|=|~|<|>)|(?P<mark>[(),])|"(?P<quoted>[^"]*)"|(?P<word>[^\s()=!<>~,"]+))""", re.VERBOSE
)
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:([KMGT])i?B?|B)?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_KEYWORDS = ("and", "or", "not", "in")


class Traits(Struct, frozen=True):
    """What can be asked of a device; empty or None where it is not known. ``ram`` in bytes."""

    device: str
    site: str = ""
    hardware: str = ""
    arch: str = ""
    agent: str = ""
    bundle: str = ""
    cores: int | None = None
    ram: int | None = None
    online: bool = False
    pinned: bool = False
    groups: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}


_TEXTS: Mapping[str, Callable[[Traits], tuple[str, ...]]] = {
    "device": lambda traits: (traits.device,),
    "site": lambda traits: (traits.site,),
    "hardware": lambda traits: (traits.hardware,),
    "arch": lambda traits: (traits.arch,),
    "agent": lambda traits: (traits.agent,),
    "bundle": lambda traits: (traits.bundle, traits.bundle.partition("@")[0]),
    "group": lambda traits: traits.groups,
    "online": lambda traits: ("true" if traits.online else "false",),
    "pinned": lambda traits: ("true" if traits.pinned else "false",),
}
_NUMBERS: Mapping[str, Callable[[Traits], int | None]] = {
    "cores": lambda traits: traits.cores,
    "ram": lambda traits: traits.ram,
}
FIELDS = (*_TEXTS, *_NUMBERS, "label.NAME")
_FLAGS = ("online", "pinned")

Predicate = Callable[[Traits], bool]


class Selector:
    """A selection that was read; :meth:`matches` says whether a device is in it."""

    def __init__(self, text: str, predicate: Predicate) -> None:
        self.text = text
        self._predicate = predicate

    def matches(self, traits: Traits) -> bool:
        return self._predicate(traits)

    def select(self, devices: Iterable[Traits]) -> list[Traits]:
        """Those that match, in their order."""
        return [each for each in devices if self._predicate(each)]


def parse_selector(text: str) -> Selector:
    """Read a selection.

    Raises:
        RequestInvalid: ``field`` is ``where``; the message says what is wrong, where, and what was probably meant.
    """
    if len(text) > MAX_LENGTH:
        raise _wrong(f"it has {len(text)} characters, {MAX_LENGTH} at most")
    reader = _Reader(_tokens(text))
    predicate = reader.alternatives(0)
    if (left := reader.peek()) is not None:
        raise _wrong(
            f"{left.text!r} at position {left.at + 1} does not continue the selection: join with `and` or `or`"
        )
    return Selector(text, predicate)


def _wrong(message: str) -> RequestInvalid:
    return RequestInvalid(f"the selection cannot be read: {message}", field="where")


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = 'the quotation mark `"` is not closed' if text[at] == '"' else f"{text[at]!r} is not expected"
            raise _wrong(f"{what} at position {at + 1}")
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    if not found:
        raise _wrong("it is empty; write `*` for every device")
    return found


class _Reader:
    """Recursive descent: ``or`` binds less than ``and``, ``not`` most."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self, wanted: str) -> _Token:
        token = self.peek()
        if token is None:
            raise _wrong(f"it ends where {wanted} is expected")
        self._at += 1
        return token

    def _keyword(self, word: str) -> bool:
        token = self.peek()
        if token is None or token.kind != "word" or token.text.lower() != word:
            return False
        self._at += 1
        return True

    def alternatives(self, depth: int) -> Predicate:
        found = [self._conjunction(depth)]
        while self._keyword("or"):
            found.append(self._conjunction(depth))
        return found[0] if len(found) == 1 else lambda traits: any(each(traits) for each in found)

    def _conjunction(self, depth: int) -> Predicate:
        found = [self._factor(depth)]
        while self._keyword("and"):
            found.append(self._factor(depth))
        return found[0] if len(found) == 1 else lambda traits: all(each(traits) for each in found)

    def _factor(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise _wrong(f"it is nested deeper than {MAX_DEPTH} levels")
        if self._keyword("not"):
            inner = self._factor(depth + 1)
            return lambda traits: not inner(traits)
        token = self._next("a condition")
        if token.kind == "mark" and token.text == "(":
            inner = self.alternatives(depth + 1)
            self._close()
            return inner
        if token.kind == "word" and token.text == "*":
            return lambda traits: True
        if token.kind != "word" or token.text.lower() in _KEYWORDS:
            raise _wrong(f"{token.text!r} at position {token.at + 1} is not a field; fields are {', '.join(FIELDS)}")
        return self._comparison(token)

    def _close(self) -> None:
        token = self._next("`)`")
        if token.text != ")":
            raise _wrong(f"{token.text!r} at position {token.at + 1} stands where `)` is expected")

    def _comparison(self, name: _Token) -> Predicate:
        field = _field(name)
        if self._keyword("in"):
            values = self._list()
            each = [_compare(field, "=", value) for value in values]
            return lambda traits: any(one(traits) for one in each)
        op = self._next(f"a comparison of {name.text} (=, !=, ~, <, <=, >, >=, in)")
        if op.kind != "op":
            raise _wrong(f"{op.text!r} at position {op.at + 1} is no comparison; these are: =, !=, ~, <, <=, >, >=, in")
        return _compare(field, op.text, self._value())

    def _value(self) -> _Token:
        token = self._next("a value")
        if token.kind not in ("word", "quoted"):
            raise _wrong(f"{token.text!r} at position {token.at + 1} stands where a value is expected")
        return token

    def _list(self) -> list[_Token]:
        opening = self._next("`(`")
        if opening.text != "(":
            raise _wrong(f"{opening.text!r} at position {opening.at + 1} stands where `(` is expected: in (a, b)")
        values = [self._value()]
        while (token := self._next("`,` or `)`")).text == ",":
            values.append(self._value())
        if token.text != ")":
            raise _wrong(f"{token.text!r} at position {token.at + 1} stands where `,` or `)` is expected")
        return values


def _field(name: _Token) -> str:
    if name.text in _TEXTS or name.text in _NUMBERS or re.fullmatch(r"label\.[A-Za-z0-9_.-]{1,64}", name.text):
        return name.text
    near = nearest(name.text, [*_TEXTS, *_NUMBERS])
    hint = "" if near is None else f"; did you mean `{near}`?"
    message = f"{name.text[:64]!r} is not a field; fields are {', '.join(FIELDS)}{hint}"
    raise _wrong(message)


def _texts(field: str, traits: Traits) -> tuple[str, ...]:
    if field in _TEXTS:
        return _TEXTS[field](traits)
    return (traits.labels.get(field.removeprefix("label."), ""),)


def _compare(field: str, op: str, value: _Token) -> Predicate:
    if field in _NUMBERS:
        return _compare_number(field, op, value)
    if op not in ("=", "!=", "~"):
        raise _wrong(f"{field} is a text and has no order; compare it with =, != or ~ (a pattern such as kitchen-*)")
    text = value.text
    if field in _FLAGS:
        text = text.lower()
        if text not in ("true", "false"):
            raise _wrong(f"{field} is true or false, not {value.text[:64]!r}")
    if op == "~":
        pattern = re.compile(fnmatch.translate(text))
        return lambda traits: any(pattern.fullmatch(each) for each in _texts(field, traits))
    if op == "=":
        return lambda traits: text in _texts(field, traits)
    return lambda traits: text not in _texts(field, traits)


_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _compare_number(field: str, op: str, value: _Token) -> Predicate:
    """Devices that do not say the number are in no comparison with it."""
    if op not in _ORDER:
        raise _wrong(f"{field} is a number; {op} compares texts")
    match = _SIZE.fullmatch(value.text)
    if match is None:
        raise _wrong(
            f"{field} is compared with a number such as {'4G' if field == 'ram' else '4'}, not {value.text[:64]!r}"
        )
    number = float(match[1]) * _FACTOR[(match[2] or "").lower()]
    read, order = _NUMBERS[field], _ORDER[op]

    def holds(traits: Traits) -> bool:
        found = read(traits)
        return found is not None and order(found, number)

    return holds
