"""How bytes come in: in parallel, in order, resumed, from another place, from poor servers, below a limit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.install.download.fetch_plan import plan_ranges, slices_of
from agent.install.download.mirrors import Mirrors
from agent.install.download.parallel_fetch import BURST_SECONDS, Bandwidth, ParallelFetcher
from agent.install.process.messages import Progressed
from agent.install.verify.bundle_verifier import verify_bundle
from contract.bundle.chunks import digest_chunks
from contract.bundle.manifest import FileEntry
from contract.errors import SourceUnavailable
from tests.agent.install.market import Device, Market
from tests.contract.source.servers import PlainHandler, RangeHandler, serve

MEGABYTE = 1 << 20


class Objects:
    """A repository of one object of random bytes."""

    def __init__(self, root: Path, size: int) -> None:
        (root / "objects").mkdir(parents=True)
        self.root = root
        self.data = os.urandom(size)
        sha256 = hashlib.sha256(self.data).hexdigest()
        self.path = root / "objects" / sha256
        self.path.write_bytes(self.data)
        _, chunks = digest_chunks(self.path)
        self.entry = FileEntry("weights.bin", size, sha256, "model", chunks)

    def fetch(self, *locations: str, parallel: int = 4, missing: set[int] | None = None) -> dict[int, bytes]:
        """What arrives from ``locations``, by its offset."""
        pieces = list(slices_of(self.entry))
        runs = plan_ranges(
            pieces, {piece.offset for piece in pieces} if missing is None else missing, max_range=MEGABYTE
        )
        fetcher = ParallelFetcher(Mirrors(locations), parallel)
        try:
            arrived = [(piece.offset, bytes(data)) for piece, data in fetcher.fetch(self.entry, runs)]
        finally:
            fetcher.close()
        assert arrived == sorted(arrived), "in the order of the plan"
        return dict(arrived)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects-of-a-mirror", 9 * MEGABYTE + 77)


class Counting(RangeHandler):
    """Remembers how many answers it gave and how many at the same time; made anew for every test."""

    lock = threading.Lock()
    sent = 0
    now = most = 0
    together = threading.Barrier(1)

    def do_GET(self) -> None:
        kind = type(self)
        with self.lock:
            kind.now += 1
            kind.most = max(kind.most, kind.now)
        if not self.headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            with contextlib.suppress(threading.BrokenBarrierError):
                self.together.wait(120)
        super().do_GET()
        with self.lock:
            kind.now -= 1

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length":
            with self.lock:
                type(self).sent += int(value)
        super().send_header(keyword, value)


def test_ranges_come_several_at_a_time_and_no_more(objects: Objects) -> None:
    class Handler(Counting):
        together = threading.Barrier(3)

    with serve(objects.root, Handler) as url:
        got = objects.fetch(url, parallel=3)
    assert b"".join(got.values()) == objects.data
    assert Handler.most == 3
    assert Handler.sent == len(objects.data)


def test_only_what_is_missing_is_asked_for(objects: Objects) -> None:
    class Handler(Counting):
        pass

    with serve(objects.root, Handler) as url:
        got = objects.fetch(url, missing={2 * MEGABYTE, 3 * MEGABYTE, 7 * MEGABYTE})
    assert sorted(got) == [2 * MEGABYTE, 3 * MEGABYTE, 7 * MEGABYTE]
    assert Handler.sent == 3 * MEGABYTE


def test_a_server_without_ranges_sends_the_file_once(objects: Objects) -> None:
    class Handler(Counting, PlainHandler):
        pass

    with serve(objects.root, Handler) as url:
        got = objects.fetch(url, missing={0, 2 * MEGABYTE, 5 * MEGABYTE, 8 * MEGABYTE})
    assert got[5 * MEGABYTE] == objects.data[5 * MEGABYTE : 6 * MEGABYTE]
    assert Handler.sent == len(objects.data)


class Cutting(RangeHandler):
    """Breaks off after ``bound`` bytes of every answer, or dies for good after ``answers``."""

    bound = MEGABYTE + 1000
    answers = 1 << 30

    def do_GET(self) -> None:
        kind = type(self)
        kind.answers -= 1
        self.close_connection = True
        if kind.answers < 0:
            return
        path = Path(self.translate_path(self.path))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            super().do_GET()
            return
        start, end = int(match[1]), int(match[2])
        data = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[start : min(end + 1, start + self.bound)])


def test_a_server_that_cuts_every_range_is_asked_again_for_the_rest(objects: Objects) -> None:
    pieces = list(slices_of(objects.entry))
    with serve(objects.root, Cutting) as url:
        fetcher = ParallelFetcher(Mirrors([url]), 2)
        runs = plan_ranges(pieces, {piece.offset for piece in pieces}, max_range=4 * MEGABYTE)
        got = b"".join(bytes(data) for _, data in fetcher.fetch(objects.entry, runs))
        fetcher.close()
    assert got == objects.data


def test_another_source_takes_over_in_the_middle_of_a_range(objects: Objects) -> None:
    class Dying(Cutting):
        answers = 3

    class Other(Counting):
        pass

    with serve(objects.root, Dying) as url, serve(objects.root, Other) as other:
        got = objects.fetch(url, other, parallel=2)
    assert b"".join(got.values()) == objects.data
    assert 0 < Other.sent < len(objects.data)


def test_a_source_with_other_bytes_is_replaced_by_one_with_the_right_ones(objects: Objects, tmp_path: Path) -> None:
    false = Objects(tmp_path / "false", 10)
    (false.root / "objects" / objects.path.name).write_bytes(b"x" * len(objects.data))
    got = objects.fetch(str(false.root), str(objects.root))
    assert b"".join(got.values()) == objects.data


def test_when_all_sources_fail_what_arrived_was_handed_over(objects: Objects) -> None:
    class Dying(Cutting):
        answers = 4

    arrived = []
    pieces = list(slices_of(objects.entry))
    with serve(objects.root, Dying) as url:
        fetcher = ParallelFetcher(Mirrors([url]), 1)
        with pytest.raises(SourceUnavailable):
            for piece, _ in fetcher.fetch(
                objects.entry, plan_ranges(pieces, {piece.offset for piece in pieces}, max_range=MEGABYTE)
            ):
                arrived.append(piece)
        fetcher.close()
    assert arrived == pieces[:4]


def test_an_installation_goes_on_where_a_dead_server_left_it(market: Market, device: Device) -> None:
    blob = os.urandom(6 * MEGABYTE)
    manifest = market.publish("1.0.0", {"extra.bin": blob})

    class Dying(Cutting):
        bound = 2 * MEGABYTE
        answers = 24

        def do_GET(self) -> None:
            # Only the large file wears the server out.
            if not self.path.endswith(hashlib.sha256(blob).hexdigest()):
                type(self).answers += 1
            elif type(self).answers > 2:
                type(self).answers = 2
            super().do_GET()

    repository = market.root / "repository"
    with serve(repository, Dying) as url, pytest.raises(SourceUnavailable):
        device.install(market.job(device.directory.root, "1.0.0", sources=[url], parallel_fetches=1))
    before = _last(device)
    assert 0 < before.done < before.total
    with serve(repository) as url:
        sealed = device.install(market.job(device.directory.root, "1.0.0", sources=[url], parallel_fetches=4))
    assert sealed is not None
    verify_bundle(sealed.directory, sealed.digest)
    after = _last(device)
    assert after.fetched == after.total - before.done
    assert manifest.total_bytes == after.total


def _last(device: Device) -> Progressed:
    return [line for line in device.lines if isinstance(line, Progressed)][-1]


# The limit.


@given(
    st.integers(1_000, 10_000_000),
    st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 2)), min_size=1, max_size=50),
)
def test_a_limit_holds_over_any_stretch_of_time(rate: int, arrivals: list[tuple[int, float]]) -> None:
    bandwidth = Bandwidth(rate)
    now = total = 0.0
    for count, pause in arrivals:
        now += pause
        total += count
        delay = bandwidth.delay(count, now)
        now += delay
        assert total <= rate * (now + BURST_SECONDS) + 1


def test_no_limit_means_no_waiting() -> None:
    assert Bandwidth(0).delay(1 << 40, 0.0) == 0.0


def test_the_network_is_held_to_the_limit_and_a_stick_is_not(objects: Objects) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def seconds_from(location: str) -> float:
        now[0] = 0.0
        fetcher = ParallelFetcher(Mirrors([location]), 1, bytes_per_second=MEGABYTE, clock=lambda: now[0], sleep=sleep)
        pieces = list(slices_of(objects.entry))
        for _ in fetcher.fetch(objects.entry, plan_ranges(pieces, {piece.offset for piece in pieces})):
            pass
        fetcher.close()
        return now[0]

    with serve(objects.root) as url:
        assert 8.0 <= seconds_from(url) <= 9.2
    assert seconds_from(str(objects.root)) == 0.0
