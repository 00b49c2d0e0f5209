"""The pictures of requests on their way: one at a time, in a thread beside the one that decodes.

What is cached is there at once, and does not stand in line behind pictures that are not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from hashlib import sha256
from typing import NamedTuple, Protocol

from agent.engine.image_decode import MAX_PIXELS, measure_image
from agent.engine.interface import Generation
from agent.engine.memory import usable_bytes
from agent.engine.pictures.features import Encoded, FeatureCache, Features, PictureKey
from agent.engine.pictures.plan import PlannedFor, check_context, check_plan, check_time
from contract.bundle.picture_families import Size
from contract.chat.limits import leave_memory_to
from contract.errors import EngineFailed, RequestInvalid

PATIENCE_SECONDS = 0.05
"""How long a step waits for a picture when there is nothing else to do: commands wait as long."""


class Encoder(Protocol):
    """See :class:`agent.engine.pictures.encoder.PictureEncoder`."""

    def encode(self, data: bytes, *, low: bool, most_pixels: int, wanted: threading.Event) -> Encoded: ...
    def stop(self) -> None: ...


class Seen(NamedTuple):
    """A request whose pictures are all known; or why they cannot be."""

    generation: Generation
    features: list[Features]
    refused: RequestInvalid | None = None


class _Look:
    """A request, and what is known of its pictures so far."""

    def __init__(self, generation: Generation, model: PlannedFor) -> None:
        self.generation = generation
        self.found: list[Features] = []
        self.wanted = threading.Event()
        self.wanted.set()
        self._model = model
        pixels = MAX_PIXELS
        self.sizes: list[Size] = []
        for number, (data, low) in enumerate(zip(generation.pictures, self._low(), strict=True), 1):
            with naming(number):
                width, height = measure_image(data, pixels)
            pixels -= width * height
            self.sizes.append(Size(width, height, low))
        self.check_room()
        self.keys = [
            PictureKey(generation.client, sha256(data).digest(), low)
            for data, low in zip(generation.pictures, self._low(), strict=True)
        ]

    def _low(self) -> list[bool]:
        details, pictures = self.generation.details, self.generation.pictures
        return [self._model.low and details[number : number + 1] == ["low"] for number in range(len(pictures))]

    def check_room(self) -> None:
        """Raises:
        RequestInvalid: by their headers they do not fit the context, or the memory that there is now.
        """
        check_plan(self._model, self.sizes, usable_bytes(), held=len(self.found))

    @property
    def complete(self) -> bool:
        return len(self.found) == len(self.keys)

    def add(self, features: Features) -> None:
        """The next picture is known.

        Raises:
            RequestInvalid: they are more than the context holds.
        """
        self.found.append(features)
        check_context(len(self.found), sum(len(each.tokens) for each in self.found), self._model)


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Say in a refusal which picture is at fault."""
    try:
        yield
    except RequestInvalid as refused:
        raise RequestInvalid(f"picture {number}: {refused.message}", field=refused.field) from refused


class Looking:
    """The pictures of all requests that wait for them; :meth:`advance` says whose are known.

    Every method is for one thread, and none waits for the encoder but :meth:`advance`, where it is asked to.
    """

    def __init__(
        self, encoder: Encoder, cache: FeatureCache, model: PlannedFor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder = encoder
        self._clock = clock
        self._patch_seconds: float | None = None
        """The shortest that a look took so far, by the patch; a machine that is busy now may be idle soon."""
        self._cache = cache
        self._model = model
        self._waiting: deque[_Look] = deque()
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._job: tuple[_Look, Future[Encoded]] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def admit(self, generation: Generation) -> None:
        """Take a request with pictures.

        Raises:
            RequestInvalid: by their headers they cannot be read, there is no room for them, or they take longer than
                the request may.
        """
        look = _Look(generation, self._model)
        if generation.deadline_seconds is not None and self._patch_seconds is not None:
            sizes = dict(zip(look.keys, look.sizes, strict=True))
            unknown = [size for key, size in sizes.items() if self._cache.find(key) is None]
            check_time(self._model, unknown, self._patch_seconds, generation.deadline_seconds)
        self._waiting.append(look)

    def advance(self, *, idle: bool) -> Iterator[Seen]:
        """Whose pictures are known now; with ``idle``, wait a moment for the one that is being looked at.

        Raises:
            MemoryError, and whatever else is no client's fault.
        """
        if self._job is not None:
            wait([self._job[1]], PATIENCE_SECONDS if idle else 0)
            if self._job[1].done():
                yield from self._take(*self._job)
        for look in list(self._waiting):
            yield from self._recall(look)
        if self._job is None and self._waiting:
            yield from self._begin(self._waiting[0], idle=idle)

    def _take(self, look: _Look, job: Future[Encoded]) -> Iterator[Seen]:
        """What became of the picture that was looked at."""
        self._job = None
        if not look.wanted.is_set():
            job.exception()
            return
        try:
            with naming(len(look.found) + 1):
                encoded = job.result()
            look.add(self._cache.keep(look.keys[len(look.found)], encoded))
        except RequestInvalid as refused:
            self._waiting.remove(look)
            yield Seen(look.generation, [], refused)

    def _recall(self, look: _Look) -> Iterator[Seen]:
        """Add what is known already, as far as it goes."""
        try:
            while not look.complete and (known := self._cache.find(look.keys[len(look.found)])) is not None:
                look.add(known)
        except RequestInvalid as refused:
            self._waiting.remove(look)
            yield Seen(look.generation, [], refused)
            return
        if look.complete:
            self._waiting.remove(look)
            yield Seen(look.generation, look.found)

    def _begin(self, look: _Look, *, idle: bool) -> Iterator[Seen]:
        """Look at the next picture, as soon as there is room for it: answers in progress give theirs back."""
        try:
            look.check_room()
        except RequestInvalid as refused:
            if idle:
                self._waiting.remove(look)
                yield Seen(look.generation, [], refused)
            return
        number = len(look.found)
        picture, size = look.generation.pictures[number], look.sizes[number]
        job = self._beside.submit(self._encode, picture, size, look.wanted)
        leave_memory_to(job)
        self._job = look, job

    def _encode(self, picture: bytes, size: Size, wanted: threading.Event) -> Encoded:
        """In the thread beside; takes the time."""
        began = self._clock()
        encoded = self._encoder.encode(picture, low=size.low, most_pixels=MAX_PIXELS, wanted=wanted)
        if wanted.is_set() and self._model.look is not None:
            each = (self._clock() - began) / self._model.look(size).patches
            self._patch_seconds = each if self._patch_seconds is None else min(each, self._patch_seconds)
        return encoded

    def glance(self, picture: bytes) -> Features:
        """What is made of ``picture``, which is nobody's, looked at as a whole; waits for it, and for what is
        left of a cancelled one.

        Raises:
            EngineFailed: it cannot be read. MemoryError, and whatever else is no fault of its.
        """
        wanted = threading.Event()
        wanted.set()
        try:
            width, height = measure_image(picture, MAX_PIXELS)
            encoded = self._beside.submit(self._encode, picture, Size(width, height, self._model.low), wanted).result()
        except RequestInvalid as refused:
            raise EngineFailed(f"the picture of a canary: {refused.message}") from refused
        return self._cache.keep(PictureKey("", sha256(picture).digest(), self._model.low), encoded)

    def find(self, request: int) -> Generation | None:
        """The request with this number, as long as its pictures are looked at."""
        return next((look.generation for look in self._waiting if look.generation.request == request), None)

    def change(self, generation: Generation) -> None:
        """Other parameters for a request that is here."""
        for look in self._waiting:
            if look.generation.request == generation.request:
                look.generation = generation

    def cancel(self, request: int) -> bool:
        """Forget a request; whether it was here."""
        for look in list(self._waiting):
            if look.generation.request == request:
                self._waiting.remove(look)
                look.wanted.clear()
                if self._job is not None and self._job[0] is look:
                    self._encoder.stop()
                return True
        return False

    def close(self) -> None:
        """End the thread, and what it does."""
        for look in list(self._waiting):
            self.cancel(look.generation.request)
        self._beside.shutdown(wait=True, cancel_futures=True)
        self._cache.clear()
