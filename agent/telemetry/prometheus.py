"""A page of metrics for Prometheus, and the small server that shows it; off unless configured.

The format is the text exposition format 0.0.4. The server answers ``GET /metrics`` and nothing else, takes few
connections at a time and holds none of them long: it can be starved, never the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Mapping

from msgspec import UNSET

from agent.telemetry.samples import HistogramSample, LlmSample, SystemSample
from agent.telemetry.settings import PrometheusSettings
from contract.errors import ConfigInvalid

log = logging.getLogger("edge_agent.prometheus")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_CONNECTIONS = 8
"""A scraper or two and a browser."""

MAX_HEAD_BYTES = 8192
"""A GET with every header that a proxy may add."""

SECONDS = 5.0
"""Reading the question and writing the answer, each."""

Labels = Mapping[str, str]


class PrometheusEndpoint:
    """Serves what ``page`` returns. Without a port every method does nothing."""

    def __init__(self, settings: PrometheusSettings, page: Callable[[], str]) -> None:
        self._settings = settings
        self._page = page
        self._server: asyncio.Server | None = None
        self._open = 0

    @property
    def port(self) -> int | None:
        """Where it listens."""
        return None if self._server is None else int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigInvalid: the address cannot be used.
        """
        if self._settings.port:
            await self.listen(self._settings.port)

    async def listen(self, port: int) -> None:
        """Listen on ``port`` (0: any free one). Raises ConfigInvalid."""
        host = self._settings.host
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=MAX_HEAD_BYTES)
        except (OSError, UnicodeError) as error:
            raise ConfigInvalid(
                f"telemetry.prometheus: {host}:{port} cannot be listened on: {error}; choose another port",
                field="telemetry.prometheus.port",
            ) from error
        log.info("metrics at http://%s:%d/metrics", host, self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(SECONDS):
                    try:
                        head = await reader.readuntil(b"\r\n\r\n")
                    except asyncio.LimitOverrunError:
                        head = b""
                async with asyncio.timeout(SECONDS):
                    writer.write(self._reply(head))
                    await writer.drain()
                    # Half-closed first: an abort could destroy what the reader has not taken yet.
                    if (sock := writer.get_extra_info("socket")) is not None:
                        with contextlib.suppress(OSError):
                            sock.shutdown(socket.SHUT_WR)
        finally:
            self._open -= 1
            writer.close()

    def _reply(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", "this is no HTTP/1.1 request\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "use GET\n", "Allow: GET, HEAD\r\n")
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return _response("404 Not Found", "the metrics are at /metrics\n")
        return _response("200 OK", self._page(), only_head=words[0] == b"HEAD")


def _response(status: str, body: str, more: str = "", *, only_head: bool = False) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n".encode() + (b"" if only_head else content)


def page(device: str, system: SystemSample | None, llm: LlmSample) -> str:
    """Everything that the samples say; what they do not say has no line."""
    metrics = _Page({"device": device})
    if system is not None:
        _machine(metrics, system)
    _model(metrics, llm)
    return metrics.text()


class _Page:
    """Families in order, each with its samples together, as the format demands."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, object]]) -> None:
        """A family; samples whose value is UNSET are left out, and a family without samples, too."""
        found = [(labels, value) for labels, value in samples if value is not UNSET]
        if found:
            self._head(name, kind, text)
            for labels, value in found:
                self._line(name, labels, value)

    def histogram(self, name: str, text: str, sample: HistogramSample) -> None:
        self._head(name, "histogram", text)
        for bound, count in zip([*sample.bounds, "+Inf"], sample.cumulative, strict=True):
            self._line(f"{name}_bucket", {"le": str(bound)}, count)
        self._line(f"{name}_sum", {}, sample.sum)
        self._line(f"{name}_count", {}, sample.count)

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def _line(self, name: str, labels: Labels, value: object) -> None:
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in {**self._labels, **labels}.items())
        self._lines.append(f"{name}{{{inner}}} {value!r}")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _machine(metrics: _Page, sample: SystemSample) -> None:
    add = metrics.add
    if sample.boot is not UNSET:
        add("edge_boot_time_seconds", "gauge", "Unix time of the machine's start.", [({}, sample.boot)])
    if (cpu := sample.cpu) is not UNSET:
        add("edge_cpu_percent", "gauge", "Busy share of all cores.", [({}, cpu.percent)])
        cores = [({"core": str(core)}, percent) for core, percent in enumerate(cpu.cores)]
        add("edge_cpu_core_percent", "gauge", "Busy share of each core.", cores)
    if sample.load is not UNSET:
        add("edge_load1", "gauge", "Load average over a minute.", [({}, sample.load[0])])
    if (memory := sample.memory) is not UNSET:
        add("edge_memory_total_bytes", "gauge", "Main memory.", [({}, memory.total)])
        add("edge_memory_available_bytes", "gauge", "Memory to be had without swapping.", [({}, memory.available)])
    if (swap := sample.swap) is not UNSET:
        add("edge_swap_used_bytes", "gauge", "Swap space in use.", [({}, swap.used)])
        add("edge_swap_in_bytes_total", "counter", "Swapped in since boot.", [({}, swap.in_bytes)])
        add("edge_swap_out_bytes_total", "counter", "Swapped out since boot.", [({}, swap.out_bytes)])
    if (disk := sample.disk) is not UNSET:
        add("edge_disk_free_bytes", "gauge", "Free space for the agent's state.", [({}, disk.free)])
        add("edge_disk_read_bytes_total", "counter", "Read by the disks since boot.", [({}, disk.read_bytes)])
        add("edge_disk_written_bytes_total", "counter", "Written by the disks since boot.", [({}, disk.write_bytes)])
    cards = {} if sample.network is UNSET else sample.network
    sent = [({"interface": name}, card.sent_bytes) for name, card in cards.items()]
    got = [({"interface": name}, card.received_bytes) for name, card in cards.items()]
    add("edge_network_sent_bytes_total", "counter", "Sent since boot.", sent)
    add("edge_network_received_bytes_total", "counter", "Received since boot.", got)
    pressures = {} if sample.pressure is UNSET else sample.pressure
    waits = [({"resource": name, "kind": kind}, getattr(value, kind)) for name, value in pressures.items()
             for kind in ("some", "full")]  # fmt: skip
    add("edge_pressure_percent", "gauge", "Share of 10 s in which something or everything waited.", waits)
    _sensors(metrics, sample)
    for name, text in (("rss", "Resident memory of our processes."), ("pss", "Their fair share of shared memory.")):
        found = [({"process": entry.name, "pid": str(entry.pid)}, getattr(entry, name)) for entry in sample.processes]
        add(f"edge_process_{name}_bytes", "gauge", text, found)


def _sensors(metrics: _Page, sample: SystemSample) -> None:
    degrees = {} if sample.temperatures is UNSET else sample.temperatures
    heat = [({"sensor": name}, value) for name, value in degrees.items()]
    metrics.add("edge_temperature_celsius", "gauge", "Temperatures.", heat)
    if sample.frequency_mhz is not UNSET:
        hertz = sample.frequency_mhz.current * 1_000_000
        metrics.add("edge_cpu_frequency_hertz", "gauge", "Mean clock of the cores.", [({}, hertz)])
    metrics.add("edge_throttled_total", "counter", "Times the cores slowed down to cool.", [({}, sample.throttled)])
    now = UNSET if sample.throttling is UNSET else int(sample.throttling)
    metrics.add("edge_throttling", "gauge", "1 while the cores are slowed down.", [({}, now)])


def _model(metrics: _Page, llm: LlmSample) -> None:
    add = metrics.add
    add("edge_start_time_seconds", "gauge", "Unix time since which the agent counts.", [({}, llm.start)])
    add("edge_requests_waiting", "gauge", "Requests that wait.", [({}, llm.queue)])
    add("edge_requests_active", "gauge", "Requests being answered.", [({}, llm.active)])
    add("edge_tokens_under_way", "gauge", "Tokens so far of answers that have not ended.", [({}, llm.generating)])
    ended = [({"outcome": name}, count) for name, count in llm.requests.items()]
    add("edge_requests_total", "counter", "Requests ended, by finish reason or error.", ended)
    refused = [({"error": name}, count) for name, count in llm.refused.items()]
    add("edge_refused_total", "counter", "Requests turned away, by error.", refused)
    for name in ("redelivered", "frames", "crashes", "swaps"):
        add(f"edge_{name}_total", "counter", f"Number of {name}.", [({}, getattr(llm, name))])
    for kind in ("input", "output", "cached"):
        count = getattr(llm, f"{kind}_tokens")
        add(f"gen_ai_usage_{kind}_tokens_total", "counter", f"Tokens: {kind}.", [({}, count)])
    for name, text, sample in (
        ("gen_ai_server_time_to_first_token_seconds", "From acceptance to the first token.", llm.time_to_first_token),
        ("gen_ai_server_time_per_output_token_seconds", "Between tokens.", llm.time_per_output_token),
        ("gen_ai_server_request_duration_seconds", "From acceptance to the end.", llm.request_duration),
        ("edge_queue_duration_seconds", "Waiting for a place.", llm.queue_duration),
    ):
        metrics.histogram(name, text, sample)
