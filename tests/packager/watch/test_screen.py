"""The picture: what an operator looks for stands there, at any size of the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from packager.watch.fleet import Fleet
from packager.watch.screen import draw, fit_reference
from tests.packager.watch.messages import ROOT, bundle, event, health, info, llm, message, reported, system


def picture(
    fleet: Fleet, *, only: str | None = None, width: int = 120, height: int = 40, connected: bool = True
) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(draw(fleet, title="here", only=only, connected=connected, now=100.0, width=width, height=height))
    return captured.get()


def device(fleet: Fleet, name: str, *, online: bool = True, **documents: object) -> None:
    plain = {"status": {"online": online, "boot_id": "b"}, "info": info("office"), "health": health(queue=3, active=8)}
    for kind, body in {**plain, "reported": reported(), **documents}.items():
        fleet.feed(message(name, kind, body, retained=True), 90.0)
    for number in range(20):
        fleet.feed(message(name, "telemetry/llm", llm(730 * number)), 10.0 * number - 100)
        fleet.feed(message(name, "telemetry/system", system(40.0 + number)), 10.0 * number - 100)


def test_one_device_in_full() -> None:
    fleet = Fleet(ROOT)
    progress = {"done": 60_000_000, "total": 90_000_000, "reused": 12_000_000, "seconds_left": 14}
    device(fleet, "kitchen-1", reported=reported("FETCH", progress=progress, previous=bundle("0.9.0")))
    fleet.feed(message("kitchen-1", "event/install", event(bundle="smollm2@1.0.0")), 95.0)
    text = picture(fleet, only="kitchen-1")
    for expected in (
        "1 of 1 online", "ready", "smollm2@1.0.0", "before: smollm2@0.9.0", "fetch 66 %", "60.0 of 90.0 MB",
        "73.0", "3 wait, 8 active", "3.0 of 4.0 GiB", "59 °C cpu_thermal", "4.0 GB free",
        "batched, 8 at once (every check passed)", "within 0.022 nats", "a lone row is rounded",
        "14 s left", "03:04:05 install smollm2@1.0.0 is installed", "▃", "█",
    ):  # fmt: skip
        assert expected in text, f"{expected}\n{text}"


def test_a_fleet_has_a_line_for_each_device_in_natural_order() -> None:
    fleet = Fleet(ROOT)
    device(fleet, "kitchen-10")
    device(fleet, "kitchen-2", online=False)
    error = {"reason": "store_full", "message": "no room"}
    device(fleet, "kitchen-1", health=health("engine_unavailable", ready=False), reported=reported(error=error))
    lines = [line for line in picture(fleet, width=160).splitlines() if "kitchen-" in line]
    assert [line.split()[0] for line in lines] == ["kitchen-1", "kitchen-2", "kitchen-10"]
    assert "engine_unavailable" in lines[0] and "no room [store_full]" in lines[0]
    assert "offline" in lines[1] and "73" not in lines[1]
    assert "ready" in lines[2] and "73" in lines[2] and "75 %" in lines[2]


@pytest.mark.parametrize(("prefetched", "text"), [(True, "fetched and verified"), (False, "not fetched yet")])
def test_a_device_that_waits_for_its_time_says_so_in_place_of_a_phase(prefetched: bool, text: str) -> None:
    fleet = Fleet(ROOT)
    message = "its maintenance window opens at 2026-12-05T22:00:00Z"
    waiting = {"reason": "waiting_for_window", "message": message, "prefetched": prefetched}
    device(fleet, "kitchen-1", reported=reported(waiting=waiting))
    assert f"waiting ({text}): {message}" in " ".join(picture(fleet, only="kitchen-1", width=160).split())


def test_what_needs_somebody_is_shown_when_not_all_fit() -> None:
    fleet = Fleet(ROOT)
    for number in range(30):
        device(fleet, f"kitchen-{number}", health=health("no_model", ready=False) if number == 29 else health())
    lines = [line for line in picture(fleet, height=20).splitlines() if "kitchen-" in line]
    assert len(lines) < 30
    assert lines[0].split()[:2] == ["kitchen-29", "no_model"]


def test_lost_connections_are_said() -> None:
    fleet = Fleet(ROOT)
    assert "nothing heard of kitchen-1" in picture(fleet, only="kitchen-1")
    device(fleet, "kitchen-1")
    assert "no connection to the broker" in picture(fleet, only="kitchen-1", connected=False)
    fleet.devices["kitchen-1"].heard = 10.0
    assert "silent for 90 s" in picture(fleet, only="kitchen-1")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    fleet = Fleet(ROOT)
    for number in range(70):
        device(fleet, f"kitchen-{number}") if number < 2 else fleet.feed(
            message(f"kitchen-{number}", "status", {"online": True, "boot_id": "b"}), 0.0
        )
    text = picture(fleet, width=width, height=height)
    assert max(map(len, text.splitlines())) <= width
    assert "more: watch a --group" in " ".join(text.split())


def test_versions_that_differ_are_seen_in_80_columns() -> None:
    fleet = Fleet(ROOT)
    for number, version in enumerate(["1.0.0", "1.1.0", "2.0.0-rc.1"]):
        name = {"name": "qwen2.5-coder-0.5b-instruct"}
        device(
            fleet, f"kitchen-{number}", reported=reported(active={**reported()["active"], **name, "version": version})
        )
    lines = [line for line in picture(fleet, width=80).splitlines() if "kitchen-" in line]
    assert [line.split()[2] for line in lines] == [
        "qwen2.5-coder…@1.0.0",
        "qwen2.5-coder…@1.1.0",
        "qwen2.5-…@2.0.0-rc.1",
    ]
    assert fit_reference("a@1.0.0-a-very-long-version", 12) == "…ong-version"


def test_probation_has_a_progress_of_its_own() -> None:
    fleet = Fleet(ROOT)
    progress = {"done": 90_000_000, "total": 90_000_000, "reused": 0}
    probation = {"seconds": 12.0, "of_seconds": 60.0, "requests": 9, "of_requests": 10}
    device(fleet, "kitchen-1", reported=reported("PROBATION", progress=progress, probation=probation))
    text = picture(fleet, only="kitchen-1")
    assert "probation 9/10 answers" in text
    assert "12 of 60 s, or 9 of 10 answers" in text
    assert "90.0 MB" not in text and "100 %" not in text
    device(fleet, "kitchen-1", reported=reported("CANARY", progress=progress))
    text = picture(fleet, only="kitchen-1")
    assert "canary" in text
    assert "90.0 MB" not in text and "100 %" not in text
