"""From messages or a prompt to token ids, and from token ids back to text, through the runtime's own tokenizer.

User text must not become control tokens: the tokenizer turns ``<|im_end|>`` into the end-of-turn token wherever it
stands. So every control token's text inside a message is broken by a private mark before the chat template is
rendered, and the rendered text is cut at the marks and encoded piece by piece. The model reads exactly the user's
characters, as ordinary tokens; only the template makes control tokens. What the model itself said earlier is left
whole where the template looks into it, as for the end of a thought. ``prompt`` is taken as it is: whoever gives one
writes the control tokens himself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from agent.engine.interface import ChatTurn, Generation
from agent.engine.tools.dialect import Dialect
from agent.engine.tools.rendering import Conversation, converse
from agent.engine.vocabulary import Vocabulary
from contract.bundle.canary import PICTURE, join_canary
from contract.bundle.tokens import begin, compose, composes, read_beginning
from contract.chat.files import TOOL_USE, read_chat_files
from contract.chat.limits import Allowance
from contract.chat.template import FAILED, ChatTemplate
from contract.errors import EngineFailed, RequestInvalid

MARKS = "\ue0f0\ue0f1\ue0f2\ue0f3"
"""Private-use characters; the mark is the first that occurs in no message, and is dropped from them if all occur."""

ASSISTANT_ROLE = "assistant"
"""The role of what the model itself said."""

SYSTEM_ROLE, DEVELOPER_ROLE = "system", "developer"
"""Two names of one role; templates that do not know the second get the first."""

EFFORT, THINKING = "reasoning_effort", "enable_thinking"
"""Variables by which templates are told how much to think, and whether at all."""

NO_EFFORT = "none"

PROBE = "Is this written?"
"""A system message by which is found out whether a template has them."""

NONE: frozenset[str] = frozenset()

PICTURE_MARKS = "\ue0f4\ue0f5\ue0f6\ue0f7"
"""Likewise, for where a picture stands."""

MAX_TOKENIZER_BYTES = 64 << 20
"""tokenizer.json of the largest vocabularies (262k) takes 35 MB."""


class Tokenizing:
    """One model's tokenizer and chat template.

    ``tokenizer`` is an ``onnxruntime_genai.Tokenizer``; ``eos`` are the ids that end an answer.
    """

    def __init__(self, tokenizer: Any, bundle_dir: Path, eos: tuple[int, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self.eos = eos or tuple(int(token) for token in tokenizer.eos_token_ids)
        self._beginning = read_beginning(tokenizer)
        document = _read_tokenizer_file(bundle_dir / "tokenizer.json")
        self._composes = composes(document)
        files = read_chat_files(bundle_dir)
        self._text = "\n".join({files.default: None, files.templates.get(TOOL_USE, files.default): None})
        added = _added_tokens(document)
        controls = _control_texts(added, self._text)
        self.dialect = Dialect(self._text, _numbers(added), lambda token: self.decode([token]))
        self._template = ChatTemplate(files)
        # What a template does not write, it cannot look for.
        self._looked_for = [text for text in controls if text in self._text]
        self.chat = self._template.exists
        self._control = re.compile("|".join(re.escape(text) for text in controls)) if controls else None
        self._tokenizer_file = bundle_dir / "tokenizer.json"
        self._vocabulary: Vocabulary | None = None

    def encode_generation(self, generation: Generation, pictures: Sequence[Sequence[int]] = ()) -> list[int]:
        """Prompt tokens of a request; ``pictures``: the tokens of each.

        Raises:
            RequestInvalid: the text cannot be given to the tokenizer, or the template refuses the messages.
        """
        if generation.messages is None:
            return begin(self.encode(generation.prompt or "", "prompt"), self._beginning)
        if not self.chat:
            raise RequestInvalid("this model has no chat template: give a prompt", field="messages")
        mark = _free_mark(generation.messages, MARKS)
        picture = _free_mark(generation.messages, PICTURE_MARKS)
        conversation = self._converse(generation, mark, picture)
        rendered = self._render(conversation, mark, self._variables(generation))
        if "\0" in rendered:
            raise RequestInvalid("a NUL character cannot be given to a model", field="messages")
        if rendered.count(picture) != len(pictures):
            raise RequestInvalid("the chat template of this model loses pictures", field="messages")
        left = iter(pictures)
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"[{mark}]|({picture})", rendered)):
            if piece == picture:
                ids.extend(next(left))
            elif piece:
                ids.extend(self.encode(piece, "messages") if number == 0 else self.encode_more(piece, "messages"))
        return ids

    def _converse(self, generation: Generation, mark: str, picture: str) -> Conversation:
        """What the template is to render, with ``picture`` where each picture stands. Contents are as they came; in
        everything else control tokens are broken already.
        """

        def shield(text: str) -> str:
            return self._break(_clean(text, mark, picture), mark, NONE)

        tools = generation.tools
        if tools is not None:
            tools = structs.replace(tools, definitions=map_strings(tools.definitions, shield))
        turns = [self._turn(turn, mark, picture, shield) for turn in generation.messages or []]
        return converse(turns, tools, self.dialect.form, has_system=lambda: self._takes_system)

    def _turn(self, turn: ChatTurn, mark: str, picture: str, shield: Callable[[str], str]) -> ChatTurn:
        role = str(turn["role"])
        found = {name: map_strings(value, shield) for name, value in turn.items() if name not in ("role", "content")}
        found["role"] = SYSTEM_ROLE if role == DEVELOPER_ROLE and DEVELOPER_ROLE not in self._text else role
        found["content"] = picture.join(_clean(text, mark, picture) for text in _texts(turn))
        return found

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes what a system message says."""
        try:
            probe = [{"role": SYSTEM_ROLE, "content": PROBE}, {"role": "user", "content": "?"}]
            return PROBE in self._template.render(probe)
        except RequestInvalid:
            return False

    def _variables(self, generation: Generation) -> dict[str, Any]:
        """What the template is told besides the messages.

        Raises:
            RequestInvalid: it cannot be told how much to think.
        """
        effort = generation.reasoning_effort
        found: dict[str, Any] = {}
        if effort is None:
            return found
        if EFFORT in self._text:
            found[EFFORT] = effort
        if THINKING in self._text:
            found[THINKING] = effort != NO_EFFORT
        if not found and effort != NO_EFFORT:
            raise RequestInvalid(
                "the chat template of this model knows no reasoning effort: leave it out", field="reasoning_effort"
            )
        return found

    def encode(self, text: str, field: str) -> list[int]:
        """Token ids of a text as it is, without what stands before a text; control tokens written out in it are such.

        Raises:
            RequestInvalid: a NUL, where the tokenizer would silently stop reading.
        """
        if "\0" in text:
            raise RequestInvalid("a NUL character cannot be given to a model", field=field)
        return [int(token) for token in self._tokenizer.encode(compose(text) if self._composes else text)]

    def encode_more(self, text: str, field: str) -> list[int]:
        """Token ids of a text that goes on in a sequence: without the tokens that only a beginning has."""
        return self.without_beginning(self.encode(text, field))

    def without_beginning(self, ids: list[int]) -> list[int]:
        """``ids`` without the tokens that only the beginning of a sequence has."""
        length = len(self._beginning)
        return ids[length:] if length and ids[:length] == self._beginning else ids

    def encode_canary(self, prompt: str, text: str, picture: Sequence[int] = ()) -> tuple[list[int], int]:
        """All tokens of a canary and the index of the first to score; ``picture``: the tokens of the one in its prompt.

        Raises:
            EngineFailed: it cannot be given to the tokenizer.
        """
        try:
            before, *after = prompt.split(PICTURE) if picture else [prompt]
            ids = self.encode(before, "prompt")
            ids = ids if self.chat else begin(ids, self._beginning)
            for part in after:
                ids += [*picture, *self.encode_more(part, "prompt")]
            return join_canary(ids, self.encode(text, "text"), self._beginning)
        except RequestInvalid as refused:
            raise EngineFailed(f"a canary is not text: {refused.message}") from refused

    def decode(self, tokens: list[int]) -> str:
        """Text of some tokens on their own; incomplete characters show as U+FFFD."""
        import numpy as np

        return str(self._tokenizer.decode(np.array(tokens, dtype=np.int32)))

    def bytes_of(self, token: int) -> list[int] | None:
        """The bytes of a token, which is part of a character where it is no text; None if they are not known."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokenizer_file)
        found = self._vocabulary.bytes_of(token)
        if found is not None:
            return list(found)
        text = self.decode([token])
        return None if "\ufffd" in text else list(text.encode("utf-8", "replace"))

    def stream(self) -> Any:
        """A new ``TokenizerStream``: its ``decode(id)`` gives text once its characters are complete."""
        return self._tokenizer.create_stream()

    def _render(self, conversation: Conversation, mark: str, variables: Mapping[str, Any]) -> str:
        """What the template makes of it, with a mark in every control token's text that was in a content.

        A template looks for some of them in what was said, and takes a thought out of it. There it must find them:
        those that change what it writes are left whole, in the model's own turns alone.

        Raises:
            RequestInvalid: the template refuses them, or fails.
        """
        allowance, turns = Allowance(), conversation.turns

        def broken(turn: ChatTurn, whole: frozenset[str]) -> ChatTurn:
            kept = whole if turn["role"] == ASSISTANT_ROLE else NONE
            content = self._break(turn["content"], mark, kept) + turn.get("suffix", "")
            return {**{name: value for name, value in turn.items() if name != "suffix"}, "content": content}

        def render(whole: frozenset[str]) -> str:
            return self._template.render(
                [broken(turn, whole) for turn in turns],
                tools=conversation.tools,
                variables=variables,
                allowance=allowance,
            )

        assistant_text = "\n".join(turn["content"] for turn in turns if turn["role"] == ASSISTANT_ROLE)
        whole = frozenset(text for text in self._looked_for if text in assistant_text)
        best = render(whole)
        wanted = best.replace(mark, "")
        for text in sorted(whole):
            try:
                tried = render(whole - {text})
            except RequestInvalid as refused:
                if refused.kind == FAILED:
                    raise
                continue
            if tried.replace(mark, "") == wanted:
                whole, best = whole - {text}, tried
        return best

    def find_control(self, text: str) -> str | None:
        """The first control token that is written out in ``text``."""
        found = self._control.search(text) if self._control is not None else None
        return None if found is None else found[0]

    def _break(self, text: str, mark: str, whole: frozenset[str]) -> str:
        if self._control is None:
            return text
        return self._control.sub(
            lambda found: found[0] if found[0] in whole else found[0][0] + mark + found[0][1:], text
        )


def _clean(text: str, mark: str, picture: str) -> str:
    return text.replace(mark, "").replace(picture, "")


def _texts(turn: ChatTurn) -> list[str]:
    """What stands before, between and behind the pictures of a turn."""
    content = turn["content"]
    if isinstance(content, str):
        return [content]
    texts = [""]
    for part in content:
        if part is None:
            texts.append("")
        else:
            texts[-1] += part
    return texts


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """``value``, which is JSON, with every text and every name in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): map_strings(inner, change) for name, inner in value.items()}
    return [map_strings(inner, change) for inner in value] if isinstance(value, list) else value


def _free_mark(messages: list[ChatTurn], marks: str) -> str:
    used = {char for turn in messages for text in _texts(turn) for char in text if char in marks}
    return next((mark for mark in marks if mark not in used), marks[0])


class _TokenizerFile(Struct):
    """What is read of a ``tokenizer.json``; the vocabulary, nearly all of it, is passed over."""

    added_tokens: Any = None
    normalizer: Any = None


def _read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Its added tokens and its normalizer; nothing where it cannot be read."""
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            return {}
        data = path.read_bytes()
        try:
            return structs.asdict(msgspec.json.decode(data, type=_TokenizerFile))
        except msgspec.MsgspecError:  # it is stricter than whoever wrote the file
            found = json.loads(data)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _added_tokens(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that have a text."""
    added = document.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    return [token for token in tokens if isinstance(token, dict) and isinstance(token.get("content"), str)]


def _numbers(added: list[dict[str, Any]]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in added if isinstance(token.get("id"), int)}


def _control_texts(added: list[dict[str, Any]], template: str) -> list[str]:
    """Texts of added tokens that steer the model: the special ones, and others that the template itself writes.

    Longest first, so that the pattern prefers them. One character long ones cannot be broken and are left alone.
    """
    texts = {
        token["content"]
        for token in added
        if len(token["content"].strip()) > 1 and (token.get("special") or token["content"] in template)
    }
    return sorted(texts, key=lambda text: (-len(text), text))
