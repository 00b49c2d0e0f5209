"""The one interface of all engines: admit, step, update, cancel, release.

An engine is driven by one thread. ``step`` does a bounded amount of work (one prefill slice or one decode step for
every active request; ``next_read`` names the exception), so that whoever drives it can look at its socket between two
steps: that is what makes cancel, deadlines and fairness work in every phase.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec import Struct

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

Detail = Literal["auto", "low", "high"]
"""How closely to look at a picture: ``low`` is as a whole, where the model can do with that."""

READ_SLICE = 128
"""Prompt tokens that a step reads at most: cancel waits for one slice; slices of 64 to 256 cost nothing."""


class Progress(Protocol):
    """Hears that loading goes on, and with what."""

    def __call__(self, stage: str, /, *, last: bool = False) -> None:
        """``last``: nothing more is said until the weights are loaded, since the runtime lets no other thread run."""


def silent(stage: str, /, *, last: bool = False) -> None:
    """For whoever does not want to hear."""


ChatTurn = dict[str, Any]
"""``role``, ``name`` if there is one, and ``content``: a text, or texts and None where the next picture stands.

Beside them, an assistant's turn may have ``tool_calls`` (``id``, ``name``, and ``arguments`` as an object) and
``reasoning_content``, and the role ``tool`` has ``tool_call_id`` and the function's ``name``.
"""


class Tools(Struct, frozen=True):
    """Functions that the model may call: ``definitions`` as OpenAI has them, JSON all through.

    ``choice``: whether a call may come, must come, or none may; ``function`` is the only one that may. ``parallel``:
    several calls in one answer.
    """

    definitions: list[dict[str, Any]]
    choice: Literal["auto", "required", "none"] = "auto"
    function: str | None = None
    parallel: bool = True


class CallDelta(Struct, frozen=True, omit_defaults=True):
    """More of the call ``index``: the first one has ``id`` and ``name``, the others of the same index ``arguments``."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Generation(Struct, frozen=True):
    """A request as the engine sees it. Either ``messages`` (rendered by the model's chat template) or ``prompt``.

    ``pictures`` are PNG or JPEG files that nobody has looked into yet, one for each None in ``messages``; ``details``
    says how closely to look at each (none: at all of them as the model does by itself).
    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off; ``max_tokens`` None means up to the context's
    end, ``max_tokens_limit`` holds whatever is asked for. ``n`` answers come from one reading of the prompt, the first
    of them the one that ``n`` 1 gives. ``client`` scopes the prefix cache; ``reasoning_effort`` is the template's.
    ``deadline_seconds`` are left when it is admitted.
    """

    request: int
    client: str
    messages: list[ChatTurn] | None = None
    pictures: list[bytes] = []
    details: list[Detail] = []
    prompt: str | None = None
    n: int = 1
    max_tokens: int | None = None
    max_tokens_limit: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: dict[int, float] = {}
    grammar: tuple[str, str] | None = None
    tools: Tools | None = None
    num_beams: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    adapter: str | None = None
    reasoning_effort: str | None = None
    deadline_seconds: float | None = None


class TokenEvent(Struct, frozen=True, tag="token"):
    """New text of a request (possibly empty, when a token is still incomplete or held back for a stop string).

    ``tokens`` counts completion tokens of the answer ``choice`` so far. ``thought`` is what the model says to itself,
    ``calls`` those it makes.
    """

    request: int
    text: str
    tokens: int
    logprobs: list[dict[str, Any]] | None = None
    thought: str = ""
    calls: list[CallDelta] = []
    choice: int = 0


class FinishEvent(Struct, frozen=True, tag="finish"):
    """The request is over and its resources are free; ``text``, ``thought`` and ``calls`` are what no TokenEvent
    carried yet.

    Of several answers ``choice`` is the one that ended last, ``reasons`` are those of all of them, ``reason`` the first
    one's; ``completion_tokens`` are theirs together.
    """

    request: int
    reason: FinishReason
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    thought: str = ""
    calls: list[CallDelta] = []
    choice: int = 0
    reasons: list[FinishReason] = []


class RejectEvent(Struct, frozen=True, tag="reject"):
    """The request cannot be served by this model; the client's fault. ``code`` follows HTTP."""

    request: int
    code: int
    kind: str
    message: str
    field: str | None = None


StepEvent = TokenEvent | FinishEvent | RejectEvent


class Independence(Struct, frozen=True):
    """Whether what a request gets is the same whatever else runs, and ``why``.

    ``reproducible``: bit for bit; if not, its logits and probabilities at equal tokens are no further off than
    ``logits`` and ``nats`` (Kullback-Leibler) say. ``pads``: a row that would run alone gets company.
    """

    reproducible: bool
    why: str
    logits: float = 0.0
    nats: float = 0.0
    pads: bool = False


EACH_ALONE = Independence(True, "each request is computed apart from the others")


class Facts(Struct, frozen=True):
    """What an engine says of itself once loaded. ``slots``: requests it advances at the same time; ``kernels``: which
    compute and why, where there was a choice; ``speculation``: whether tokens are drafted for a request that runs
    alone, and why, where the engine can.
    """

    engine: str
    why: str
    slots: int
    context_length: int
    vocab_size: int
    capabilities: tuple[str, ...]
    load_seconds: float
    independence: Independence = EACH_ALONE
    kernels: str = ""
    speculation: str = ""


class CanaryScore(Struct, frozen=True):
    """Teacher-forced result for one canary text: mean NLL in nats per token; ``finite`` is False on NaN or Inf."""

    mean_nll: float
    tokens: int
    finite: bool


class Engine(Protocol):
    """One loaded model. Methods other than the constructor never raise for a client's mistake: they emit RejectEvent.

    Raises (every method): EngineFailed when the runtime fails; the engine is unusable afterwards.
    """

    @property
    def facts(self) -> Facts: ...

    def computed_by(self, kernels: str) -> None:
        """From now on :attr:`facts` say which kernels compute, and why."""
        ...

    @property
    def busy(self) -> bool:
        """Whether ``step`` has anything to do."""
        ...

    @property
    def next_read(self) -> int:
        """Tokens of a prompt that the next ``step`` may have to read in one piece; 0 where it reads a slice at most."""
        ...

    def admit(self, generation: Generation) -> None:
        """Take a request; at most ``facts.slots`` are advanced at once, more wait in order of arrival."""
        ...

    def step(self) -> list[StepEvent]:
        """Do one bounded piece of work and say what came of it."""
        ...

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        """Change sampling parameters of a running request from its next token on; False if it is not here."""
        ...

    def cancel(self, request: int) -> list[StepEvent]:
        """End a request now, wherever it is; its FinishEvent (``cancelled``), or nothing if it is not here."""
        ...

    def release(self) -> None:
        """Free the model. The engine is unusable afterwards."""
        ...

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        """Teacher-force ``text`` after ``prompt`` (both taken as they are), in which ``picture`` stands where
        :data:`contract.bundle.canary.PICTURE` says, looked at as a whole. Not while requests are active.
        """
        ...
