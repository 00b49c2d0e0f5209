"""What clients do with requests in progress: cancel, update, resume. A wrong message is answered, never dropped."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from msgspec import UNSET

from agent.serving import requests
from agent.serving.active_request import ActiveRequest, StreamState
from agent.serving.events import CancelRequested, UpdateRequested
from agent.serving.intake import Intake
from agent.serving.loop import Loop
from agent.serving.replies import Replies
from agent.serving.requests import Refusal
from agent.serving.scheduler import Scheduler
from agent.serving.settlement import Settlement
from agent.state.result_store import Key, Verdict
from agent.state.result_writer import ResultWriter
from contract.errors import EdgeBundleError, RequestInvalid
from contract.mqtt import reading
from contract.mqtt.requests import ControlRequest

UNKNOWN = Refusal(404, requests.UNKNOWN_REQUEST, "no request with this id is known", "id")


class Controls:
    """``cancel`` ends a request wherever it is, ``update`` changes it, ``resume`` sends all of its text again."""

    def __init__(
        self, loop: Loop, scheduler: Scheduler, intake: Intake, result_store: ResultWriter, replies: Replies
    ) -> None:
        self._loop = loop
        self._scheduler = scheduler
        self._intake = intake
        self._result_store = result_store
        self._replies = replies
        self._now = asyncio.get_running_loop().time

    def receive(self, client: str, payload: bytes, settlement: Settlement) -> None:
        """A client acts on a request of its own; on anybody else's it has no effect, as its name is in the key.

        What is done only later runs under ``settlement``, too.
        """
        try:
            control = reading.parse_control(payload)
            changes = {} if control.set is UNSET else requests.read_changes(control.set)
        except RequestInvalid as error:
            op, request_id = reading.salvage_control(payload)
            self._replies.refuse_control(Key(client, request_id), op, requests.refusal_of(error))
            return
        key = Key(client, control.id)
        act = settlement.guarded(partial(self._act, key, control, changes, settlement))
        if not self._intake.defer(key, act):
            act()

    def _act(self, key: Key, control: ControlRequest, changes: dict[str, Any], settlement: Settlement) -> None:
        request = self._scheduler.requests.get(key)
        if request is None:
            future = self._result_store.look_up(key)
            future.add_done_callback(settlement.guarded(partial(self._found, key, control.op)))
        elif control.op == "cancel":
            self._loop.handle(CancelRequested(request))
        elif control.op == "update":
            self._loop.handle(UpdateRequested(request, changes))
        elif self._can_resume(request):
            for frame in request.frames.snapshot(self._now()):
                self._replies.piece(request, frame)

    def _can_resume(self, request: ActiveRequest) -> bool:
        """There is text that may leave now."""
        streams = request.running and request.stream is StreamState.OPEN
        return streams and not request.frames.empty and self._replies.writable

    def _found(self, key: Key, op: str, done: asyncio.Future[Verdict]) -> None:
        """What the result store knows of a request that is not at work here."""
        if isinstance(done.exception(), EdgeBundleError) or key in self._scheduler.requests:
            return
        verdict = done.result()
        if op != "resume":
            # Too late is no fault: the last frame carried how it ended.
            if verdict.kind == "refused":
                self._replies.refuse_control(key, op, UNKNOWN)
        elif verdict.last is not None:
            self._replies.repeat(key, verdict.last, None)
        elif verdict.kind == "gone":
            self._replies.error(key, requests.GONE, None)
        elif verdict.kind == "refused":
            self._replies.error(key, UNKNOWN, None)
