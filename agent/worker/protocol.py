"""What agent and worker say to each other: length-prefixed msgpack over a UNIX stream socket.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The agent sends :data:`Command`, the worker
answers with :data:`Reply`. EOF from the agent ends the worker.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent.engine.interface import READ_SLICE, CanaryScore, Facts, FinishEvent, Generation, RejectEvent, TokenEvent
from contract.errors import EngineFailed

MAX_FRAME_BYTES = 8 << 20
"""The largest request is 1 MiB of JSON; a frame is its decoded form and some head-room."""


MAX_LOADS = 12
"""Times the time to load: how long a load may take that advances, whatever a worker claims."""

MAX_SILENCE = 3600.0
"""Whatever a worker claims to be reading."""


class Load(Struct, frozen=True, tag="load"):
    """Load the bundle; first command, once. ``engine``: ``auto``, ``batched`` or ``genai``.

    ``max_bytes`` is what the worker may use for KV and scratch (0: decide from the memory that is available, and
    ``reclaimable_bytes`` more, which are free once the worker ends whose place it takes);
    ``derived_dir`` holds prepacked weights, if there are any. The rest is for workers that systemd starts, which get
    no command line of ours: ``nice`` to take on, and after how many seconds of loading or of silence the agent gives
    up on this worker (0: unknown). ``adapters`` are files by NAME@VERSION, ``processors`` the
    logits processors that every token goes through; ``reproducible``, ``speculation`` and ``slots`` as in the
    settings.
    """

    bundle_dir: str
    threads: int
    engine: str = "auto"
    max_bytes: int = 0
    derived_dir: str | None = None
    nice: int = 0
    load_seconds: float = 0.0
    stall_seconds: float = 0.0
    adapters: dict[str, str] = {}
    processors: list[str] = []
    reclaimable_bytes: int = 0
    reproducible: bool = False
    speculation: Literal["auto", "on", "off"] = "auto"
    slots: int = 0


class Admit(Struct, frozen=True, tag="admit"):
    generation: Generation


class Update(Struct, frozen=True, tag="update"):
    request: int
    changes: dict[str, Any]


class Cancel(Struct, frozen=True, tag="cancel"):
    request: int


class Score(Struct, frozen=True, tag="score"):
    """Run one canary; answered by :class:`Scored` with the same ``index``. ``adapter`` is NAME@VERSION, ``picture`` a
    file.
    """

    index: int
    prompt: str
    text: str
    adapter: str | None = None
    picture: bytes | None = None


class Ping(Struct, frozen=True, tag="ping"):
    """Answered by :class:`Pong`; an idle worker that does not is hung."""

    number: int


class Usage(Struct, frozen=True):
    """What the worker takes, as it says itself: an agent may not look into another account's processes.

    ``pss_bytes`` 0: the kernel does not say. ``anonymous_bytes`` of the resident ones are no file's. ``cpu_seconds``
    since it started.
    """

    pid: int
    rss_bytes: int
    pss_bytes: int
    cpu_seconds: float
    anonymous_bytes: int = 0


class Loaded(Struct, frozen=True, tag="loaded"):
    facts: Facts
    isolation: str
    peak_rss_bytes: int
    usage: Usage | None = None


class Loading(Struct, frozen=True, tag="loading"):
    """Loading goes on, with ``stage``: sent once a second at most, before :class:`Loaded`. ``last``: nothing more is
    sent until the weights are loaded, however long that takes.
    """

    stage: str
    last: bool = False


class Failed(Struct, frozen=True, tag="failed"):
    """The worker is of no further use and ends after this."""

    message: str


class Scored(Struct, frozen=True, tag="scored"):
    index: int
    score: CanaryScore
    peak_rss_bytes: int


class Reading(Struct, frozen=True, tag="reading"):
    """The step that comes now reads ``tokens`` of a prompt in one piece; 0: that is over."""

    tokens: int


class Pong(Struct, frozen=True, tag="pong"):
    number: int
    peak_rss_bytes: int
    usage: Usage | None = None


Command = Load | Admit | Update | Cancel | Score | Ping
Reply = Loading | Loaded | Failed | Scored | Pong | Reading | TokenEvent | FinishEvent | RejectEvent

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def allowed_silence(stall_seconds: float, tokens: int) -> float:
    """Seconds that a worker may say nothing while it reads ``tokens`` in one piece: as many as for slices of them."""
    return max(stall_seconds, min(MAX_SILENCE, stall_seconds * -(-tokens // READ_SLICE)))


def frame(message: Command | Reply) -> bytes:
    """One message with its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Unframer:
    """Collects bytes and gives back whole frames. Pure: feed it whatever the socket delivered.

    Raises:
        EngineFailed: from ``feed``, when a frame is longer than :data:`MAX_FRAME_BYTES`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """All frames that are complete after ``data``."""
        self._buffer += data
        frames: list[bytes] = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME_BYTES:
                raise EngineFailed(f"a worker frame claims {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            frames.append(bytes(self._buffer[4 : 4 + size]))
            del self._buffer[: 4 + size]
        return frames


def parse_command(body: bytes) -> Command:
    """Decode a frame from the agent.

    Raises:
        EngineFailed: not a command.
    """
    try:
        return _command_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineFailed(f"the agent sent an invalid command: {error}") from error


def parse_reply(body: bytes) -> Reply:
    """Decode a frame from a worker, which is not trusted to be well-behaved.

    Raises:
        EngineFailed: not a reply.
    """
    try:
        return _reply_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineFailed(f"the worker sent an invalid reply: {error}") from error
