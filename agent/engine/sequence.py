"""One request on its way through an engine: prompt tokens in, text events out. Knows nothing of any runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import asdict

from agent.engine.grammar import FIELD, Constraint, Grammars
from agent.engine.interface import FinishEvent, FinishReason, Generation, RejectEvent, StepEvent, TokenEvent, Tools
from agent.engine.processors import Processors
from agent.engine.sampling import UPDATABLE, Row, Sampler, best, log_softmax
from agent.engine.schemas import check_schema
from agent.engine.stops import StopScanner
from agent.engine.tokenizing import Tokenizing
from agent.engine.tools.answer_reader import Parts
from agent.engine.tools.call_grammar import argument_schemas, literals
from contract.errors import EngineFailed, RequestInvalid


class LogitRules(Struct, frozen=True):
    """What logits go through before a token is sampled: logits processors, then what the answer is held to."""

    constraint: Constraint | None = None
    processors: Processors | None = None


NO_RULES = LogitRules()


class TokenSequence:
    """State of one answer to an admitted request, of several the one with the number ``choice``.

    ``prompt`` are its tokens (below zero: pictures, which count for length alone), ``limit`` how many it may generate
    (the context's end included), ``tokens`` what it has generated, ``finished`` whether its FinishEvent was made.
    """

    def __init__(
        self,
        generation: Generation,
        prompt: list[int],
        limit: int,
        tokenizing: Tokenizing,
        rules: LogitRules = NO_RULES,
        *,
        choice: int = 0,
    ) -> None:
        self.generation = generation
        self.choice = choice
        self.prompt = prompt
        self.tokens: list[int] = []
        self.cached_tokens = 0
        self.finished = False
        self._room = min(limit, generation.max_tokens_limit or limit)
        self.limit = min(self._room, generation.max_tokens or self._room)
        self._tokenizing = tokenizing
        self._stream = tokenizing.stream()
        self._scanner = StopScanner(generation.stops)
        self._held_over = ""
        self._reader = tokenizing.dialect.reader(generation, prompt, choice)
        self._constraint = rules.constraint
        self._processors = rules.processors
        self._words = [token for token in prompt if token >= 0]
        self._sampler = Sampler(generation, self._words, tokenizing.eos, choice=choice)

    def keep_within(self, room: int) -> None:
        """Generate at most ``room`` tokens whatever else is asked for: there is memory for no more."""
        self._room = min(self._room, room)
        self.limit = min(self.limit, self._room)

    def choose(self, logits: Row) -> list[StepEvent]:
        """Sample from ``logits`` ``[vocab]``, take the token and say what came of it.

        Raises:
            EngineFailed: the model computes NaN.
        """
        try:
            mask = None if self._constraint is None else self._constraint.mask()
            scored = self._processors.apply([*self._words, *self.tokens], logits) if self._processors else logits
        except RequestInvalid as refused:
            self.finished = True
            return [rejection(self.generation.request, refused)]
        token = self._sampler.choose(scored, mask)
        if np.isnan(logits[token]):
            raise EngineFailed("the model computes NaN")
        entry = self._describe(logits, token) if self.generation.logprobs else None
        self._sampler.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        return self.take(token, entry)

    def take(self, token: int, entry: dict[str, Any] | None = None) -> list[StepEvent]:
        """A token was chosen: its text as an event, or the end."""
        if token in self._tokenizing.eos:
            return [self.end("stop")]
        self.tokens.append(token)
        parts = self._read(token, str(self._stream.decode(token)))
        text = self._held_over + parts.text
        self._held_over = ""
        if len(self.tokens) > self.generation.min_tokens:
            text = self._scanner.feed(text)
        if self._scanner.stopped:
            parts, self._reader = Parts(thought=parts.thought), None
        events: list[StepEvent] = [
            TokenEvent(
                self.generation.request,
                text,
                len(self.tokens),
                None if entry is None else [entry],
                parts.thought,
                parts.calls,
                self.choice,
            )
        ]
        if self._scanner.stopped or (self._constraint is not None and self._constraint.complete):
            events.append(self.end("stop"))
        elif len(self.tokens) >= self.limit:
            events.append(self.end("length"))
        return events

    def end(self, reason: FinishReason) -> FinishEvent:
        """The end, with what was held back. An answer that ends by itself and has calls ends for them."""
        self.finished = True
        parts = Parts() if self._reader is None else self._reader.finish()
        if reason == "stop" and self._reader is not None and self._reader.calls:
            reason = "tool_calls"
        return FinishEvent(
            self.generation.request,
            reason,
            self._held_over + self._scanner.feed(parts.text) + self._scanner.flush(),
            len(self.prompt),
            len(self.tokens),
            self.cached_tokens,
            parts.thought,
            parts.calls,
            self.choice,
        )

    def _read(self, token: int, decoded: str) -> Parts:
        if self._reader is None:
            return Parts(decoded)
        return self._reader.feed(self._tokenizing.dialect.text_of(token, decoded))

    def change(self, changes: dict[str, Any]) -> bool:
        """Use other parameters from the next token on; ``max_tokens`` keeps within the room there is.

        False, and nothing is changed, when a value is of the wrong type. Unknown names are passed over.
        """
        changed = with_changes(self.generation, changes)
        if changed is None:
            return False
        self.generation = changed
        self.limit = max(len(self.tokens) + 1, min(self._room, self.generation.max_tokens or self._room))
        self._sampler.change(self.generation)
        if "stops" in changes:
            self._held_over += self._scanner.flush()
            self._scanner = StopScanner(self.generation.stops)
        return True

    def _describe(self, logits: Row, token: int) -> dict[str, Any]:
        """Log-probabilities of the model itself, before bias, penalties and temperature."""
        scores = log_softmax(logits)
        entry: dict[str, Any] = self._named(token, float(scores[token]))
        if self.generation.top_logprobs:
            tokens, _ = best(logits, self.generation.top_logprobs)
            entry["top_logprobs"] = [self._named(int(other), float(scores[other])) for other in tokens]
        return entry

    def _named(self, token: int, score: float) -> dict[str, Any]:
        return {
            "token": self._tokenizing.decode([token]),
            "id": token,
            "logprob": score,
            "bytes": self._tokenizing.bytes_of(token),
        }


def with_changes(generation: Generation, changes: dict[str, Any]) -> Generation | None:
    """``generation`` with other parameters; None when a value is of the wrong type. Unknown names are passed over."""
    known = {name: value for name, value in changes.items() if name in UPDATABLE}
    try:
        return msgspec.convert({**asdict(generation), **known}, Generation)
    except msgspec.ValidationError:
        return None


def constrain(
    generation: Generation, prompt: Sequence[int], tokenizing: Tokenizing, grammars: Grammars
) -> Constraint | None:
    """What the answer to ``prompt`` is held to: a format, or calls of functions; None: nothing.

    Raises:
        RequestInvalid: it is not one that can be kept to.
    """
    calls = tokenizing.dialect.grammar(generation, prompt)
    if generation.tools is not None and calls is not None:
        return _hold_to_calls(generation.tools, calls, tokenizing, grammars)
    if generation.grammar is None:
        return None
    kind, text = generation.grammar
    if kind == "json_schema":
        check_schema(text)
        _refuse_control_tokens(text, tokenizing, FIELD)
    after = tokenizing.dialect.thought_before_format(generation, prompt)
    marks = tokenizing.dialect.before_format if after else ()
    return grammars.constraint(generation.grammar, after=after, marks=marks)


def _hold_to_calls(tools: Tools, calls: str, tokenizing: Tokenizing, grammars: Grammars) -> Constraint:
    """Schemas are looked at before they are compiled, and one by one if something is wrong with them together."""
    schemas = argument_schemas(tools)
    for field, schema in schemas.items():
        check_schema(schema, field)
        _refuse_control_tokens(schema, tokenizing, field)
    marks = tokenizing.dialect.before_arguments(tools)
    try:
        return grammars.constraint(("calls", calls), field="tools", schemas=schemas.values(), marks=marks)
    except RequestInvalid:
        for field, schema in schemas.items():
            grammars.constraint(("json_schema", schema), field=field)
        raise


def _refuse_control_tokens(schema: str, tokenizing: Tokenizing, field: str) -> None:
    """llguidance would take the token for the text where only this may follow, and fail in the middle of an answer."""
    control = next(filter(None, map(tokenizing.find_control, literals(json.loads(schema)))), None)
    if control is not None:
        raise RequestInvalid(
            f"{control!r} is a control token of this model, which no answer can hold: leave it out of the schema",
            field=field,
        )


def prepare(
    generation: Generation,
    tokenizing: Tokenizing,
    *,
    context_length: int,
    vocab_size: int,
    pictures: Sequence[Sequence[int]] = (),
) -> tuple[list[int], int]:
    """Prompt tokens of a request and the most tokens it can generate within the context.

    ``pictures``: the tokens of each; some models mark them by numbers below zero. The last token of an answer is never
    fed back, so a prompt that fills the context still gets one.

    Raises:
        RequestInvalid: the request does not fit this model; ``field`` names why.
    """
    field = "prompt" if generation.messages is None else "messages"
    if len(pictures) != len(generation.pictures):
        raise RequestInvalid("the model of this device takes no pictures: send text alone", field="messages")
    prompt = tokenizing.encode_generation(generation, pictures)
    if not prompt:
        raise RequestInvalid("the prompt is empty", field=field)
    if len(prompt) > context_length:
        fix = "send fewer pictures, or less text" if pictures else "shorten the text"
        raise RequestInvalid(
            f"{len(prompt)} tokens do not fit the model's context of {context_length}: {fix}", field=field
        )
    if any(token >= vocab_size or (token < 0 and not pictures) for token in prompt):
        raise RequestInvalid("it contains a token that this model does not know", field=field)
    for token in generation.logit_bias:
        if not 0 <= token < vocab_size:
            raise RequestInvalid(f"token {token} does not exist: there are {vocab_size}", field="logit_bias")
    return prompt, context_length - len(prompt) + 1


def rejection(request: int, refused: RequestInvalid) -> RejectEvent:
    """What the client is told."""
    return RejectEvent(request, refused.code, refused.kind, refused.message, refused.field)
