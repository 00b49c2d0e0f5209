"""Conversations: the turns are kept here and sent whole each time, since devices keep none. ``Turns`` is pure."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from contract.errors import UsageError
from edge_bundle.completion import ChatMessage, Chunk, Completion, FunctionCall, ToolCall
from edge_bundle.replies import AnswerSoFar

if TYPE_CHECKING:
    from edge_bundle.async_client import AsyncClient
    from edge_bundle.client import Client

Content = str | Sequence[dict[str, Any]]
"""A text, or texts and pictures as docs/MQTT.md has them."""


class Turns:
    """``messages`` of a conversation so far. A turn that is not answered leaves no trace."""

    def __init__(self, system: str | None, options: dict[str, Any]) -> None:
        if "messages" in options or "prompt" in options:
            raise UsageError("a chat makes its messages itself: give the system message as system=…")
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.options = options

    def asking(self, content: Content | None) -> list[dict[str, Any]]:
        """What is sent when the user says ``content``; None: the results of tools are all there is to say."""
        return [*self.messages, *([] if content is None else [{"role": "user", "content": content}])]

    def answered(self, asked: list[dict[str, Any]], message: ChatMessage) -> None:
        """``asked`` was answered."""
        self.messages = [*asked, message.to_dict()]

    def tool_result(self, call_id: str, content: str) -> None:
        """What a function that the model called gave; ``ask(None)`` goes on with it."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})


class AsyncChat(Turns):
    """``chat = client.chat(device="kitchen-1", system="Be brief."); await chat.ask("Hello")``."""

    def __init__(self, client: AsyncClient, *, system: str | None = None, **options: Any) -> None:
        super().__init__(system, options)
        self._client = client

    async def ask(self, content: Content | None, **fields: Any) -> Completion:
        """The whole answer, as :meth:`AsyncClient.complete` gives it (also with ``parse``)."""
        asked = self.asking(content)
        done: Completion = await self._client.complete(**{**self.options, **fields, "messages": asked})
        self.answered(asked, done.choices[0].message)
        return done

    async def stream(self, content: Content | None, **fields: Any) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes, as :meth:`AsyncClient.stream` gives it. One that is left is not remembered."""
        asked = self.asking(content)
        answer = StreamedMessage()
        chunks = self._client.stream(**{**self.options, **fields, "messages": asked})
        async with contextlib.aclosing(chunks) as stream:
            async for chunk in stream:
                answer.add(chunk)
                yield chunk
        self.answered(asked, answer.message)


class Chat(Turns):
    """:class:`AsyncChat` without ``await``."""

    def __init__(self, client: Client, *, system: str | None = None, **options: Any) -> None:
        super().__init__(system, options)
        self._client = client

    def ask(self, content: Content | None, **fields: Any) -> Completion:
        """See :meth:`AsyncChat.ask`."""
        asked = self.asking(content)
        done: Completion = self._client.complete(**{**self.options, **fields, "messages": asked})
        self.answered(asked, done.choices[0].message)
        return done

    def stream(self, content: Content | None, **fields: Any) -> Iterator[Chunk]:
        """See :meth:`AsyncChat.stream`."""
        asked = self.asking(content)
        answer = StreamedMessage()
        with contextlib.closing(self._client.stream(**{**self.options, **fields, "messages": asked})) as chunks:
            for chunk in chunks:
                answer.add(chunk)
                yield chunk
        self.answered(asked, answer.message)


class StreamedMessage:
    """Chunks put together to the message that they are."""

    def __init__(self) -> None:
        self._answer = AnswerSoFar()

    def add(self, chunk: Chunk) -> None:
        """One more."""
        if chunk.choices[0].index:
            return  # of several answers the first one is remembered
        if chunk.restart:
            self._answer = AnswerSoFar()
        delta = chunk.choices[0].delta
        self._answer.add(delta.content, delta.reasoning_content or "", delta.tool_calls or ())

    @property
    def message(self) -> ChatMessage:
        answer = self._answer
        calls = [ToolCall(call_id, FunctionCall(name, arguments)) for call_id, name, arguments in answer.calls]
        return ChatMessage(answer.text, reasoning_content=answer.reasoning or None, tool_calls=calls or None)
