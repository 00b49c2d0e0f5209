"""The server of the metrics page answers one question and survives all others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agent.telemetry.exposition import OPEN_METRICS, TEXT
from agent.telemetry.prometheus import MAX_CONNECTIONS, MAX_HEAD_BYTES, PrometheusEndpoint
from agent.telemetry.settings import PrometheusSettings
from contract.errors import ConfigInvalid


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
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda _kind: "x 1\n")
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
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda _kind: "x 1\n")
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

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_scraper_that_waits_ten_seconds_is_answered_by_an_agent_that_was_held_up_for_nine() -> None:
    async def scenario() -> None:
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda _kind: "x 1\n")
        await endpoint.listen(0)
        loop = asyncio.get_running_loop()
        time, ahead = loop.time, 0.0
        loop.time = lambda: time() + ahead  # type: ignore[method-assign]
        assert endpoint.port
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        while not endpoint._open:
            await asyncio.sleep(0)
        ahead = 9.0
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await endpoint.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (b"", TEXT),
        (b"Accept: text/plain\r\n", TEXT),
        (b"Accept: */*\r\n", TEXT),
        (b"accept: application/openmetrics-text\r\n", OPEN_METRICS),
        # What servers of the 2.x and 3.x lines send.
        (
            b"Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n",
            OPEN_METRICS,
        ),
        (
            b"Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            b"application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1\r\n",
            OPEN_METRICS,
        ),
        (b"Accept: application/openmetrics-text; version=0.0.1\r\n", TEXT),
        (b"Accept: application/openmetrics-text;q=0\r\n", TEXT),
        (b"Accept: text/plain\r\nAccept: application/openmetrics-text;q=0.2\r\n", TEXT),
        (b"Accept: application/openmetrics-text;q=nan, ;=;,\xff\r\n", TEXT),
    ],
)
def test_scraper_gets_the_format_that_it_prefers(accept: bytes, kind: str) -> None:
    async def scenario() -> None:
        endpoint = PrometheusEndpoint(PrometheusSettings(), lambda kind: f"x {len(kind)}\n")
        await endpoint.listen(0)
        answer = await ask(endpoint.port or 0, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Type: {kind}".encode() in head.split(b"\r\n")
        assert body == f"x {len(kind)}\n".encode()
        await endpoint.close()

    asyncio.run(scenario())


async def _try(port: int) -> bytes:
    try:
        return await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    except ConnectionError:
        return b""


def test_a_port_in_use_is_a_mistake_in_the_configuration() -> None:
    async def scenario() -> None:
        first = PrometheusEndpoint(PrometheusSettings(), lambda _kind: "")
        await first.listen(0)
        second = PrometheusEndpoint(PrometheusSettings(port=first.port or 1), lambda _kind: "")
        with pytest.raises(ConfigInvalid, match=r"telemetry\.prometheus"):
            await second.start()
        await first.close()

    asyncio.run(scenario())
