"""The page that shows the way of a prompt is true: its functions exist, and a prompt passes them in this order."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import socket
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from agent.engine.interface import Engine, FinishEvent, Generation, Progress
from agent.serving import settlement
from agent.serving.active_request import TRANSITIONS, State
from agent.worker import main, protocol
from agent.worker.supervisor import WorkerProcess
from tests.agent.device import Device, sealed
from tests.agent.serving.conftest import MakeDevice
from tests.agent.worker.double import DOUBLE
from tests.e2e.raw_client import RawClient

PAGE = (Path(__file__).parents[3] / "docs" / "ARCHITECTURE.md").read_text()
HOP = re.compile(r"^\| \d+ \| `([\w.]+):([\w.]+)` \|", re.MULTILINE)
AGENT, WORKER_PART = PAGE.split("| | in the worker", 1)
Hop = tuple[str, str]
AGENT_HOPS: list[Hop] = HOP.findall(AGENT)
WORKER_HOPS: list[Hop] = HOP.findall(WORKER_PART)


def function(hop: Hop) -> Any:
    found: Any = importlib.import_module(hop[0])
    for name in hop[1].split("."):
        found = getattr(found, name)
    return found


def code(hop: Hop) -> CodeType:
    found: CodeType = inspect.unwrap(function(hop)).__code__
    return found


def test_the_way_fits_on_a_page() -> None:
    assert 10 <= len(AGENT_HOPS) <= 15
    assert 5 <= len(WORKER_HOPS) <= 8
    assert len(PAGE.split("## The life of a request")[0].splitlines()) <= 50


def forwards(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it does nothing but hand its own arguments on, as they are."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if len(body) != 1 or not isinstance(body[0], ast.Expr | ast.Return):
        return False
    call = body[0].value.value if isinstance(body[0].value, ast.Await) else body[0].value
    if not isinstance(call, ast.Call):
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(isinstance(each, ast.Name | ast.Starred) for each in given)


@pytest.mark.parametrize("hop", [*AGENT_HOPS, *WORKER_HOPS], ids=":".join)
def test_no_hop_only_forwards(hop: Hop) -> None:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function(hop)))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert not forwards(node)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(self, a, b):\n    'doc'\n    return self.x.f(a, b=b)", True),
        ("async def f(self, a):\n    await self.x.f(a)", True),
        ("def f(self, a):\n    self.x.f(Wrapped(a))", False),
        ("def f(self, a):\n    self.count += 1\n    self.x.f(a)", False),
    ],
)
def test_what_only_forwards_is_known(source: str, expected: bool) -> None:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert forwards(node) is expected


class Follower:
    """Waits for one hop after the other, and notes through which modules each was reached from another one."""

    def __init__(self, hops: list[Hop]) -> None:
        self.left = [code(hop) for hop in hops]
        self.through: set[str] = set()
        self._hops = set(self.left)

    def __call__(self, frame: FrameType, _event: str, _argument: Any) -> None:
        if not self.left or frame.f_code is not self.left[0]:
            return
        self.left.pop(0)
        caller = frame.f_back
        while caller is not None and caller.f_code not in self._hops:
            self.through.add(caller.f_globals.get("__name__", ""))
            caller = caller.f_back


def follow(device: Device, follower: Callable[..., None] | None) -> None:
    async def set_trace() -> None:
        sys.settrace(follower)

    device.run(set_trace())


@pytest.mark.broker
def test_a_prompt_takes_this_way_through_the_agent(make_device: MakeDevice, client: RawClient, tmp_path: Path) -> None:
    workers: Any = partial(WorkerProcess.start, command=DOUBLE)
    bundle = sealed(directory=tmp_path / "bundle")
    device = make_device(workers=workers, stream_interval_ms=0).start(bundle)
    follower = Follower(AGENT_HOPS)
    follow(device, follower)
    try:
        client.ask("q", "hold 500")
        first = client.next_frame()[1]
        assert first.get("d"), first
        client.publish(f"edge/v1/d/{client.device}/control/{client.name}", b'{"id": "q", "op": "cancel"}')
        answer = client.wait_answer("q")
    finally:
        follow(device, None)
    assert answer.lasts[0]["text"].startswith(answer.frames[0]["d"])
    assert not follower.left
    # The link is what the packet came from, and the supervisor stands behind every step.
    named = {module for module, _ in AGENT_HOPS} | {settlement.__name__, "agent.mqtt.link"}
    assert {module for module in follower.through if module.startswith("agent.")} <= named


def test_a_prompt_takes_this_way_through_the_worker(tiny_bundle: Path) -> None:
    follower = Follower(WORKER_HOPS)
    ours, theirs = socket.socketpair()

    def open_and_follow(load: protocol.Load, progress: Progress) -> Engine:
        # Loading tries the model out, which is no prompt's way.
        engine = main._open_engine(load, progress)
        sys.settrace(follower)
        return engine

    def work() -> None:
        try:
            main.serve(theirs, open_and_follow)
        finally:
            sys.settrace(None)

    def read_until(last: type) -> None:
        unframer = protocol.Unframer()
        replies: list[protocol.Reply] = []
        while not (replies and isinstance(replies[-1], last)):
            data = ours.recv(1 << 16)
            assert data, replies
            replies += [protocol.parse_reply(body) for body in unframer.feed(data)]

    worker = threading.Thread(target=work)
    worker.start()
    ours.sendall(protocol.frame(protocol.Load(str(tiny_bundle), 1, max_bytes=8 << 20)))
    read_until(protocol.Loaded)
    generation = Generation(request=1, client="c", prompt="Say hello.", max_tokens=3)
    ours.sendall(protocol.frame(protocol.Admit(generation)))
    read_until(FinishEvent)
    ours.close()
    worker.join(120)
    theirs.close()
    assert not follower.left


def diagram() -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {State.QUEUED.value}: accepted"]
    lines += [f"    {before.value} --> {after.value}: {step.value}" for (before, step), after in TRANSITIONS.items()]
    lines += [f"    {state.value} --> [*]" for state in State if not any(before is state for before, _ in TRANSITIONS)]
    return "\n".join(lines)


def test_the_diagram_of_a_requests_life_is_the_table() -> None:
    _, _, life = PAGE.partition("## The life of a request\n")
    drawn = re.findall(r"```mermaid\n(.*?)\n```", life, re.DOTALL)[0]
    assert drawn == diagram()
