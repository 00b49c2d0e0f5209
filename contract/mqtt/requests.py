"""What clients ask of a device: text, and changes to what they asked for; :mod:`contract.mqtt.reading` reads it.

Sizes and ranges are bounds on outside input. Field names are those of OpenAI's chat completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from contract.mqtt.conversation import Message
from contract.mqtt.labels import AdapterName, Identifier, Label
from contract.mqtt.tools import MAX_TOOLS, Tool, ToolChoice

MAX_REQUEST_BYTES = 1 << 20
"""A request: a prompt of 128k tokens is about 512 KB of text."""

MAX_STORED_BYTES = 10 << 20
"""A request with the pictures in it that came apart from it, in base64."""

DEFAULT_PRIORITY = 4
"""In the middle of 0 to 9, and the highest that a device grants unless its operator allows more."""

MAX_TOKENS = 1 << 20
MAX_STOPS = 16
MAX_MESSAGES = 1024
MAX_CHOICES = 16
"""Answers from one prompt."""

MAX_CHOICE_TEXTS = 128
"""Of which an answer can be held to one."""

MAX_METADATA = 16


class JsonSchemaFormat(Struct, frozen=True, forbid_unknown_fields=True):
    """``strict`` changes nothing: an answer always keeps to its schema. Nor do ``name`` and ``description``."""

    name: str = "schema"
    description: str = ""
    schema: dict[str, Any] = {}
    strict: bool = True


ChoiceTexts = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(min_length=1, max_length=MAX_CHOICE_TEXTS)
]


class ResponseFormat(Struct, frozen=True, forbid_unknown_fields=True):
    """``text``, ``json_object``, ``json_schema`` with a schema, ``regex`` with a pattern, ``grammar`` with a grammar in
    Lark's notation, or ``choice`` with the texts of which the answer is one.
    """

    type: Literal["text", "json_object", "json_schema", "regex", "grammar", "choice"]
    json_schema: JsonSchemaFormat | None = None
    regex: Annotated[str, Meta(max_length=4096)] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=16384)] | None = None
    choice: ChoiceTexts | None = None


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Both change nothing: the last frame always has ``usage``, and frames are not padded."""

    include_usage: bool = True
    include_obfuscation: bool = False


class GenerateRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request for text; exactly one of ``messages`` and ``prompt``. Times in milliseconds.

    ``prompt`` is taken as it is, ``messages`` go through the model's chat template. What the request leaves open, the
    bundle's ``behaviour`` may say; else it is generated greedily, without penalties, up to the end of the context. A
    member that is null is as if it were left out.
    """

    id: Identifier | UnsetType = UNSET
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | UnsetType = UNSET
    prompt: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    model: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | UnsetType = UNSET
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | UnsetType = UNSET
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | UnsetType = UNSET
    min_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | UnsetType = UNSET
    stop: (
        Annotated[str, Meta(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=MAX_STOPS)]
        | UnsetType
    ) = UNSET
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] = {}
    response_format: ResponseFormat | None = None
    stream: bool = True
    stream_options: StreamOptions | UnsetType = UNSET
    num_beams: Annotated[int, Meta(ge=1, le=8)] = 1
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] | UnsetType = UNSET
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=64)] | UnsetType = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | UnsetType = UNSET
    adapter: AdapterName | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] = DEFAULT_PRIORITY
    deadline_ms: Annotated[int, Meta(ge=1, le=86_400_000)] | UnsetType = UNSET
    supersede_key: Identifier | UnsetType = UNSET
    # What programs write for OpenAI, and what changes no answer here.
    user: Label | UnsetType = UNSET
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=MAX_METADATA)] | UnsetType = (
        UNSET
    )
    safety_identifier: Label | UnsetType = UNSET
    prompt_cache_key: Label | UnsetType = UNSET
    prompt_cache_retention: Label | UnsetType = UNSET
    prompt_cache_options: dict[str, Any] | UnsetType = UNSET
    prediction: dict[str, Any] | UnsetType = UNSET
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | UnsetType = UNSET
    # Read so that what would change the answer is refused with a reason: contract/mqtt/unsupported.py.
    store: bool = False
    modalities: list[Literal["text", "audio"]] | UnsetType = UNSET
    verbosity: Literal["low", "medium", "high"] | UnsetType = UNSET
    audio: dict[str, Any] | UnsetType = UNSET
    moderation: dict[str, Any] | UnsetType = UNSET
    web_search_options: dict[str, Any] | UnsetType = UNSET
    functions: list[dict[str, Any]] | UnsetType = UNSET
    function_call: str | dict[str, Any] | UnsetType = UNSET
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | UnsetType = UNSET
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET

    @property
    def token_limit(self) -> int | UnsetType:
        """``max_completion_tokens`` and ``max_tokens`` are two names of one thing."""
        return self.max_tokens if self.max_completion_tokens is UNSET else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is UNSET:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ControlRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Acts on a request of the same client; ``set`` (sampling parameters) belongs to ``update``."""

    id: Identifier
    op: Literal["cancel", "update", "resume"]
    set: dict[str, Any] | UnsetType = UNSET
