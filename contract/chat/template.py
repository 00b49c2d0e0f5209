"""A model's chat template, compiled once and rendered within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from contract.chat.environment import Raised, make_environment
from contract.chat.files import DEFAULT, TOOL_USE, ChatFiles
from contract.chat.limits import Allowance, LimitExceeded, run_bounded
from contract.errors import RequestInvalid

FAILED = "template_failed"
"""The type of an error that is the template's own: it cannot be read, or takes more than it may."""

MAX_RENDERED = 4 << 20
"""Characters: four times the largest request. No context is that long."""

MAX_ERROR_TEXT = 300
"""Characters of what a template says when it refuses."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message brings its thoughts; templates read the first, some the second."""

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders messages as ``apply_chat_template`` of transformers does, with the same text.

    ``now`` is what a template that asks for the date is told. A template that cannot be compiled is kept with its
    fault, which every rendering raises: prompts without a template are served all the same.
    """

    def __init__(self, files: ChatFiles, *, now: Callable[[], datetime] = datetime.now) -> None:
        self._environment = make_environment(now)
        self._special = files.special
        self._compiled: dict[str, jinja2.Template | RequestInvalid] = {
            name: self._compile(text) for name, text in files.templates.items() if name in (DEFAULT, TOOL_USE)
        }

    @property
    def exists(self) -> bool:
        """Whether there is one: base models have none."""
        return DEFAULT in self._compiled

    @property
    def fault(self) -> RequestInvalid | None:
        """Why it can never render anything."""
        return next((found for found in self._compiled.values() if isinstance(found, RequestInvalid)), None)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        allowance: Allowance | None = None,
    ) -> str:
        """The text of ``messages``, which are of plain JSON types, ready for an answer if ``add_generation_prompt``.

        ``tools`` are function definitions, ``variables`` whatever else this template reads (``enable_thinking``). What
        it may take comes out of ``allowance``.

        Raises:
            RequestInvalid: the template refuses the messages (400), or fails (500, ``template_failed``).
        """
        template = self._compiled.get(TOOL_USE if tools is not None and TOOL_USE in self._compiled else DEFAULT)
        if template is None:
            raise RequestInvalid("this model has no chat template: give a prompt", field="messages")
        if isinstance(template, RequestInvalid):
            raise template
        given = {
            **self._special,
            **(variables or {}),
            "messages": [_normal(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return run_bounded(lambda: _join(template.generate(given)), allowance or Allowance())
        except LimitExceeded as exceeded:
            raise _failed(f"takes {exceeded.what}") from exceeded
        except (OverflowError, SecurityError) as error:
            raise _failed(f"does what no template may: {_describe(error)}") from error
        except Raised as refusal:
            raise RequestInvalid(
                f"the chat template refuses these messages: {_describe(refusal)}", field="messages"
            ) from refusal
        except Exception as error:  # a template may do whatever Python's operators raise at
            raise RequestInvalid(
                f"the chat template cannot render these messages: {type(error).__name__}: {_describe(error)}",
                field="messages",
            ) from error

    def _compile(self, text: str) -> jinja2.Template | RequestInvalid:
        try:
            return run_bounded(lambda: self._environment.from_string(text), Allowance())
        except LimitExceeded as exceeded:
            return _failed(f"takes {exceeded.what} to read")
        except jinja2.TemplateSyntaxError as error:
            return _failed(f"is no Jinja template: line {error.lineno}: {_describe(error)}")
        except Exception as error:  # what Python's own compiler says to what Jinja made of it
            return _failed(f"cannot be read: {type(error).__name__}: {_describe(error)}")


def _failed(what: str) -> RequestInvalid:
    return RequestInvalid(f"the bundle's chat template {what}", field="messages", code=500, kind=FAILED)


def _describe(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return " ".join((first if isinstance(first, str) else str(error))[:MAX_ERROR_TEXT].split())


def _join(pieces: Iterable[str]) -> str:
    found, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED:
            raise LimitExceeded(f"more than {MAX_RENDERED} characters of output")
        found.append(piece)
    return "".join(found)


def _normal(message: Message) -> dict[str, Any]:
    """As transformers hands it to a template: nothing that is null, thoughts under both names."""
    given = {name: value for name, value in message.items() if value is not None}
    thought = next((given[name] for name in REASONING if name in given), None)
    return given if thought is None else {"thinking": thought, **given, REASONING[0]: thought}
