"""The page keeps the rules of the exposition format; the server answers one question and survives all others."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from pathlib import Path

import pytest

from agent.telemetry.llm import LlmMeter
from agent.telemetry.prometheus import MAX_CONNECTIONS, MAX_HEAD_BYTES, PrometheusEndpoint, page
from agent.telemetry.samples import SystemSample
from agent.telemetry.settings import PrometheusSettings
from agent.telemetry.system import SystemSampler
from contract.errors import ConfigInvalid
from tests.agent.telemetry.trees import BOARD, PC, plant

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)')

Family = tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]


def parse(text: str) -> dict[str, Family]:
    """A strict reader of the format: HELP and TYPE once and first, families together, no sample twice."""
    families: dict[str, Family] = {}
    current = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families
            assert re.fullmatch(NAME, current)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert kind in ("counter", "gauge", "histogram")
            families[name] = (kind, {})
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        name, inner, value = found.groups()
        kind, samples = families[current]
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        assert name in {current + ending for ending in endings}
        assert kind != "counter" or name.endswith("_total")
        labels = []
        while inner:
            label = LABEL.match(inner)
            assert label is not None, inner
            labels.append((label[1], label[2]))
            inner = inner[label.end() :]
        key = (name, tuple(sorted(labels)))
        assert key not in samples
        samples[key] = float(value)
    return families


def check_histogram(name: str, family: Family) -> None:
    _, samples = family
    buckets = [
        (float(dict(labels)["le"]), value) for (key, labels), value in samples.items() if key == f"{name}_bucket"
    ]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1][0] == math.inf
    (count,) = [value for (key, _), value in samples.items() if key == f"{name}_count"]
    assert buckets[-1][1] == count


@pytest.mark.parametrize("tree", [PC, BOARD, {}])
def test_page_keeps_the_format_and_leaves_out_what_is_absent(tmp_path: Path, tree: dict[str, str]) -> None:
    plant(tmp_path, tree)
    system = SystemSampler(tmp_path, proc=tmp_path / "proc", sys=tmp_path / "sys").sample({7: "worker m@1"})
    meter = LlmMeter(5.0)
    meter.finish("stop", prompt_tokens=3, completion_tokens=2, first_token_seconds=0.2, total_seconds=500.0)
    families = parse(page("box", system, meter.sample(1, 2)))
    for name, family in families.items():
        if family[0] == "histogram":
            check_histogram(name, family)
    assert families["gen_ai_usage_output_tokens_total"][1] == {
        ("gen_ai_usage_output_tokens_total", (("device", "box"),)): 2
    }
    assert families["edge_requests_total"][1] == {("edge_requests_total", (("device", "box"), ("outcome", "stop"))): 1}
    assert ("edge_temperature_celsius" in families) == bool(tree)
    assert ("edge_swap_used_bytes" in families) == (tree is PC)
    assert ("edge_throttling" in families) == (tree is BOARD)
    assert not any(value == 0 for _, value in families.get("edge_temperature_celsius", ("", {}))[1].items())


def test_names_from_outside_are_escaped() -> None:
    system = SystemSample(1.0, temperatures={'a"b\\c\nd': 1.0})
    families = parse(page("box", system, LlmMeter(0.0).sample(0, 0)))
    ((_, labels),) = families["edge_temperature_celsius"][1]
    assert dict(labels)["sensor"] == r"a\"b\\c\nd"


async def ask(port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(question)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def test_endpoint_answers_metrics_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda: "x 1\n")
        await endpoint.start()
        assert endpoint.port is None
        await endpoint.listen(0)
        port = endpoint.port
        assert port
        good = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = good.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert b"Content-Length: 4" in head
        assert body == b"x 1\n"
        assert (await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        for question, status in (
            (b"GET / HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
            (b"\x16\x03\x01\r\n\r\n", b"400"),
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n", b"400"),
        ):
            assert (await ask(port, question)).split(b" ")[1] == status
        await endpoint.close()

    asyncio.run(scenario())


def test_endpoint_holds_few_connections() -> None:
    async def scenario() -> None:
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda: "x 1\n")
        await endpoint.listen(0)
        port = endpoint.port
        assert port
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        with contextlib.suppress(ConnectionError):
            reader, extra = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            extra.close()
        idle[0][1].close()
        await idle[0][1].wait_closed()
        while not (await _try(port)).startswith(b"HTTP/1.1 200"):
            await asyncio.sleep(0)
        for _, writer in idle:
            writer.close()
        await endpoint.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def _try(port: int) -> bytes:
    try:
        return await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    except ConnectionError:
        return b""


def test_a_port_in_use_is_a_mistake_in_the_configuration() -> None:
    async def scenario() -> None:
        first = PrometheusEndpoint(PrometheusSettings(), lambda: "")
        await first.listen(0)
        second = PrometheusEndpoint(PrometheusSettings(port=first.port or 1), lambda: "")
        with pytest.raises(ConfigInvalid, match=r"telemetry\.prometheus"):
            await second.start()
        await first.close()

    asyncio.run(scenario())
