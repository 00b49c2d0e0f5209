"""The turns of a chat: texts, pictures, and calls of functions, as OpenAI's chat completions have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from contract.mqtt.labels import Label
from contract.mqtt.tools import MAX_CALLS, CallId, ToolCall

MAX_PARTS = 64
MAX_PICTURES = 8
"""In one request. Each becomes hundreds to thousands of tokens, and the request as a whole stays within its bytes."""


class TextPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text among pictures."""

    text: str
    prompt_cache_breakpoint: dict[str, Any] | UnsetType = UNSET


class RefusalPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    """What the model said when it refused: read as its text."""

    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    """``url`` is the picture itself, ``data:image/png;base64,…`` or ``image/jpeg``, or ``sha256:`` and the digest of
    one that was sent in parts: a device fetches nothing. ``detail`` ``low`` asks for
    a look at it as a whole, which the batched engine gives.
    """

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    """A picture among texts, for models with the capability ``vision``."""

    image_url: ImageUrl
    prompt_cache_breakpoint: dict[str, Any] | UnsetType = UNSET


Part = TextPart | ImagePart | RefusalPart

Parts = Annotated[list[Part], Meta(min_length=1, max_length=MAX_PARTS)]


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a chat: a text, or texts and pictures in their order.

    ``developer`` is ``system`` where the chat template knows no such role. An assistant's turn may have no ``content``,
    and what its answers bring besides (``refusal``, ``annotations``), so that an answer can be sent back as it came.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | UnsetType = UNSET
    name: Label | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    annotations: list[dict[str, Any]] | UnsetType = UNSET
    audio: dict[str, Any] | UnsetType = UNSET
    function_call: dict[str, Any] | UnsetType = UNSET
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_CALLS)] | UnsetType = UNSET
    tool_call_id: CallId | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.content is UNSET and self.role != "assistant":
            raise ValueError("Object missing required field `content`")

    @staticmethod
    def missing(found: Mapping[str, Any]) -> list[str]:
        """Names that ``found`` lacks although they may be left out elsewhere: only an assistant may say nothing."""
        return [] if "content" in found or found.get("role") == "assistant" else ["content"]

    @property
    def parts(self) -> list[Part]:
        if isinstance(self.content, list):
            return self.content
        text = self.content if self.content is not UNSET else self.refusal
        return [] if text is UNSET else [TextPart(text)]
