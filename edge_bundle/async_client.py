"""The client: any number of requests at a time over one connection, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal, TypeVar, overload

from contract.errors import SourceUnavailable, UsageError
from contract.identifiers import is_identifier
from contract.mqtt.topics import DEFAULT_ROOT, Topics, make_client_id
from edge_bundle.broker import BrokerAddress, parse_broker
from edge_bundle.broker_session import BrokerSession, Message
from edge_bundle.chat import AsyncChat
from edge_bundle.completion import Chunk, Completion, ParsedCompletion, to_chunk, to_completion
from edge_bundle.presence import DOCUMENTS, Device, Presence
from edge_bundle.replies import Answer, Found, is_refusal
from edge_bundle.request_session import RequestSession, control_message
from edge_bundle.structured import parse_answer, response_format

T = TypeVar("T")
Offline = Literal["refuse", "wait"]

DEFAULT_TIMEOUT = 600.0
"""Seconds: a long answer of a small box, behind others in its queue."""

GLANCE_SECONDS = 0.3
"""After a broker has granted a subscription, until a retained document of one device counts as not there."""

PRESENCE_SECONDS = 1.0
"""The same for the documents of all devices: brokers far away take a moment."""

LOOK_SECONDS = 3.0
"""After a subscription by MQTT 3.1.1, until what is retained is looked at again."""

LEFT_SECONDS = 60.0
"""After a request of a group was left before any member had answered: a member that answers then is told to stop."""


def client_name(name: str | None) -> str:
    """A client's name in the topics, a random one for None.

    Raises:
        UsageError: it cannot stand in a topic.
    """
    name = name or f"client-{secrets.token_hex(6)}"
    if not is_identifier(name):
        raise UsageError(f"{name!r} cannot be a client's name: use 1 to 64 of A-Z a-z 0-9 _ . -")
    return name


def session_name(name: str) -> str:
    """The MQTT client id of one connection: a broker ends the older of two that have the same."""
    return make_client_id(f"{name}-{secrets.token_hex(4)}")


class _Pending:
    """A request that somebody waits for, and what came for it. None: the connection came back or is closed."""

    def __init__(self, session: RequestSession) -> None:
        self.session = session
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()


class AsyncClient:
    """``async with AsyncClient("mqtt://localhost") as client: await client.complete(device="box", messages=[…])``.

    For any number of tasks of one event loop. ``device`` or ``group`` says who is asked, ``timeout`` for how many
    seconds, and other keywords are the fields of a request (docs/MQTT.md). A broken connection is bridged, a busy
    device is waited for (unless ``retry`` is false), and neither costs a second run.

    What is asked of a device that is unknown, offline or without a model is refused at once, with the nearest known
    name; ``offline="wait"`` leaves it with the broker instead until the device is there.

    Whoever stops waiting ends the request on the device: breaking out of a loop, cancelling the task, a time-out, an
    exception, leaving the client.

    Raises (on entering): SourceUnavailable, UsageError.
    """

    def __init__(self, address: BrokerAddress | str, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self.name = client_name(name)
        self._address = parse_broker(address) if isinstance(address, str) else address
        self._root = root
        self._topics = Topics("any", root)
        self._session: BrokerSession | None = None
        # Two may ask the same.
        self._pending: dict[str, list[_Pending]] = {}
        self._left: dict[str, RequestSession] = {}
        self._presence = Presence()
        self._heard = asyncio.Event()
        self._watched: dict[str, asyncio.Task[bool]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._settled_at: float | None = None

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect to the broker; entering does it.

        Raises:
            SourceUnavailable: it cannot be reached or refuses us. UsageError: a certificate file cannot be used.
        """
        loop = asyncio.get_running_loop()

        def call(function: Callable[..., None], *arguments: object) -> None:
            # A loop that has ended has nobody who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *arguments)

        unwanted = threading.Event()

        def open_session() -> BrokerSession:
            session = BrokerSession(
                self._address,
                session_name(self.name),
                on_message=lambda message: call(self._route, message),
                on_reconnect=lambda: call(self._on_reconnect),
            )
            try:
                session.subscribe(self._topics.client_replies_filter(self.name))
            except BaseException:
                session.close()
                raise
            if unwanted.is_set():
                session.close()
            return session

        try:
            self._session = await asyncio.to_thread(open_session)
        except asyncio.CancelledError:
            unwanted.set()  # the thread goes on
            raise

    async def close(self) -> None:
        """Cancel what is under way and end the connection."""
        session = self.leave()
        if session is not None:
            await asyncio.to_thread(session.close)

    def leave(self) -> BrokerSession | None:
        """Cancel what is under way; the connection, which is still to be closed."""
        session, self._session = self._session, None
        if session is not None:
            for pending in self._pending.values():
                self._cancel(session, pending[0].session)
            self._pending_ends()
            for task in self._watched.values():
                task.cancel()
            if self._looking is not None:
                self._looking.cancel()
        return session

    def _pending_ends(self) -> None:
        for pending in self._pending.values():
            for each in pending:
                each.inbox.put_nowait(None)

    def _route(self, message: Message) -> None:
        device, _, rest = message.topic.removeprefix(f"{self._root}/d/").partition("/")
        if message.topic.startswith(f"{self._root}/d/"):
            if rest in DOCUMENTS and is_identifier(device):
                self._presence.hear(device, rest, message.payload)
                self._heard.set()
            return
        *_, device, request_id = message.topic.rsplit("/", 2)
        for pending in self._pending.get(request_id, ()):
            pending.inbox.put_nowait(message)
        left = self._left.get(request_id)
        # Members that do not have it say that they cannot cancel it.
        if left is not None and self._session is not None and not is_refusal(message.payload):
            del self._left[request_id]
            self._session.send(*left.cancel(device))

    def _on_reconnect(self) -> None:
        self._look_again_soon()
        for pending in self._pending.values():
            for each in pending:
                each.session.reconnected(asyncio.get_running_loop().time())
                each.inbox.put_nowait(None)

    @overload
    async def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        parse: None = None,
        **fields: Any,
    ) -> Completion: ...

    @overload
    async def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        parse: type[T],
        **fields: Any,
    ) -> ParsedCompletion[T]: ...

    async def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        parse: type[Any] | None = None,
        **fields: Any,
    ) -> Completion:
        """The whole answer.

        ``parse``: a type (a msgspec Struct, a dataclass, ``list[str]`` …). Its JSON schema is what the answer is held
        to, and ``done.parsed`` is the answer read as it.

        Raises:
            SourceUnavailable: no answer in time, or the device cannot answer now. RequestInvalid: the request is at
            fault. EngineFailed: the device failed.
        """
        # The frames of a group say who of it answers.
        body = {"stream": group is not None, **fields}
        if parse is not None:
            body["response_format"] = response_format(parse)
        asked = self.ask(body, device=device, group=group, timeout=timeout, retry=retry, offline=offline)
        async with contextlib.aclosing(asked) as events:
            async for found in events:
                if isinstance(found, Answer):
                    done = to_completion(found)
                    return done if parse is None else parse_answer(done, parse)
        raise AssertionError("asking ends with an answer or an error")

    async def stream(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        **fields: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """The answer as it comes; the last chunk says why it ended. Breaking out of the loop ends it on the device.

        Raises:
            As :meth:`complete` does.
        """
        request_id = str(fields.setdefault("id", secrets.token_hex(8)))
        asked = self.ask(fields, device=device, group=group, timeout=timeout, retry=retry, offline=offline)
        async with contextlib.aclosing(asked) as events:
            async for found in events:
                if (chunk := to_chunk(request_id, found)) is not None:
                    yield chunk

    async def ask(
        self,
        body: dict[str, Any],
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = False,
        offline: Offline = "refuse",
    ) -> AsyncGenerator[Found, None]:
        """Send a request and yield what comes of it; an :class:`Answer` is the end. Closing this ends the request.

        ``body`` is the request; it gets an id if it has none.

        Raises:
            SourceUnavailable: no answer within ``timeout`` seconds, the device cannot be asked now, or the client was
            closed meanwhile. UsageError, RequestInvalid: as :class:`RequestSession` does.
        """
        session = self._opened()
        now = asyncio.get_running_loop().time
        asking = RequestSession(
            body, name=self.name, root=self._root, device=device, group=group,
            now=now(), timeout=timeout, retry=retry,
        )  # fmt: skip
        if offline == "refuse":
            # Where the time is up meanwhile, the request says so.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._refuse_absent(device, group)
        pending = _Pending(asking)
        self._pending.setdefault(asking.id, []).append(pending)
        over = False
        try:
            while True:
                if self._session is None:
                    raise SourceUnavailable("the client was closed before the answer came")
                for action in asking.actions(now()):
                    for topic, payload in asking.messages(action):
                        session.send(topic, payload)
                try:
                    async with asyncio.timeout(max(0.0, asking.due_at() - now())):
                        message = await pending.inbox.get()
                except TimeoutError:
                    continue
                if message is None:
                    continue
                for found in asking.feed(message.topic, message.payload, now()):
                    over = over or isinstance(found, Answer)
                    yield found
                    if isinstance(found, Answer):
                        return
        finally:
            self._forget(pending, over=over)

    def _forget(self, pending: _Pending, *, over: bool) -> None:
        asking = pending.session
        others = self._pending[asking.id]
        others.remove(pending)
        if others:
            return
        del self._pending[asking.id]
        if not over and self._session is not None:
            self._cancel(self._session, asking)

    def _cancel(self, session: BrokerSession, asking: RequestSession) -> None:
        """Nobody wants the answer any more: the device need not compute it."""
        if not asking.asked:
            return
        if asking.device is not None:
            session.send(*asking.cancel(asking.device))
            return
        # Which member has it is not known yet: those that are, are told, and whichever answers.
        for member, known in self._presence.members(asking.group or "").items():
            if known.online:
                session.send(*asking.cancel(member))
        if self._session is not None:
            self._left[asking.id] = asking
            asyncio.get_running_loop().call_later(LEFT_SECONDS, self._left.pop, asking.id, None)

    @property
    def connected(self) -> bool:
        """Whether the connection to the broker stands now."""
        return self._session is not None and self._session.connected

    @property
    def presence(self) -> Presence:
        """What is known of devices now, and kept up to date: of all of them once :meth:`devices` was called."""
        return self._presence

    async def devices(self) -> dict[str, Device]:
        """Devices that this broker knows, by name.

        Raises:
            SourceUnavailable: the broker does not let us read what they are.
        """
        if not await self._watch_all():
            raise SourceUnavailable(f"the broker {self._address.name} refuses to say which devices there are")
        return self._presence.devices()

    async def _refuse_absent(self, device: str | None, group: str | None) -> None:
        """Raises:
        SourceUnavailable: whoever is asked cannot answer now.
        """
        if (device is None) == (group is None) or not self._opened().connected:
            return  # the request says the first; where the broker is away nothing can be known

        def known() -> bool:
            return self._presence.may_answer(device=device, group=group)

        if known():
            return
        readable = True
        if device is not None and is_identifier(device):
            topics = Topics(device, self._root)
            readable = await self._watch(topics.status, topics.health)
            if await self._until(lambda: self._presence.device(device) is not None, GLANCE_SECONDS):
                await self._until(known, GLANCE_SECONDS)
                if (reason := self._presence.objection(device=device, group=None)) is None:
                    return
                raise SourceUnavailable(reason)
        if readable and await self._watch_all(known):
            reason = self._presence.objection(device=device, group=group)
            if reason is not None:
                raise SourceUnavailable(reason)

    async def _watch_all(self, enough: Callable[[], bool] = lambda: False) -> bool:
        """Read the documents of all devices, until ``enough`` or all are here; whether the broker lets us."""
        filters = [getattr(self._topics, kind).replace("/any/", "/+/", 1) for kind in DOCUMENTS]
        if not await self._watch(*filters):
            return False
        now = asyncio.get_running_loop().time()
        if self._settled_at is None:
            self._settled_at = now + PRESENCE_SECONDS
        await self._until(enough, max(0.0, self._settled_at - now))
        return True

    async def _watch(self, *filters: str) -> bool:
        """Subscribe, once; whether the broker grants it."""
        task = self._watched.get(filters[0])
        if task is None:
            task = self._watched[filters[0]] = asyncio.create_task(self._subscribe(*filters))
        granted = await asyncio.shield(task)
        if not granted:
            self._watched.pop(filters[0], None)
        return granted

    async def _subscribe(self, *filters: str) -> bool:
        try:
            await asyncio.to_thread(self._opened().subscribe, *filters)
        except SourceUnavailable:
            return False
        self._look_again_soon()
        return True

    def _look_again_soon(self) -> None:
        """Have retained documents sent again: NATS leaves out what is published in the moment of a subscription."""
        if self._session is not None and self._session.protocol == "3.1.1" and self._looking is None:
            self._looking = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        await asyncio.sleep(LOOK_SECONDS)
        self._looking = None
        # One that is away meanwhile subscribes again by itself, and comes here.
        with contextlib.suppress(SourceUnavailable):
            await asyncio.to_thread(self._opened().subscribe_again)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until documents that came make ``condition`` hold; whether they did in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            return condition()
        return True

    def _opened(self) -> BrokerSession:
        if self._session is None:
            raise UsageError("this client is not connected: use `async with AsyncClient(…) as client`")
        return self._session

    def chat(self, **options: Any) -> AsyncChat:
        """A conversation; ``system`` and what :meth:`complete` takes hold for every turn of it."""
        return AsyncChat(self, **options)

    async def cancel(self, device: str, request_id: str) -> None:
        """End a request of our own; its last frame says ``cancelled``."""
        await self._control(device, request_id, "cancel")

    async def update(self, device: str, request_id: str, **changes: Any) -> None:
        """Change sampling parameters of a request of our own; asking yields ``Refused`` if that is wrong."""
        await self._control(device, request_id, "update", set=changes)

    async def resume(self, device: str, request_id: str) -> None:
        """Ask for all text so far, or for the last frame, of a request of our own."""
        await self._control(device, request_id, "resume")

    async def _control(self, device: str, request_id: str, op: str, **more: Any) -> None:
        message = control_message(self._root, device, self.name, request_id, op, **more)
        await asyncio.to_thread(self._opened().publish, *message)
