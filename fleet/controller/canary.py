"""Asks devices the prompts of the quality canary, by what the gateway asks with, and notes what came of it.

Beside the controller's own loop, in a thread with an event loop: devices take seconds for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

import msgspec

from contract.errors import EdgeBundleError
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress
from edge_bundle.replies import Answer
from fleet.gateway.asking import Failed
from fleet.gateway.models import read_model
from fleet.gateway.requests import read_chat
from fleet.gateway.routing import Routing
from fleet.gateway.shared_client import SharedClient
from fleet.rollout.canary import Prompt, Score
from fleet.rollout.facts import Facts
from fleet.rollout.model import Rollout
from fleet.rollout.probing import Probe, due

log = logging.getLogger("edge_fleet.canary")

MAX_AT_ONCE = 100
"""Devices that are asked at a time, each one prompt after another: a wave of thousands must not flood the broker."""

ANSWER_SECONDS = 60.0
"""For one answer of a few dozen tokens, behind others in a small box's queue."""

MAX_UNANSWERED = 3
"""In a row: a device that answers nothing is not waited for prompt by prompt."""

Note = Callable[[Probe, Score], None]


class CanaryRunner:
    """``note`` is called in a thread of its own with what came of each device; ``clock`` gives Unix seconds.

    :meth:`look` says who is to be asked; who is being asked already is not asked again.
    """

    def __init__(self, address: BrokerAddress, root: str, note: Note, clock: Callable[[], float]) -> None:
        self._note = note
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client = SharedClient(address, root)
        self._running: set[tuple[int, str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._routing = Routing(seconds=ANSWER_SECONDS)

    def look(self, rollout: Rollout, facts: Facts) -> None:
        """Ask whoever is due; returns at once."""
        for probe in due(rollout, facts, self._clock()):
            key = (probe.rollout, probe.device, probe.attempt)
            if key not in self._running and len(self._running) < MAX_AT_ONCE:
                self._running.add(key)
                asyncio.run_coroutine_threadsafe(self._probe(probe), self._started())

    def close(self) -> None:
        """Give up what is being asked, and leave the broker."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
        self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="quality canary", daemon=True)
            self._thread.start()
        return self._loop

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def _probe(self, probe: Probe) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            score = await self._score(await self._client.connected(), probe)
            await asyncio.to_thread(self._note, probe, score)
        except EdgeBundleError as error:
            log.warning("the canary of rollout %d cannot be asked: %s", probe.rollout, error.message)
        except Exception:
            log.exception("the canary of rollout %d failed by a fault of ours", probe.rollout)
        finally:
            self._tasks.discard(task)
            self._running.discard((probe.rollout, probe.device, probe.attempt))

    async def _score(self, client: AsyncClient, probe: Probe) -> Score:
        prompts = probe.canary.prompts
        answered = expected = unanswered = 0
        for number in range(probe.requests):
            prompt = prompts[number % len(prompts)]
            met = await self._is_met(client, probe, prompt)
            answered += met is not None
            expected += met is True
            unanswered = unanswered + 1 if met is None else 0
            if unanswered >= MAX_UNANSWERED:
                break
        score = Score(probe.requests, answered, expected, self._clock())
        text = "%s answered %d of %d prompts of the canary of rollout %d, %d as expected"
        log.info(text, probe.device, answered, probe.requests, probe.rollout, expected)
        return score

    async def _is_met(self, client: AsyncClient, probe: Probe, prompt: Prompt) -> bool | None:
        """Whether the answer is what was expected; None without one. What fails in the model is a wrong answer."""
        messages = [{"role": "user", "content": prompt.prompt}]
        body = {"messages": messages, "max_tokens": probe.canary.max_tokens, "temperature": 0}
        asked = read_chat(msgspec.json.encode({**body, "model": f"device:{probe.device}"}))
        try:
            found = self._routing.ask(client, read_model(asked.model), asked, asked.bodies[0])
            async with contextlib.aclosing(found) as events:
                async for event in events:
                    if isinstance(event, Answer) and event.last is not None:
                        return prompt.is_met(event.last.text)
        except Failed as failed:
            return None if failed.problem.status in (429, 503, 504) else False
        return None
