"""Holds answers to a JSON schema or a regular expression, by llguidance.

White space between JSON tokens is fixed, since small models wander off in it. What a client may make the parser do is
bounded: it is code that looks at a stranger's pattern between two tokens of everybody else.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.answer_limits import limits_of
from agent.engine.format_refusals import explain
from agent.engine.json_bounds import JsonScanner, Tokens
from agent.engine.schemas import MAX_PATTERNS_TOGETHER, check_schema, closed, without_idle
from contract.errors import EngineFailed, RequestInvalid

FIELD = "response_format"

COMPILED = 32
"""Grammars kept compiled: compiling takes 2 to 200 ms, copying a compiled one microseconds."""

MAX_GRAMMAR_BYTES = 256 << 10
FIRST_FUEL, STEP_FUEL = 200_000, 50_000
"""llguidance's units of lexer work: about 0.3 s at the beginning and 0.1 s at a step, on one core."""

MAX_SYMBOLS = 20_000
"""Of a compiled grammar: 2,000 properties take 0.4 s, four times as many 9 s."""

ENDED = frozenset({"NoExtension", "NoExtensionBias", "EndOfSentence", "NotStopped"})
"""Stop reasons that are no fault."""


class Bounds:
    """Keeps one answer in JSON within its limits; ``tokens`` is asked for only once something is full."""

    def __init__(self, scanner: JsonScanner, tokens: Callable[[], Tokens], bytes_of: Callable[[int], bytes]) -> None:
        self._scanner = scanner
        self._tokens = tokens
        self._bytes_of = bytes_of

    def keep(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``allowed`` without what makes longer what is full, if that leaves anything."""
        full = self._scanner.fullness()
        if full is None:
            return allowed
        left = allowed & ~self._tokens().going_on(full)
        return left if left.any() else allowed

    def accept(self, token: int) -> None:
        """The token was chosen."""
        self._scanner.feed(self._bytes_of(token))


class Constraint:
    """What one answer may still say."""

    def __init__(self, matcher: Any, vocab_size: int, field: str = FIELD, bounds: Bounds | None = None) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._field = field
        self._bounds = bounds

    def mask(self) -> NDArray[np.bool_]:
        """``[vocab]``, True where a token may follow; only the end where nothing may.

        Raises:
            RequestInvalid: the grammar turned out to be too much work.
        """
        import llguidance.numpy

        bits = llguidance.numpy.allocate_token_bitmask(1, self._vocab_size)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, bits, 0)
        _check(self._matcher, self._field)
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        return allowed.astype(np.bool_) if self._bounds is None else self._bounds.keep(allowed.astype(np.bool_))

    def accept(self, token: int) -> None:
        """The token was chosen."""
        self._matcher.consume_token(token)
        if self._bounds is not None:
            self._bounds.accept(token)

    @property
    def complete(self) -> bool:
        """Nothing can follow any more: the answer is whole."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles grammars for one tokenizer, and keeps them. The tokenizer is read when the first one comes."""

    def __init__(self, bundle_dir: Path, vocab_size: int, eos: tuple[int, ...]) -> None:
        self._path = bundle_dir / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos = eos
        self._tokenizer: Any = None
        self._tokens: Tokens | None = None
        self._compiled: OrderedDict[tuple[str, str, str], Any] = OrderedDict()

    def constraint(
        self,
        grammar: tuple[str, str],
        *,
        after: str = "",
        field: str = FIELD,
        schemas: Collection[str] = (),
        marks: tuple[bytes, ...] = (),
    ) -> Constraint:
        """A fresh constraint: ``("json_schema", schema)``, ``("regex", pattern)``, ``("grammar", Lark)`` of a
        client's, or ``("calls", Lark)`` of our own.

        ``after``: rules of what comes before it, which name it ``@body``. ``field`` asked for it. ``schemas`` are those
        of a grammar that holds JSON, which begins behind one of ``marks``, or at once: it is kept within their limits.

        Raises:
            RequestInvalid: not a grammar, one that nothing satisfies, or one that is too much work.
            EngineFailed: this bundle's tokenizer cannot be used for grammars.
        """
        key = (*grammar, after)
        matcher = self._compiled.get(key)
        if matcher is None:
            matcher = self._compile(*grammar, after, field)
            self._compiled[key] = matcher
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        bounds = None
        if held := schemas or grammar[1:] * (grammar[0] == "json_schema"):
            scanner = JsonScanner(limits_of(*map(json.loads, held)), marks)
            bounds = Bounds(scanner, self._read_tokens, self._bytes_of)
        return Constraint(matcher.deep_copy(), self._vocab_size, field, bounds)

    def _bytes_of(self, token: int) -> bytes:
        return bytes(self._tokenizer.decode_bytes([token]))

    def _read_tokens(self) -> Tokens:
        if self._tokens is None:
            self._tokens = Tokens(self._vocab_size, self._bytes_of)
        return self._tokens

    def _compile(self, kind: str, text: str, after: str = "", field: str = FIELD) -> Any:
        import llguidance

        if len(text) > MAX_GRAMMAR_BYTES:
            raise RequestInvalid(f"a format is at most {MAX_GRAMMAR_BYTES >> 10} KiB", field=field)
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        if kind == "json_schema":
            check_schema(text, field)
        elif kind == "grammar":
            _check_grammar(text, field)
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=FIRST_FUEL, step_lexer_fuel=STEP_FUEL, max_grammar_size=MAX_SYMBOLS
        )
        try:
            if kind == "regex":
                grammar = llguidance.LLMatcher.grammar_from_regex(text)
            elif kind == "json_schema":
                options = {"whitespace_flexible": False}
                schema = json.dumps(closed(without_idle(json.loads(text))))
                grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=options)
            elif kind in ("calls", "grammar"):
                grammar = llguidance.LLMatcher.grammar_from_lark(text)
            else:
                raise RequestInvalid(f"there is no format {kind!r}", field=field)
            if after:
                grammar = _placed(grammar, after)
            matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise RequestInvalid(explain(str(error)), field=field) from error
        Constraint(matcher.deep_copy(), self._vocab_size, field).mask()
        return matcher

    def _read_tokenizer(self) -> Any:
        import llguidance

        try:
            return llguidance.LLTokenizer(
                self._path.read_text("utf-8"), n_vocab=self._vocab_size, eos_token=list(self._eos)
            )
        except Exception as error:  # llguidance raises whatever its parser meets
            raise EngineFailed(f"{self._path.name} cannot be used for formats: {error}") from error


def _placed(grammar: str, after: str) -> str:
    """``grammar`` as the ``@body`` of the rules ``after``."""
    body, *others = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": after}, {**body, "name": "body"}, *others]})


def _check_grammar(text: str, field: str) -> None:
    """Refuse what would bring in a schema past :func:`check_schema`, or other rules than those of a grammar.

    Raises:
        RequestInvalid: naming the directive.
    """
    found = re.search(r"%\s*(?!ignore\b)[A-Za-z_]+", text)
    if found is not None:
        raise RequestInvalid(f"a grammar has no directive but %ignore, and no text like {found[0]}", field=field)
    if sum(text.count(sign) for sign in "&~") > MAX_PATTERNS_TOGETHER:
        raise RequestInvalid(f"a grammar has at most {MAX_PATTERNS_TOGETHER} & and ~ together", field=field)


def _check(matcher: Any, field: str) -> None:
    """Whether the matcher still works.

    Raises:
        RequestInvalid: in one sentence why it does not.
    """
    if matcher.is_error():
        raise RequestInvalid(explain(str(matcher.get_error())), field=field)
    if matcher.stop_reason() not in ENDED:
        raise RequestInvalid("the format is too complex: make it simpler", field=field)
