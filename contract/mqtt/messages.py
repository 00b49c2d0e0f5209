"""MQTT payloads, both directions, as types; :mod:`contract.mqtt.reading` reads them.

Sizes and ranges are bounds on outside input. Field names of requests are those of OpenAI's chat completions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract.errors import Fault, printable
from contract.mqtt.tools import MAX_CALLS, MAX_TOOLS, CallId, Tool, ToolCall, ToolCallDelta, ToolChoice
from contract.windows import MAX_WINDOWS, WindowDocument

MAX_REQUEST_BYTES = 1 << 20
"""A request: a prompt of 128k tokens is about 512 KB of text."""

MAX_STORED_BYTES = 10 << 20
"""A request with the pictures in it that came apart from it, in base64."""

MAX_DESIRED_BYTES = 16 << 10
"""A desired document: a few hundred bytes of policy at most."""

DEFAULT_PRIORITY = 4
"""In the middle of 0 to 9, and the highest that a device grants unless its operator allows more."""

MAX_REVISION = 128
"""Characters."""

MAX_TOKENS = 1 << 20
MAX_STOPS = 16
MAX_MESSAGES = 1024
MAX_PARTS = 64
MAX_PICTURES = 8
"""In one request. Each becomes hundreds to thousands of tokens, and the request as a whole stays within its bytes."""

MAX_CHOICES = 16
"""Answers from one prompt."""

MAX_CHOICE_TEXTS = 128
"""Of which an answer can be held to one."""

MAX_METADATA = 16
MAX_LABEL = 512
"""Characters of what a client writes for itself: a user, a cache key, a value of ``metadata``."""

Identifier = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)", extra={"expected": "1 to 64 of A-Z a-z 0-9 _ . -"})
]
"""``$`` alone lets a line break follow, and brokers cut whoever publishes to a topic with one."""


Label = Annotated[str, Meta(max_length=MAX_LABEL)]


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


AdapterName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9._-]{1,64}(@[0-9A-Za-z.+-]{1,64})?$(?!\n)",
        max_length=129,
        extra={"expected": "NAME or NAME@VERSION, in small letters"},
    ),
]
"""The name of an adapter bundle, or NAME@VERSION."""


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


class BundleReference(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What a ``desired`` document may tighten, never loosen, against the device's configuration; and when.

    The bundle becomes active not before ``not_before`` (UTC, RFC 3339) and only while the ``window``, or one of
    several, is open. Until then nothing happens; with ``prefetch`` it is fetched and verified at once.
    """

    probation_seconds: Annotated[int, Meta(ge=0, le=7 * 86400)] | UnsetType = UNSET
    probation_requests: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    min_tokens_per_second: Annotated[float, Meta(ge=0, le=1e6)] | UnsetType = UNSET
    swap: Literal["overlap", "drain"] | UnsetType = UNSET
    on_revoked: Literal["keep", "replace"] | UnsetType = UNSET
    not_before: Annotated[str, Meta(max_length=40)] | UnsetType = UNSET
    window: WindowDocument | Annotated[list[WindowDocument], Meta(min_length=1, max_length=MAX_WINDOWS)] | UnsetType = (
        UNSET
    )
    prefetch: bool = False

    @property
    def windows(self) -> tuple[WindowDocument, ...]:
        if self.window is UNSET:
            return ()
        return tuple(self.window) if isinstance(self.window, list) else (self.window,)


class Desired(Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle the device should run. ``revision`` is opaque: echoed, never ordered."""

    revision: Annotated[str, Meta(max_length=MAX_REVISION)]
    bundle: BundleReference
    source: Identifier | UnsetType = UNSET
    policy: Policy | UnsetType = UNSET


class Usage(Struct, frozen=True):
    """Token counts; ``cached_tokens`` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


class Timing(Struct, frozen=True, kw_only=True):
    """Milliseconds: waiting, from acceptance to the first token if there was one, in all."""

    queue_ms: float
    first_token_ms: float | UnsetType = UNSET
    total_ms: float


class FaultDetail(Struct, frozen=True):
    """One of the faults of a body: the JSON path of the field, what is wrong, and the name that was probably meant."""

    message: str
    field: str | UnsetType = UNSET
    suggestion: str | UnsetType = UNSET


class ErrorBody(Struct, frozen=True):
    """``code`` follows HTTP, ``type`` is stable for programs, ``message`` is one sentence for a person; ``details`` are
    all the faults of a body, of which ``message`` and ``field`` tell the first.
    """

    code: int
    type: str
    message: str
    field: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET
    details: list[FaultDetail] | UnsetType = UNSET


class Frame(Struct, frozen=True, omit_defaults=True):
    """A piece of the answer: ``s`` counts from 0, ``d`` is new text, ``n`` the completion tokens so far;
    ``reasoning_content`` is more of a thought, ``tool_calls`` more of calls.

    ``index`` says of which answer, where a request asked for several; ``s`` counts the frames of all of them. The first
    frame with text adds the bundle (``NAME@VERSION``), the time in the queue and the place it had there.
    Frames to a request that waits have no text, its place now, and in how many milliseconds it may begin.
    """

    s: int
    d: str
    n: int
    index: int | UnsetType = UNSET
    attempt: int | UnsetType = UNSET
    bundle: str | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    position: int | UnsetType = UNSET
    estimate_ms: float | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "deadline"]


class Choice(Struct, frozen=True):
    """One of several answers to a request."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[dict[str, Any]] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class LastFrame(Struct, frozen=True):
    """The whole answer again, so that a lost frame costs nothing.

    ``choices`` are there where a request asked for several answers (``n``); the members beside them that say what an
    answer is are then those of the first, and ``usage`` counts all of them.
    """

    s: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    attempt: int
    bundle: str
    logprobs: list[dict[str, Any]] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    choices: list[Choice] | UnsetType = UNSET


class ErrorFrame(Struct, frozen=True):
    """A last frame that says why there is no (more) answer."""

    s: int
    error: ErrorBody
    attempt: int = 1


class ControlFault(Struct, frozen=True):
    """``op`` as it was sent, as far as it can be read."""

    op: str
    error: ErrorBody


class ControlRefused(Struct, frozen=True):
    """A control message did nothing. No last frame: the request that it names, if there is one, goes on."""

    control: ControlFault


class Progress(Struct, frozen=True):
    """Bytes of the bundle: done (fetched or reused), total, reused; ``seconds_left`` when it can be said."""

    done: int
    total: int
    reused: int = 0
    seconds_left: float | UnsetType = UNSET


class Probation(Struct, frozen=True):
    """How far the candidate that serves now is: it is kept after ``of_seconds``, or once ``of_requests`` were answered,
    where a number of them is asked for.
    """

    seconds: float
    of_seconds: float
    requests: int
    of_requests: int | UnsetType = UNSET


class Waiting(Struct, frozen=True):
    """Why the desired bundle is not made active yet: its time has not come, or this device does not know the time.

    It may go on ``until`` (UTC, RFC 3339); ``prefetched``: its bytes are here and verified. ``message`` for people.
    """

    reason: Literal["waiting_for_window", "waiting_for_not_before", "clock_not_set"]
    message: str
    prefetched: bool = False
    until: str | UnsetType = UNSET


class PlannedSwap(Struct, frozen=True):
    """How a candidate will take over from the bundle that serves, and ``why``: both run for a moment (``overlap``), the
    old one ends first (``drain``), or it ends before the candidate is even tried (``aside``). Requests wait for at most
    ``pause_seconds`` once what runs has ended.
    """

    mode: Literal["overlap", "drain", "aside"]
    pause_seconds: float
    why: str


class BundleState(Struct, frozen=True):
    name: str
    version: str
    digest: str
    security_epoch: int


class ReportedError(Struct, frozen=True):
    """``reason`` is one of :class:`contract.reasons.Reason`; ``details`` are all the faults of a document.

    ``retry_in_seconds``: it is not final, the device tries again by itself so long after this report.
    """

    reason: str
    message: str
    field: str | UnsetType = UNSET
    retry_in_seconds: float | UnsetType = UNSET
    details: list[FaultDetail] | UnsetType = UNSET


Phase = Literal[
    "IDLE",
    "RESOLVE",
    "CHECK",
    "RESERVE",
    "FETCH",
    "VERIFY",
    "SEAL",
    "CANARY",
    "SWITCH",
    "PROBATION",
    "COMMIT",
    "ROLLBACK",
]


class Reported(Struct, frozen=True):
    """What the device does about ``desired``; ``revision`` echoes it (null when nothing is desired).

    ``warnings`` last as long as what they tell of, and stop nothing: an installed bundle that was revoked, metadata
    that expired or cannot be trusted any more. ``adapters`` are loaded beside the active bundle. ``desired`` is the
    bundle of the document that is followed; absent when none is, or this device's operator chose another one since.
    ``probation`` is there in the phase of that name, ``swap`` while a candidate is on its way to take over, ``waiting``
    while the phase is ``IDLE`` because the policy's time has not come.
    """

    revision: str | None
    phase: Phase
    progress: Progress | None
    active: BundleState | None
    previous: BundleState | None
    error: ReportedError | None
    queue_pause_ms: float | UnsetType = UNSET
    warnings: list[ReportedError] | UnsetType = UNSET
    adapters: list[BundleState] | UnsetType = UNSET
    desired: BundleReference | UnsetType = UNSET
    probation: Probation | UnsetType = UNSET
    swap: PlannedSwap | UnsetType = UNSET
    waiting: Waiting | UnsetType = UNSET


class Status(Struct, frozen=True):
    """Birth and last will."""

    online: bool
    boot_id: str


class Deviation(Struct, frozen=True):
    """A bound: how far the rounding of other kernels moves one token's logits, and its probabilities in nats
    (Kullback-Leibler divergence).
    """

    logits: float
    nats: float


class EngineInfo(Struct, frozen=True):
    """The loaded model's engine, why it was chosen, what it can do, and how far its process is locked in.

    ``reproducible``: what a request gets is the same, bit for bit, whatever else runs; if not, ``deviation`` bounds the
    difference. ``reproducible_why`` says what makes it so. ``kernels``: which of the runtime's kernels compute and why,
    where there was a choice (ARM with dot-product instructions). ``speculation``: whether tokens are drafted for a
    request that runs alone, and why.
    """

    engine: str
    why: str
    slots: int
    context_length: int
    vocab_size: int
    capabilities: list[str]
    load_seconds: float
    isolation: str
    reproducible: bool = True
    reproducible_why: str = ""
    deviation: Deviation | UnsetType = UNSET
    kernels: str | UnsetType = UNSET
    speculation: str | UnsetType = UNSET
    adapters: list[str] | UnsetType = UNSET

    @property
    def summary(self) -> str:
        """Engine and reasons in one line, for a person."""
        text = f"{self.engine}, {self.slots} at once ({self.why})"
        if self.deviation is not UNSET:
            text += f"; the same answers within {self.deviation.nats:.2g} nats a token whatever else runs"
        elif self.reproducible:
            text += "; the same answers bit for bit whatever else runs"
        text = f"{text}: {self.reproducible_why}" if self.reproducible_why else text
        return text if self.kernels is UNSET else f"{text}; {self.kernels}"


class Limits(Struct, frozen=True):
    """What this device takes and keeps; 0 tokens: no such bound."""

    max_request_bytes: int
    queue: int
    queue_per_client: int
    max_priority: int
    stream_interval_ms: int
    results_kept_seconds: int
    results_kept_bytes: int
    default_max_tokens: int = 0
    max_tokens: int = 0


class Info(Struct, frozen=True):
    """What the device is: identity, versions of agent and runtimes, host, limits, and the model it serves."""

    device: str
    api: str
    groups: list[str]
    versions: dict[str, str]
    host: dict[str, Any]
    limits: Limits
    bundle: BundleState | None
    engine: EngineInfo | None


class BrokerState(Struct, frozen=True, omit_defaults=True):
    """The broker as the device finds it. ``problem``: why there is no connection. ``warnings``: what is wrong with it
    although there is one: it cuts whoever sends large messages, another client uses our client id, it delivers nothing
    to groups.
    """

    address: str
    protocol: str
    connected: bool
    problem: str = ""
    warnings: list[ReportedError] = []


class Health(Struct, frozen=True):
    """Whether the device answers prompts now, and if not, why; ``warnings``: reason codes of what stops nothing.

    ``broker``: which one this was published to, and what is wrong with it. ``message``: how the model's process ended
    or why it does not load, where that is the reason.
    """

    ready: bool
    reasons: list[str]
    queue: int
    active: int
    warnings: list[str] | UnsetType = UNSET
    broker: BrokerState | UnsetType = UNSET
    message: str | UnsetType = UNSET


class Event(Struct, frozen=True):
    """Something happened; ``at`` is UTC, ``detail`` depends on the type."""

    at: str
    detail: dict[str, Any]


MAX_MESSAGE = 1000
"""Characters of a message about a fault: what came from outside may stand in it."""

MAX_FIELD = 200


def fault_details(details: Iterable[Fault]) -> list[FaultDetail] | UnsetType:
    """All faults as they are told, none of them at length."""
    found = [
        FaultDetail(
            message=printable(message[:MAX_MESSAGE]),
            field=UNSET if field is None else printable(field[:MAX_FIELD]),
            suggestion=UNSET if suggestion is None else suggestion,
        )
        for field, message, suggestion in details
    ]
    return found or UNSET


def encode(message: Struct) -> bytes:
    """The JSON bytes of a message."""
    return msgspec.json.encode(message)
