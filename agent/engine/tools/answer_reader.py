"""Takes an answer apart while it is written: thought, text, and calls of functions. Pure.

However a text is cut into pieces, the parts that come out join to the same thought, text and calls. What cannot be told
yet (a mark may have begun, or white space before one) is held back; all else is passed on at once. White space between
the marks of a call does not count, since decoders do not agree on it. What only looks like a call is text.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection

from msgspec import Struct

from agent.engine.interface import CallDelta
from agent.engine.tools.forms import CallForm, ThoughtForm

MAX_NAME = 64
"""Characters of a function's name."""


class Parts(Struct):
    """What a piece of an answer came to."""

    text: str = ""
    thought: str = ""
    calls: list[CallDelta] = []


class AnswerReader:
    """Reads one answer. ``form`` None: no calls are looked for. ``opened``: the prompt has begun the thought.

    ``names`` are the functions that there are, ``required`` says that one must be called, ``new_id`` gives a call of an
    index its id.
    """

    def __init__(
        self,
        thoughts: ThoughtForm | None,
        form: CallForm | None,
        *,
        opened: bool = False,
        names: Collection[str] = (),
        required: bool = False,
        new_id: Callable[[int], str] = "call_{}".format,
    ) -> None:
        self._thoughts = None if thoughts is None else _ThoughtReader(thoughts, opened=opened)
        self._calls = None if form is None else _CallReader(form, names, new_id, required=required)

    @property
    def calls(self) -> int:
        """Calls whose arguments are whole."""
        return 0 if self._calls is None else self._calls.whole

    def feed(self, piece: str) -> Parts:
        """What is certain once ``piece`` has come."""
        return self._read(piece, last=False)

    def finish(self) -> Parts:
        """What was held back: nothing comes any more. A call that was cut off before its arguments is dropped."""
        return self._read("", last=True)

    def _read(self, piece: str, *, last: bool) -> Parts:
        parts = Parts()
        if self._thoughts is not None:
            piece = self._thoughts.feed(piece, parts, last=last)
        if self._calls is None:
            parts.text = piece
        else:
            self._calls.feed(piece, parts, last=last)
        return parts


class _ThoughtReader:
    """``feed`` puts the thought into the parts and gives back the rest. White space around a thought is dropped."""

    def __init__(self, form: ThoughtForm, *, opened: bool) -> None:
        self._form = form
        self._read = self._inside if opened else self._before
        self._over = False
        self._begun = False
        self._held = ""

    def feed(self, piece: str, parts: Parts, *, last: bool) -> str:
        if self._over:
            return piece
        self._held += piece
        while not self._over and self._read(parts, last):
            pass
        if not self._over:
            return ""
        rest, self._held = self._held, ""
        return rest

    def _before(self, parts: Parts, last: bool) -> bool:
        start = self._held.lstrip()
        if start.startswith(self._form.begin):
            self._held, self._read = start[len(self._form.begin) :], self._inside
            return True
        self._over = last or not self._form.begin.startswith(start)
        return False

    def _inside(self, parts: Parts, last: bool) -> bool:
        thought, mark, rest = self._held.partition(self._form.end)
        certain = len(thought.rstrip()) if mark or last else _certain(thought, self._form.end)
        ready = thought[:certain] if self._begun else thought[:certain].lstrip()
        self._begun = self._begun or bool(ready)
        parts.thought += ready
        if mark:
            self._held, self._read = rest, self._after
            return True
        self._held = "" if last else thought[certain:]
        return False

    def _after(self, parts: Parts, last: bool) -> bool:
        self._held = self._held.lstrip()
        self._over = bool(self._held)
        return False


class _State(enum.Enum):
    TEXT = "no call has begun"
    LEAD = "before a name"
    NAME = "in a name"
    ARGUMENTS = "in arguments"
    NEXT = "behind a call"
    REST = "no call can come: all is text"
    OVER = "no call can come: nothing is ready any more"


class _CallReader:
    def __init__(self, form: CallForm, names: Collection[str], new_id: Callable[[int], str], *, required: bool) -> None:
        self._form = form
        self._required = required
        self._names = frozenset(names)
        self._new_id = new_id
        self._state = _State.TEXT
        self._held = ""
        self._taken = ""
        """Of what may be a call, so that it can still become text."""
        self._json = _ObjectScanner()
        self.whole = 0

    def feed(self, piece: str, parts: Parts, *, last: bool) -> None:
        self._held += piece
        if last and self._required and self._state is _State.TEXT:
            self._state = _State.OVER  # the beginning of a call, and nothing of it
        while self._advance(parts, last=last):
            pass

    def _advance(self, parts: Parts, *, last: bool) -> bool:
        """One step; whether another may follow."""
        match self._state:
            case _State.TEXT:
                return self._read_text(parts, last=last) if self._form.begin else self._read_beginning(last=last)
            case _State.LEAD | _State.NAME:
                return self._read_lead() if self._state is _State.LEAD else self._read_name(parts)
            case _State.ARGUMENTS:
                return self._read_arguments(parts)
            case _State.NEXT:
                return self._read_next()
            case _State.REST:
                parts.text += self._held
        self._held = ""
        return False

    def _read_text(self, parts: Parts, *, last: bool) -> bool:
        before, mark, after = self._held.partition(self._form.begin)
        certain = len(before.rstrip()) if mark else len(before) if last else _certain(before, self._form.begin)
        parts.text += before[:certain]
        if mark:
            self._taken, self._held, self._state = before[certain:] + mark, after, _State.LEAD
            return True
        self._held = before[certain:]
        return False

    def _read_beginning(self, *, last: bool) -> bool:
        """Of an answer that is calls from its first character, or has none."""
        mark, start = self._form.may_begin, self._held.lstrip()
        if mark and start.startswith(mark):
            behind = len(self._held) - len(start) + len(mark)
            self._taken, self._held, self._state = self._held[:behind], self._held[behind:], _State.LEAD
            return True
        length = _match(self._held, self._form.before_name)
        if not last and (length is None or (mark and mark.startswith(start))):
            return False
        self._state = _State.LEAD if length else _State.REST
        return True

    def _read_lead(self) -> bool:
        lead = self._form.before_name if self.whole else self._form.lead + self._form.before_name
        length = _match(self._held, lead)
        if length is None:
            return False
        if length < 0:
            return self._give_up()
        self._taken, self._held, self._state = self._taken + self._held[:length], self._held[length:], _State.NAME
        return True

    def _read_name(self, parts: Parts) -> bool:
        name, mark, _ = self._held.partition(self._form.after_name[0])
        if not mark:
            return self._give_up() if len(name) > MAX_NAME else False
        length = _match(self._held[len(name) :], self._form.after_name)
        if name not in self._names or (length is not None and length < 0):
            return self._give_up()
        arguments = "" if length is None else self._held[len(name) + length :].lstrip()
        if not arguments:
            return False
        if not arguments.startswith("{"):
            return self._give_up()
        parts.calls.append(CallDelta(self.whole, self._new_id(self.whole), name))
        self._taken, self._held, self._state = "", arguments, _State.ARGUMENTS
        self._json = _ObjectScanner()
        return True

    def _read_arguments(self, parts: Parts) -> bool:
        length, ended = self._json.scan(self._held)
        if length:
            parts.calls.append(CallDelta(self.whole, arguments=self._held[:length]))
            self._held = self._held[length:]
        if ended:
            self.whole += 1
            self._state = _State.NEXT
        return ended

    def _read_next(self) -> bool:
        between = self._form.between
        length = -1 if between is None else _match(self._held, self._form.after_arguments + between)
        if length is None:
            return False
        self._held, self._state = (self._held[length:], _State.LEAD) if length >= 0 else ("", _State.OVER)
        return True

    def _give_up(self) -> bool:
        """It is no call, and so it is text; but behind a call nothing is."""
        if self.whole:
            self._held, self._state = "", _State.OVER
        else:
            self._held, self._state = self._taken + self._held, _State.REST
        return True


class _ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def scan(self, text: str) -> tuple[int, bool]:
        """How much of ``text`` is of the object, and whether it ends there."""
        for offset, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return offset + 1, True
        return len(text), False


def _certain(text: str, mark: str) -> int:
    """Up to where ``text``, which does not hold ``mark``, can neither begin it nor be white space before it."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return len(text[: len(text) - length].rstrip())
    return len(text.rstrip())


def _match(text: str, literal: str) -> int | None:
    """Behind which character of ``text`` the whole ``literal`` has come, white space apart; -1 if it does not begin
    so, None while that cannot be told.
    """
    wanted = "".join(literal.split())
    matched = 0
    for offset, char in enumerate(text):
        if matched == len(wanted):
            return offset
        if char == wanted[matched]:
            matched += 1
        elif not char.isspace():
            return -1
    return len(text) if matched == len(wanted) else None
