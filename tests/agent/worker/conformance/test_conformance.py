"""See :mod:`agent.worker.ports`. What is asked for here is said to every worker in the same words."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.engine.interface import Generation, Tools
from agent.worker.ports import Worker, WorkerStarter
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.errors import EngineFailed
from tests.agent.worker.double import DOUBLE, FakeWorkers
from tests.agent.worker.listening import PATIENCE, Listener, closed

LONG = 400
"""Tokens of an answer in whose middle something happens."""

PHONE = {
    "type": "function",
    "function": {
        "name": "phone",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "maxLength": 8}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}


class Kind:
    """A way to start a worker; ``good`` is a bundle that loads, ``bad`` one that does not."""

    def __init__(self, start: WorkerStarter, bad: WorkerStarter, good_bundle: Path, bad_bundle: Path) -> None:
        self._start = start
        self._bad = bad
        self._good_bundle = good_bundle
        self._bad_bundle = bad_bundle

    async def start(self, listener: Listener) -> Worker:
        return await self._start(WorkerSettings(threads=1), self._good_bundle, on_event=listener)

    async def fail(self) -> None:
        await self._bad(WorkerSettings(threads=1), self._bad_bundle, on_event=Listener())

    def run(self, scenario: Callable[[Worker, Listener], Awaitable[None]]) -> None:
        async def inner() -> None:
            listener = Listener()
            worker = await self.start(listener)
            try:
                await scenario(worker, listener)
            finally:
                await worker.close()

        asyncio.run(inner())


@pytest.fixture(params=["in process", "as process", "real"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "in process":
        failing = FakeWorkers()
        failing.failures = 1
        return Kind(FakeWorkers(), failing, tmp_path, tmp_path)
    if request.param == "as process":
        start = partial(WorkerProcess.start, command=DOUBLE)
        return Kind(start, start, tmp_path / "good", tmp_path / "refused")
    bundle = request.getfixturevalue("tiny_bundle")
    return Kind(WorkerProcess.start, WorkerProcess.start, bundle, tmp_path)


def count(request: int, tokens: int, **fields: Any) -> Generation:
    """The double does as it is told, and a model has no choice."""
    return Generation(request, "anna", prompt=f"count {tokens}", min_tokens=tokens, **{"max_tokens": tokens} | fields)


def held(request: int) -> Generation:
    """A long answer that is certainly in its middle after its first token: there the double waits to be let go."""
    return Generation(request, "anna", prompt=f"hold {LONG}", min_tokens=LONG, max_tokens=LONG)


def test_it_says_what_it_is(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        assert worker.facts.engine
        assert worker.facts.slots >= 1
        assert worker.facts.context_length > 0
        assert worker.isolation
        assert worker.pid > 0
        assert worker.peak_rss_bytes > 0
        assert 0 <= worker.silence < 1
        assert worker.usage is None or worker.usage[0].pid == worker.pid

    kind.run(scenario)


def test_an_answer_is_tokens_and_one_end(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(count(7, 5))
        await listener.ended(7)
        outcome = listener.outcomes[7]
        assert outcome.finish is not None
        assert outcome.text
        counts = [event.tokens for event in outcome.tokens]
        assert counts == sorted(counts)
        assert outcome.finish.completion_tokens == 5
        assert outcome.finish.prompt_tokens > 0
        assert set(listener.outcomes) == {7}

    kind.run(scenario)


def test_max_tokens_ends_an_answer_that_would_be_longer(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(Generation(1, "anna", prompt="count 50", min_tokens=4, max_tokens=4))
        worker.admit(Generation(2, "anna", prompt="count 50", min_tokens=3, max_tokens_limit=3))
        await listener.ended(1, 2)
        for number, tokens in ((1, 4), (2, 3)):
            finish = listener.outcomes[number].finish
            assert finish is not None
            assert (finish.reason, finish.completion_tokens) == ("length", tokens)

    kind.run(scenario)


def test_more_than_there_are_slots_are_all_answered(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        numbers = range(1, worker.facts.slots + 4)
        for number in numbers:
            worker.admit(count(number, 2 + number))
        await listener.ended(*numbers)
        for number in numbers:
            finish = listener.outcomes[number].finish
            assert finish is not None
            assert finish.completion_tokens == 2 + number

    kind.run(scenario)


def test_several_answers_of_one_request_end_together(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(count(1, 3, n=2, temperature=1.0, seed=3))
        await listener.ended(1)
        outcome = listener.outcomes[1]
        assert outcome.finish is not None
        assert {event.choice for event in outcome.tokens} <= {0, 1}
        assert len(outcome.finish.reasons) == 2
        assert outcome.finish.completion_tokens == 6
        assert outcome.finish.choice in (0, 1)

    kind.run(scenario)


def test_a_prompt_beyond_the_context_is_refused_and_the_others_go_on(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(Generation(1, "anna", prompt="many words " * worker.facts.context_length))
        worker.admit(count(2, 3))
        await listener.ended(1, 2)
        assert listener.outcomes[1].refused_kind == "invalid_request"
        assert listener.outcomes[1].refused_field == "prompt"
        assert listener.outcomes[2].reason

    kind.run(scenario)


def test_a_call_comes_with_its_name_first_and_its_arguments_are_json(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        tools = Tools([PHONE], choice="required", parallel=False)
        question = [{"role": "user", "content": "phone home"}]
        worker.admit(Generation(1, "anna", messages=question, tools=tools, max_tokens=60))
        await listener.ended(1)
        outcome = listener.outcomes[1]
        assert outcome.finish is not None
        assert outcome.reason == "tool_calls"
        deltas = [delta for event in outcome.tokens for delta in event.calls] + outcome.finish.calls
        assert deltas[0].name == "phone"
        assert deltas[0].id
        assert [delta.name for delta in deltas[1:] if delta.name] == []
        assert list(json.loads("".join(delta.arguments for delta in deltas))) == ["word"]

    kind.run(scenario)


def test_a_cancelled_answer_ends_once_and_the_other_goes_on(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(held(1))
        worker.admit(count(2, 30))
        await listener.until(lambda: 1 in listener.outcomes)
        worker.cancel(1)
        worker.cancel(1)
        worker.cancel(99)
        await listener.ended(1, 2)
        finish = listener.outcomes[1].finish
        assert finish is not None
        assert finish.reason == "cancelled"
        assert finish.completion_tokens < LONG
        assert listener.outcomes[2].finish is not None
        assert listener.outcomes[2].finish.completion_tokens == 30
        # Whatever would come twice has come before the end of one that was asked for later.
        worker.admit(count(3, 1))
        await listener.ended(3)
        assert set(listener.outcomes) == {1, 2, 3}

    kind.run(scenario)


def test_what_waits_for_a_slot_can_be_cancelled(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        last = worker.facts.slots + 1
        for number in range(1, last + 1):
            worker.admit(held(number))
        worker.cancel(last)
        await listener.ended(last)
        finish = listener.outcomes[last].finish
        assert finish is not None
        assert (finish.reason, finish.completion_tokens) == ("cancelled", 0)

    kind.run(scenario)


def test_an_update_holds_from_the_next_token_on(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(held(1))
        await listener.until(lambda: 1 in listener.outcomes)
        worker.update(1, {"max_tokens": 1})
        worker.update(99, {"max_tokens": 1})
        await listener.ended(1)
        finish = listener.outcomes[1].finish
        assert finish is not None
        assert finish.reason == "length"
        assert finish.completion_tokens < LONG

    kind.run(scenario)


def test_a_score_is_finite_and_an_ended_worker_gives_none(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        score = await worker.score("The capital of France is", " Paris.")
        assert score.finite
        assert score.tokens > 0
        await worker.close()
        with pytest.raises(EngineFailed, match="the worker has ended: closed"):
            await worker.score("a", "b")

    kind.run(scenario)


def test_closing_is_heard_by_everybody_and_nothing_is_said_afterwards(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        waiting = [asyncio.ensure_future(closed(worker)) for _ in range(2)]
        worker.admit(held(1))
        await listener.until(lambda: 1 in listener.outcomes)
        await worker.close()
        said = len(listener.outcomes[1].tokens)
        await worker.close()
        worker.admit(count(2, 3))
        worker.cancel(1)
        worker.update(1, {"max_tokens": 1})
        assert [await each for each in waiting] == ["closed", "closed"]
        assert await closed(worker) == "closed"
        assert len(listener.outcomes[1].tokens) == said
        assert set(listener.outcomes) == {1}
        assert not listener.has_ended(1)

    kind.run(scenario)


def test_killed_it_says_by_what_and_leaves_its_answers_open(kind: Kind) -> None:
    async def scenario(worker: Worker, listener: Listener) -> None:
        worker.admit(held(1))
        await listener.until(lambda: 1 in listener.outcomes)
        worker.kill()
        assert await closed(worker) == "killed by SIGKILL"
        worker.kill()
        assert not listener.has_ended(1)
        with pytest.raises(EngineFailed, match="the worker has ended: killed by SIGKILL"):
            await asyncio.wait_for(worker.score("a", "b"), PATIENCE)

    kind.run(scenario)


def test_a_bundle_that_does_not_load_is_an_error_of_the_engine(kind: Kind) -> None:
    with pytest.raises(EngineFailed):
        asyncio.run(kind.fail())


@pytest.mark.parametrize("start", [WorkerProcess.start, FakeWorkers.__call__], ids=["real", "double"])
def test_all_are_started_in_the_same_way(start: Callable[..., Any]) -> None:
    wanted = {name: each.kind for name, each in inspect.signature(WorkerStarter.__call__).parameters.items()}
    given = inspect.signature(start).parameters
    extra = set(given) - set(wanted)
    assert {name: given[name].kind for name in wanted if name != "self"} == {
        name: kind for name, kind in wanted.items() if name != "self"
    }
    assert all(given[name].default is not inspect.Parameter.empty for name in extra)
