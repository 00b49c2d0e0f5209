"""A whole agent in a memory cgroup, with a model of Phi's kind made small: two versions where both fit and where they
do not, and a limit that shrinks while it serves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import swap
from benchmarks.swap import Crowd, Site
from benchmarks.watching import GIB, killed_for_memory, memory_group
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from packager.build.pack import pack_bundle
from packager.build.plan import BuildPlan
from tests.e2e.raw_client import RawClient
from tests.packager.families import build_here
from tests.packager.graph.test_shared_data import scales_of_phi, with_scales
from tests.random_checkpoint import make_random_checkpoint, small_config

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

SPARE = 16 << 20


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary runs at the lowest priority, and gets little of a busy machine."""
    monkeypatch.setattr(swap, "WAIT_SECONDS", 900.0)


@pytest.fixture(scope="module")
def small_phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of it with an INT8 cache and short rotary tables, which stand in the graph file and are held more than
    once while it loads: beside weights of a few MB they would be most of it.
    """
    place = tmp_path_factory.mktemp("phi")
    make_random_checkpoint(place / "source", {**small_config("phi-3.5-mini"), "max_position_embeddings": 8192})
    scales_of_phi(place)
    build_here(place / "source", place / "graph", "int4", options=with_scales(place))
    pack_bundle(BuildPlan(str(place / "graph"), "phi", "1.0.0"), place / "bundle", cache=place / "cache")
    return place / "bundle"


@contextlib.contextmanager
def device(bundle: Path, root: Path, times: int) -> Iterator[tuple[Site, Path]]:
    """An agent with ``times`` the memory that the bundle asks for, as 4 and 8 GiB are for the real one."""
    least = parse_manifest((bundle / MANIFEST_FILE).read_bytes()).requires.min_ram_bytes
    with memory_group(times * (least + SPARE) / GIB) as group:
        assert group is not None
        site = Site(root, bundle, "overlap", group)
        try:
            yield site, group
        finally:
            site.close()


@pytest.mark.parametrize(("times", "mode"), [(1, "aside"), (2, "overlap")])
def test_two_versions_are_swapped_and_the_wait_was_said(small_phi: Path, tmp_path: Path, times: int, mode: str) -> None:
    with device(small_phi, tmp_path / "site", times) as (site, group):
        crowd = Crowd(site.broker.port, 2, 24)
        try:
            for version in (site.publish(), site.publish()):
                crowd.desire(site.name, version)
                crowd.wait(lambda version=version: crowd.runs(version), version)
                if not crowd.asking:
                    crowd.begin()
            crowd.end()
        finally:
            crowd.close()
        assert killed_for_memory(group) == 0
    assert [plan["mode"] for plan in crowd.plans] == [mode]
    assert crowd.swaps[-1]["mode"] == ("drain" if mode == "aside" else mode), "it had ended before it was replaced"
    assert crowd.swaps[-1]["queue_pause_ms"] <= 1000 * crowd.plans[0]["pause_seconds"] or mode == "overlap"
    lasts = [stream.lasts for stream in crowd.streams.values()]
    assert [len(each) for each in lasts] == [1] * len(lasts), "none is lost, none comes twice"
    assert [each for [each] in lasts if "error" in each] == []


def limit_file(group: Path) -> Path:
    """Of either version of cgroups."""
    second = group / "memory.max"
    return second if second.exists() else group / "memory.limit_in_bytes"


def limit_of(group: Path) -> int:
    return int(limit_file(group).read_text())


def set_limit(group: Path, limit: int) -> None:
    limit_file(group).write_text(str(limit))


def anonymous_bytes(group: Path) -> int:
    """What its processes have for themselves, which nobody takes back."""
    facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(facts.get("total_rss") or facts["anon"])


def next_health(client: RawClient, what: Any) -> dict[str, Any]:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        found = client.next_device_message("health", 600)
        if what(found):
            return found
    raise TimeoutError("no such health")


def test_a_limit_that_shrinks_ends_the_worker_and_loses_nothing(small_phi: Path, tmp_path: Path) -> None:
    with device(small_phi, tmp_path / "site", 2) as (site, group):
        crowd = Crowd(site.broker.port, 0, 1)
        version = site.publish()
        crowd.desire(site.name, version)
        crowd.wait(lambda: crowd.runs(version), version)
        crowd.close()
        client = RawClient(site.broker.port, "asker", "bench")
        next_health(client, lambda health: health["ready"])
        before = limit_of(group)
        set_limit(group, anonymous_bytes(group) + SPARE)
        for number in range(8):
            client.send(f"long-{number}", f"{number} " * 4000, max_tokens=4)
        told = next_health(client, lambda health: "message" in health)
        # The kernel may say by itself that memory is short, which is so.
        assert set(told["reasons"]) - {"throttled_memory"} == {"engine_unavailable"}
        assert not told["ready"]
        assert "killed by SIGKILL, which the kernel does where memory runs out" in told["message"]
        assert killed_for_memory(group) > 0
        assert site.agent.poll() is None, "the agent itself is spared"
        set_limit(group, before)
        lasts = [client.wait_answer(f"long-{number}", 600).lasts for number in range(8)]
        assert [len(each) for each in lasts] == [1] * 8
        faults = [each["error"] for [each] in lasts if "error" in each]
        assert all(fault["code"] in (500, 503) and fault["message"] for fault in faults)
        next_health(client, lambda health: health["ready"])
        client.ask("after", "again", max_tokens=4)
        assert "error" not in client.wait_answer("after", 600).lasts[0]
        client.close()
