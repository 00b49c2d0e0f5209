"""Trying a candidate in a worker of its own, beside what serves at the lowest priority, before it may answer anybody.

It must load, give finite logits, predict the build's own answers about as well as the build did, stop where the build
did, and stay within its memory. Speed is not judged here: beside a serving model it would refuse good bundles.
"""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from msgspec import Struct

from agent.engine.interface import FinishEvent, Generation, RejectEvent, StepEvent
from agent.host.memory import total_memory
from agent.install.ports import SealedBundle
from agent.install.settings import InstallSettings
from agent.install.update.worker_start import load_bundle
from agent.state.installation import Failure
from agent.worker.ports import Worker, WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.bundle.canary import STOP_TOKENS
from contract.bundle.manifest import Canary, PictureCanary
from contract.errors import EngineFailed
from contract.reasons import Reason

CANARY_NICE = 19

MEMORY_SHARE = 0.9
"""Of the RAM there is: more than this and the kernel would have to choose what dies."""


class CanaryPassed(Struct, frozen=True):
    """What the trial showed: its peak memory, which decides how to swap."""

    peak_rss_bytes: int
    drift: float


async def run_canary(
    bundle: SealedBundle,
    workers: WorkerStarter,
    worker_settings: WorkerSettings,
    settings: InstallSettings,
    *,
    adapter: SealedBundle | None = None,
    nice: int = CANARY_NICE,
    beside: bool = True,
    reclaimable_bytes: int = 0,
) -> CanaryPassed | Failure:
    """The verdict on ``bundle``, or on one of its adapters; the worker is gone when this returns or is cancelled.

    ``beside``: it runs beside a model that may be busy, so it may be silent for minutes without hanging, and makes its
    plans for the memory that there is once that has left (``reclaimable_bytes``).
    """
    if beside:
        worker_settings = msgspec.structs.replace(
            worker_settings,
            load_seconds=max(worker_settings.load_seconds, settings.canary_seconds),
            stall_seconds=max(worker_settings.stall_seconds, settings.canary_seconds),
        )
    worker: Worker | None = None
    try:
        async with asyncio.timeout(settings.canary_seconds):
            try:
                ends = GenerationEnds()
                start = partial(
                    workers, worker_settings, nice=nice, reclaimable_bytes=reclaimable_bytes, on_event=ends.hear
                )
                worker = await load_bundle(bundle, start)
            except EngineFailed as error:
                return Failure(Reason.CANARY_LOAD_FAILED, error.message)
            return await _examine(bundle if adapter is None else adapter, worker, ends, settings)
    except TimeoutError:
        return Failure(Reason.CANARY_TIMEOUT, f"the canary did not finish within {settings.canary_seconds:g} s")
    finally:
        if worker is not None:
            await worker.close()


class GenerationEnds:
    """Hears how requests to a candidate end."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[FinishEvent | RejectEvent]] = {}

    def hear(self, event: StepEvent) -> None:
        """What the worker says, in the event loop."""
        future = self._waiting.get(event.request)
        if future is not None and not future.done() and isinstance(event, FinishEvent | RejectEvent):
            future.set_result(event)

    async def generate(self, worker: Worker, generation: Generation) -> FinishEvent | RejectEvent:
        """Have ``generation`` done.

        Raises:
            EngineFailed: the worker ended first.
        """
        future: asyncio.Future[FinishEvent | RejectEvent] = asyncio.get_running_loop().create_future()
        self._waiting[generation.request] = future
        closed = asyncio.ensure_future(worker.wait_closed())
        worker.admit(generation)
        try:
            await asyncio.wait((future, closed), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise EngineFailed(f"the worker has ended: {closed.result()}")
            return future.result()
        finally:
            closed.cancel()
            del self._waiting[generation.request]


async def _examine(
    bundle: SealedBundle, worker: Worker, ends: GenerationEnds, settings: InstallSettings
) -> CanaryPassed | Failure:
    largest = 0.0
    adapter = None if bundle.manifest.base is None else bundle.manifest.reference
    for number, canary in enumerate(bundle.manifest.canary, start=1):
        drift = await _score(f"canary {number}", canary, adapter, worker, settings)
        if isinstance(drift, Failure):
            return drift
        largest = max(largest, drift)
        if canary.stops and (failure := await _check_stop(number, canary.prompt, adapter, worker, ends)) is not None:
            return failure
    if (shown := bundle.manifest.picture_canary) is not None:
        drift = await _score("the canary about a picture", shown, adapter, worker, settings)
        if isinstance(drift, Failure):
            return drift
        largest = max(largest, drift)
    limit = settings.max_rss_bytes or int(total_memory() * MEMORY_SHARE)
    if worker.peak_rss_bytes > limit:
        return Failure(
            Reason.CANARY_MEMORY,
            f"the candidate took {worker.peak_rss_bytes >> 20} MiB of memory, {limit >> 20} MiB are allowed",
        )
    return CanaryPassed(worker.peak_rss_bytes, largest)


async def _score(
    name: str, canary: Canary | PictureCanary, adapter: str | None, worker: Worker, settings: InstallSettings
) -> float | Failure:
    """How far the candidate is from what the build found, in nats; what is wrong, if it is too far."""
    picture = canary.picture if isinstance(canary, PictureCanary) else None
    try:
        score = await worker.score(canary.prompt, canary.expected_text, adapter, picture)
    except EngineFailed as error:
        return Failure(Reason.CANARY_LOAD_FAILED, f"{name} could not be scored: {error.message}")
    if not score.finite or not score.tokens:
        return Failure(Reason.CANARY_NOT_FINITE, f"{name} gave logits that are not finite numbers")
    drift = abs(score.mean_nll - canary.mean_nll)
    tolerance = min(canary.tolerance, settings.canary_tolerance or canary.tolerance)
    # Not >: a drift that is not a number must not pass.
    if not drift <= tolerance:
        return Failure(
            Reason.CANARY_DRIFT,
            f"{name} has a mean NLL of {score.mean_nll:.3f} here, {canary.mean_nll:.3f} at the build "
            f"(allowed: ±{tolerance:.3f})",
        )
    return drift


async def _check_stop(
    number: int, prompt: str, adapter: str | None, worker: Worker, ends: GenerationEnds
) -> Failure | None:
    """How an answer that an end token must end goes on instead, if it does."""
    generation = Generation(number, "canary", prompt=prompt, max_tokens=STOP_TOKENS, adapter=adapter)
    try:
        end = await ends.generate(worker, generation)
    except EngineFailed as error:
        return Failure(Reason.CANARY_LOAD_FAILED, f"canary {number} could not be answered: {error.message}")
    if isinstance(end, RejectEvent):
        return Failure(Reason.CANARY_LOAD_FAILED, f"canary {number} could not be answered: {end.message}")
    if end.reason != "stop":
        return Failure(
            Reason.CANARY_NO_STOP,
            f"canary {number} continues for {end.completion_tokens} tokens here; at the build an end token ended it",
        )
    return None
