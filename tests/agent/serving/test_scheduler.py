"""Whatever happens in whatever order: nobody runs twice, nobody is forgotten, and each request ends exactly once."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent import serving
from agent.engine.interface import FinishEvent, RejectEvent, TokenEvent
from agent.serving import events
from agent.serving.active_request import ActiveRequest, State
from agent.serving.queue import AGING_SECONDS, NOTHING
from agent.serving.requests import Refusal
from agent.serving.scheduler import Scheduler
from agent.serving.settings import ServingSettings
from agent.serving.slots import UNAVAILABLE_AFTER_FAILURES, Slots
from agent.state.result_store import Key
from contract.mqtt.requests import GenerateRequest

QUEUE_LIMIT, CLIENT_LIMIT = 6, 4
OURS = Refusal(500, "internal_error", "a test")


def finished(number: int, reason: str = "stop") -> FinishEvent:
    return FinishEvent(number, reason, "", prompt_tokens=1, completion_tokens=1)  # type: ignore[arg-type]


class Bench:
    """A scheduler with what it ordered, as far as it is about requests."""

    def __init__(self, **options: object) -> None:
        limits = {"queue_limit": QUEUE_LIMIT, "client_queue_limit": CLIENT_LIMIT, **options}
        self.scheduler = Scheduler(ServingSettings(**limits))  # type: ignore[arg-type]
        self.now = 0.0
        self.names = itertools.count(1)
        self.accepted: list[ActiveRequest] = []
        self.ends: Counter[Key] = Counter()
        self.last: list[events.Command] = []

    def handle(self, event: events.Event) -> list[events.Command]:
        self.last = self.scheduler.handle(event, self.now)
        for command in self.last:
            if isinstance(command, events.EndCommand):
                self.ends[command.request.key] += 1
        return self.last

    def ready(self, capacity: int, reference: str = "toy@1.0.0") -> Slots:
        """A new current replica with another model."""
        slots = Slots(reference)
        self.handle(events.ReplicaReady(slots, capacity))
        self.handle(events.Switched(slots))
        return slots

    def accept(
        self,
        client: str = "a",
        *,
        priority: int = 4,
        deadline: float | None = None,
        key: str | None = None,
        n: int = 1,
    ) -> ActiveRequest:
        params = GenerateRequest(prompt="x", n=n, priority=priority, **({} if key is None else {"supersede_key": key}))
        request = self.scheduler.new_request(Key(client, str(next(self.names))), params, None, self.now)
        request.deadline, request.size = deadline, 10
        self.accepted.append(request)
        self.handle(events.RequestAccepted(request))
        return request

    def of(self, kind: type) -> list[ActiveRequest]:
        return [command.request for command in self.last if isinstance(command, kind)]  # type: ignore[attr-defined]


class Life(RuleBasedStateMachine):
    """Everything that can happen, in any order that the rest of serving can bring about."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(max_priority=9)
        self.scheduler = self.bench.scheduler
        self.limit: int | None = None

    def do(self, event: events.Event) -> None:
        before = {id(request) for request in self.scheduler.running}
        self.bench.handle(event)
        self.check_starts(before)

    def check_starts(self, before: set[int]) -> None:
        """Nothing runs that was not started, and nothing was started that may not run."""
        started = self.bench.of(events.Start)
        if started:
            assert self.scheduler.paused_since is None
            assert not self.scheduler.stopping
            assert self.limit is None or self.scheduler.active <= self.limit
        for command in self.bench.last:
            assert not isinstance(command, events.Start) or command.slots is self.scheduler.current
        assert {id(request) for request in self.scheduler.running} <= before | {id(request) for request in started}

    # -- requests

    @rule(
        client=st.sampled_from("abc"),
        priority=st.integers(0, 9),
        deadline=st.none() | st.floats(0, 40),
        key=st.none() | st.sampled_from(["view", "else"]),
    )
    def accept(self, client: str, priority: int, deadline: float | None, key: str | None) -> None:
        refusal = self.scheduler.refusal(client, 10, reserved=NOTHING, own=NOTHING)
        if refusal is None:
            due = None if deadline is None else self.bench.now + deadline
            before = {id(request) for request in self.scheduler.running}
            self.bench.accept(client, priority=priority, deadline=due, key=key)
            self.check_starts(before)
        else:
            assert refusal.retry_after_ms, "whoever is turned away may come again"

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.do(events.CancelRequested(data.draw(st.sampled_from(list(self.scheduler.requests.values())))))

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        self.do(events.UpdateRequested(data.draw(st.sampled_from(list(self.scheduler.requests.values()))), {"seed": 1}))

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.do(events.RequestFailed(data.draw(st.sampled_from(list(self.scheduler.requests.values()))), OURS))

    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        due = [request for request in self.scheduler.requests.values() if request.completed]
        if due:
            self.do(events.ResultStored(data.draw(st.sampled_from(due))))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.bench.now += seconds
        self.do(events.TimePassed())
        late = [request for request in self.bench.accepted if request.deadline and request.deadline <= self.bench.now]
        assert all(request.ending is not None or request.completed for request in late)

    # -- workers

    def _some_run(self, data: st.DataObject) -> tuple[Slots, int] | None:
        runs = [(slots, number) for slots in self.scheduler.replicas for number in slots.running]
        return data.draw(st.sampled_from(runs)) if runs else None

    @rule(data=st.data())
    def tokens(self, data: st.DataObject) -> None:
        if (run := self._some_run(data)) is not None:
            slots, number = run
            request = self.scheduler.add_tokens(slots, TokenEvent(number, "x", 1), self.bench.now)
            assert request is slots.running[number]
            request.frames.take(self.bench.now)

    @rule(data=st.data(), rejects=st.booleans())
    def end_run(self, data: st.DataObject, rejects: bool) -> None:
        if (run := self._some_run(data)) is not None:
            slots, number = run
            ended = RejectEvent(number, 400, "context_length", "too long") if rejects else finished(number)
            self.do(events.RunEnded(slots, ended))
            self.do(events.RunEnded(slots, ended))  # said twice, it is heard once

    # -- replicas

    @precondition(lambda self: self.scheduler.current is not None)
    @rule(load_failed=st.booleans())
    def lose(self, load_failed: bool) -> None:
        assert self.scheduler.current is not None
        self.do(events.ReplicaLost(self.scheduler.current, "killed", load_failed))

    @precondition(lambda self: self.scheduler.current is not None)
    @rule(capacity=st.integers(1, 3))
    def load_again(self, capacity: int) -> None:
        slots = self.scheduler.current
        assert slots is not None
        if not slots.running and not slots.unloaded:
            self.do(events.ReplicaReady(slots, capacity))

    @precondition(lambda self: self.scheduler.current is not None)
    @rule()
    def unload(self) -> None:
        slots = self.scheduler.current
        assert slots is not None
        if not slots.running and slots.capacity:
            self.do(events.ReplicaUnloading(slots))
            self.do(events.ReplicaUnloaded(slots))

    @rule(most=st.none() | st.integers(1, 3))
    def limit_concurrency(self, most: int | None) -> None:
        self.limit = most
        self.do(events.ConcurrencyLimited(most))

    # -- switchover

    @rule(capacity=st.integers(1, 3), overlap=st.booleans())
    def switch(self, capacity: int, overlap: bool) -> None:
        old = self.scheduler.current
        if not overlap:
            self.do(events.Paused())
            if old is not None:
                self.do(events.DrainTimedOut(old))
                self.do(events.ReplicaClosed(old))
        slots = Slots("other@1.0.0")
        self.do(events.ReplicaReady(slots, capacity))
        self.do(events.Switched(slots, old if overlap else None))

    @rule()
    def end_drains(self) -> None:
        for slots in list(self.scheduler.draining):
            self.do(events.DrainTimedOut(slots))
            self.do(events.ReplicaClosed(slots))
            self.do(events.DrainEnded(slots))

    @rule()
    def pause(self) -> None:
        self.do(events.Paused())

    @rule()
    def resume(self) -> None:
        self.do(events.Resumed(self.scheduler.current))

    @rule()
    def stop(self) -> None:
        self.do(events.Stopped(self.scheduler.current))

    @rule(event=st.sampled_from([events.StartupFinished(), events.ModelUnavailable()]))
    def tell(self, event: events.Event) -> None:
        self.do(event)

    # -- what holds

    @invariant()
    def everyone_is_where_its_state_says(self) -> None:
        queued = {id(request) for request in self.scheduler.queue}
        running = Counter(id(request) for request in self.scheduler.running)
        for request in self.bench.accepted:
            assert (id(request) in queued) == (request.state is State.QUEUED)
            assert running[id(request)] == request.running
            assert self.bench.ends[request.key] == request.completed
            assert (request.key in self.scheduler.requests) == (request.state is not State.DONE)
            assert request.state is not State.CANCELLING or request.ending is not None

    @invariant()
    def no_replica_has_more_than_it_takes(self) -> None:
        for slots in self.scheduler.replicas:
            assert len(slots.running) <= slots.capacity
            if any(request.crashes for request in slots.running.values()):
                assert len(slots.running) == 1, "who lost a worker runs alone"

    @invariant()
    def the_queue_is_bounded(self) -> None:
        fresh = Counter(request.key.client for request in self.scheduler.queue if request.attempt == 1)
        assert fresh.total() <= QUEUE_LIMIT
        assert max(fresh.values(), default=0) <= CLIENT_LIMIT

    @invariant()
    def no_slot_stays_free_for_want_of_a_look(self) -> None:
        scheduler = self.scheduler
        first = scheduler.queue.peek(self.bench.now)
        if first is None or scheduler.current is None or scheduler.paused_since is not None:
            return
        below = self.limit is None or scheduler.active < self.limit
        assert not (below and scheduler.current.takes(first))
        assert scheduler.closed() is None, "nobody waits for what will not be there"

    def teardown(self) -> None:
        """Once there is a replica that lives, all who were accepted get their one result."""
        self.limit = None
        self.do(events.ConcurrencyLimited(None))
        self.switch(2, False)
        self.end_drains()
        for _ in range(3 * len(self.bench.accepted)):
            for slots in self.scheduler.replicas:
                for number in list(slots.running):
                    self.do(events.RunEnded(slots, finished(number)))
        assert not len(self.scheduler.queue)
        assert [self.bench.ends[request.key] for request in self.bench.accepted] == [1] * len(self.bench.accepted)
        for request in list(self.scheduler.requests.values()):
            self.do(events.ResultStored(request))
        assert not self.scheduler.requests


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("state", list(State))
def test_cancel_in_every_state(state: State) -> None:
    bench = Bench()
    slots = bench.ready(1)
    other = bench.accept() if state is State.QUEUED else None
    request = bench.accept()
    if state in (State.CANCELLING, State.COMPLETING, State.DONE):
        bench.handle(events.CancelRequested(request))
    if state in (State.COMPLETING, State.DONE):
        bench.handle(events.RunEnded(slots, finished(request.number, "cancelled")))
    if state is State.DONE:
        bench.handle(events.ResultStored(request))
    assert request.state is state
    bench.handle(events.CancelRequested(request))
    if state is State.QUEUED:
        assert other is not None
        assert bench.of(events.EndEarly) == [request]
        assert other.running, "nobody else is meant"
    elif state is State.RUNNING:
        assert bench.last == [events.CancelRun(slots, request.number)]
        assert request.state is State.CANCELLING
    else:
        assert bench.last == [], "it is to end, or has ended"
    assert bench.ends[request.key] == (state not in (State.RUNNING, State.CANCELLING))


@pytest.mark.parametrize("lose", [True, False], ids=["its worker dies", "its worker is replaced"])
def test_what_was_cancelled_is_not_run_again(lose: bool) -> None:
    bench = Bench()
    slots = bench.ready(1)
    request = bench.accept()
    bench.handle(events.CancelRequested(request))
    bench.handle(events.ReplicaLost(slots, "killed") if lose else events.DrainTimedOut(slots))
    assert bench.of(events.EndEarly) == [request]
    assert request.state is State.COMPLETING


def test_the_newest_of_a_key_is_the_only_one_left() -> None:
    bench = Bench()
    slots = bench.ready(1)
    first, second, third = (bench.accept(key="view") for _ in range(3))
    stranger = bench.accept("b", key="view")
    assert [first.state, second.state, third.state] == [State.CANCELLING, State.COMPLETING, State.QUEUED]
    assert stranger.state is State.QUEUED, "its client is another one"
    for request in (first, stranger):
        bench.handle(events.RunEnded(slots, finished(request.number)))
    assert third.running


def test_nobody_waits_for_ever_behind_a_flood_of_the_most_urgent() -> None:
    bench = Bench(max_priority=9, queue_limit=100, client_queue_limit=50)
    slots = bench.ready(1)
    bench.accept("flood", priority=9)
    patient = bench.accept("patient", priority=0)
    while not patient.running:
        assert bench.now <= 10 * AGING_SECONDS
        bench.now += 1.0
        bench.accept("flood", priority=9)
        (running,) = slots.running
        bench.handle(events.RunEnded(slots, finished(running)))


def test_one_that_lost_its_worker_goes_before_all_others() -> None:
    bench = Bench(max_priority=9)
    slots = bench.ready(1)
    lost = bench.accept(priority=0)
    urgent = bench.accept("b", priority=9)
    bench.handle(events.ReplicaLost(slots, "killed"))
    bench.handle(events.ReplicaReady(slots, 2))
    assert (lost.running, lost.attempt, urgent.running) == (True, 2, False)


def test_a_replica_that_cannot_be_loaded_again_keeps_nobody_waiting() -> None:
    bench = Bench()
    slots = bench.ready(1)
    running, waiting = bench.accept(), bench.accept()
    for _ in range(UNAVAILABLE_AFTER_FAILURES - 1):
        bench.handle(events.ReplicaLost(slots, "no memory", load_failed=True))
    assert waiting.state is State.QUEUED
    bench.handle(events.ReplicaLost(slots, "no memory", load_failed=True))
    assert {running.state, waiting.state} == {State.COMPLETING}
    refusal = bench.scheduler.refusal("a", 1, reserved=NOTHING, own=NOTHING)
    assert refusal is not None
    assert refusal.kind == "engine_unavailable"


def test_a_fault_at_one_request_is_reported_and_the_next_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.handle(events.Paused())
    broken, next_one = bench.accept(), bench.accept()

    def fail(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(broken.frames, "begin", fail)
    slots = Slots("toy@1.0.0")
    bench.handle(events.ReplicaReady(slots, 1))
    bench.handle(events.Switched(slots))
    (fault,) = [command for command in bench.last if isinstance(command, events.ReportFault)]
    assert fault.request is broken
    bench.handle(events.RequestFailed(broken, OURS))
    assert bench.of(events.Fail) == [broken]
    assert bench.of(events.Start) == [next_one]


def test_several_answers_take_several_slots_and_never_wait_for_ever() -> None:
    bench = Bench()
    slots = bench.ready(3)
    pair, one, many = bench.accept(n=2), bench.accept(), bench.accept(n=9)
    after = bench.accept()
    assert set(slots.running) == {pair.number, one.number}
    bench.handle(events.RunEnded(slots, finished(pair.number)))
    assert set(slots.running) == {one.number}, "nobody passes the one whose turn it is"
    bench.handle(events.RunEnded(slots, finished(one.number)))
    assert set(slots.running) == {many.number}, "more answers than slots run alone"
    bench.handle(events.RunEnded(slots, finished(many.number)))
    assert set(slots.running) == {after.number}


def test_a_limit_of_concurrency_counts_answers() -> None:
    bench = Bench()
    slots = bench.ready(4)
    bench.handle(events.ConcurrencyLimited(2))
    one, pair = bench.accept(), bench.accept(n=2)
    assert set(slots.running) == {one.number}
    bench.handle(events.RunEnded(slots, finished(one.number)))
    assert set(slots.running) == {pair.number}


PURE = ("scheduler", "slots", "events", "active_request", "queue", "frames", "output", "statistics", "requests")
EFFECTS = {"asyncio", "time", "random", "logging", "threading", "sqlite3", "socket", "os", "pathlib", "datetime"}


@pytest.mark.parametrize("name", PURE)
def test_what_decides_does_nothing_else(name: str) -> None:
    """No I/O, no clock, no tasks, nothing that has them."""
    source = Path(serving.__file__).parent / f"{name}.py"
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            imported.add(module.partition(".")[0])
            if module == "agent.serving":
                imported |= {f"agent.serving.{alias.name}" for alias in node.names}
            else:
                imported.add(module)
    assert not imported & EFFECTS
    assert {each for each in imported if each.startswith("agent.serving.")} <= {
        f"agent.serving.{p}" for p in (*PURE, "settings")
    }
