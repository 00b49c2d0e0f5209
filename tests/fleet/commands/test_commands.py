"""The commands as operators use them: what they print, change, refuse, and how they exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from contract.system.command_line import main
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.rollout.actions import MoveTarget, MoveWave, NoteTarget, Publish
from fleet.rollout.model import Rollout
from fleet.rollout.states import TargetState, WaveState
from fleet.store import devices, outbox, rollouts
from fleet.store.database import Database, parse_database
from tests.fleet.simulate.device import SimulatedDevice


class Printed(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Printed]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a directory of its own, as ann."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_FLEET_USER", "ann")
    monkeypatch.delenv("EDGE_FLEET_DATABASE", raising=False)

    def run(*words: str) -> Printed:
        try:
            status = main("edge-fleet", DESCRIPTION, COMMANDS, words)
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Printed(status, captured.out, captured.err)

    return run


@pytest.fixture
def known(run: Run) -> Database:
    """Twelve devices in the database of the directory."""
    assert run("init").status == 0
    database = Database(parse_database("sqlite:///fleet.db"))
    with database.write() as connection:
        for number in range(12):
            device = SimulatedDevice(f"sim-{number}")
            said = {each.topic: each.payload.decode() for each in device.birth(1.0)}
            documents = {name: said[name] for name in ("info", "health", "reported")}
            devices.take(
                connection,
                [devices.DeviceUpdate(device=device.name, at=1.0, online=number > 0, seen_at=2.0, **documents)],
            )
            devices.change(connection, device.name, labels={"site": ("oslo", "bergen")[number % 2]})
    return database


def load(database: Database, number: int = 1) -> Rollout:
    with database.read() as connection:
        return rollouts.load(connection, number)


def test_a_database_is_made_once(run: Run) -> None:
    assert run("init").out == "made sqlite:///fleet.db\n"
    assert run("init").out == "it is there already: sqlite:///fleet.db\n"
    assert run("init", "--json").json == {"database": "sqlite:///fleet.db", "made": False}


@pytest.mark.parametrize(
    "words", [("devices",), ("device", "box"), ("audit",), ("rollout", "list"), ("rollout", "pause", "1")]
)
def test_without_a_database_it_says_how_to_make_one(run: Run, words: tuple[str, ...]) -> None:
    found = run(*words)
    assert (found.status, found.err) == (
        78, "edge-fleet: there is no database sqlite:///fleet.db: `edge-fleet init` makes it\n"
    )  # fmt: skip
    assert not Path("fleet.db").exists()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("devices", "--where", "sit=oslo"), 2, "did you mean `site`?"),
        (("devices", "--database", "mysql://host/x"), 2, "write the database as"),
        (("device", "other"), 2, "no device 'other' was heard yet"),
        (("device", "sim-1", "--label", "no"), 2, "'no' is not NAME=VALUE"),
        (("rollout", "plan", "model@2.0.0"), 2, "at where: Object missing required field `where`"),
        (("rollout", "plan", "model", "--where", "*"), 2, "is not NAME@VERSION"),
        (("rollout", "plan", "model@2.0.0", "--where", "site=bodo"), 2, "matches none of the 12 devices"),
        (("rollout", "plan", "model@2.0.0", "--where", "*", "--rollback", "wav"), 2, "did you mean `wave`?"),
        (("rollout", "plan", "model@2.0.0", "--where", "*", "--waves", "5,x"), 2, "at waves[1]: 'x' is neither"),
        (("rollout", "plan", "--spec", "none.toml"), 2, "none.toml cannot be read: No such file"),
        (("rollout", "plan", "model@2.0.0", "--where", "*", "--depot", "."), 2, "--depot and --root go together"),
        (("rollout", "pause", "7"), 2, "there is no rollout 7"),
        (("rollout", "watch", "7"), 2, "there is no rollout 7"),
        (("rollout", "show", "9" * 25), 2, f"there is no rollout {'9' * 25}"),
        (("rollout", "stop", "7"), 2, "invalid choice: 'stop'"),
        (("serve", "--roles", "controler"), 2, "did you mean controller?"),
        (("serve", "--broker", "http://host"), 2, "write the broker as"),
        (("serve", "--topic-root", "a b"), 78, "cannot be the topic root"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    run: Run, known: Database, words: tuple[str, ...], status: int, text: str
) -> None:
    found = run(*words)
    assert found.status == status
    assert text in found.err
    assert "Traceback" not in found.err
    with known.read() as connection:
        assert rollouts.numbers(connection) == []


def test_devices_are_listed_and_selected(run: Run, known: Database) -> None:
    assert "12 of 12 devices, 11 online" in run("devices").out
    found = run("devices", "--where", "site=oslo and online=true", "--json").json
    assert [each["device"] for each in found["devices"]] == ["sim-10", "sim-2", "sim-4", "sim-6", "sim-8"]
    assert found["devices"][0]["bundle"] == "model@1.0.0"
    assert run("devices", "--where", "site=bodo").out == "0 of 12 devices, 0 online\n"


def test_what_a_device_says_steers_no_terminal(run: Run, known: Database) -> None:
    with known.write() as connection:
        devices.mark_unreliable(connection, ["sim-1"], "\x1b[2J gone")
    assert "\x1b" not in run("devices").out + run("device", "sim-1").out


def test_a_device_is_labelled_pinned_and_relied_on_again(run: Run, known: Database) -> None:
    found = run("device", "sim-1", "--label", "site=bodo", "--label", "rack=3", "--pin")
    assert found.status == 0
    assert "ready, pinned" in found.out
    assert "rack=3, site=bodo" in found.out
    with known.write() as connection:
        devices.mark_unreliable(connection, ["sim-1"], "its counters fell")
    assert run("device", "sim-1", "--json").json["trouble"] == "its counters fell"
    found = run("device", "sim-1", "--unpin", "--clear-trouble", "--label", "rack=", "--json").json
    assert (found["pinned"], found["reliable"], found["labels"]) == (False, True, {"site": "bodo"})
    lines = run("audit", "--subject", "sim-1").out.splitlines()
    assert len(lines) == 3
    assert "ann" in lines[1]
    assert "device.change" in lines[1]


def test_a_plan_changes_nothing_and_start_does_what_it_printed(run: Run, known: Database) -> None:
    words = ("model@2.0.0", "--where", "*", "--waves", "1,50%,100%", "--holdout", "2", "--bake", "30m")
    text = run("rollout", "plan", *words).out
    assert "2 left out: holdout" in text
    assert "not looked up in a repository" in text
    assert "unknown bytes at most, 1.5 h to " in text
    planned = run("rollout", "plan", *words, "--json").json
    assert [len(wave["devices"]) for wave in planned["waves"]] == [1, 4, 5]
    assert (planned["rollout"], planned["hours_least"]) == (None, 1.5)
    with known.read() as connection:
        assert rollouts.numbers(connection) == []
    started = run("rollout", "start", *words, "--json").json
    assert (started["rollout"], started["state"]) == (1, "running")
    assert started["waves"] == planned["waves"]
    stored = load(known)
    assert [[t.device for t in stored.wave_targets(n)] for n in (1, 2, 3)] == [w["devices"] for w in planned["waves"]]
    assert stored.created_by == "ann"


def test_a_specification_is_a_file_that_options_override(run: Run, known: Database) -> None:
    Path("rollout.toml").write_text(
        'bundle = "model@2.0.0"\nwhere = "site=oslo"\nbake = "1h"\n[halt]\nmax_failures = 2\n'
    )
    assert run("rollout", "start", "--spec", "rollout.toml", "--bake", "2h").status == 0
    spec = load(known).spec
    assert (spec.bake, spec.halt.max_failures, spec.where) == (7200.0, 2, "site=oslo")


def test_a_plan_says_what_its_canary_asks(run: Run, known: Database) -> None:
    Path("rollout.toml").write_text(
        'bundle = "model@2.0.0"\nwhere = "*"\nwaves = [1, "100%"]\n'
        '[[canary.prompts]]\nprompt = "2 + 2?"\nexpect = "4"\n[[canary.prompts]]\nprompt = "3 + 3?"\nexpect = "6"\n'
    )
    text = run("rollout", "plan", "--spec", "rollout.toml").out
    assert "quality canary: 2 prompts, 20 requests a device before and 20 after, 480 in all" in text
    planned = run("rollout", "plan", "--spec", "rollout.toml", "--json").json
    assert [wave["prompts"] for wave in planned["waves"]] == [40, 440]


def test_all_faults_of_a_specification_are_printed(run: Run, known: Database) -> None:
    Path("rollout.toml").write_text('bundel = "model@2.0.0"\nbake = "soon"\n[gates]\nspeed = 1\n')
    found = run("rollout", "plan", "--spec", "rollout.toml")
    assert found.status == 2
    assert "did you mean `bundle`?" in found.err
    for field in ("bake", "gates.speed", "where"):
        assert f"  {field}: " in found.out


def test_a_rollout_is_steered_and_every_step_is_in_the_audit_log(
    run: Run, known: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("rollout", "start", "model@2.0.0", "--where", "*", "--approval")
    assert load(known).state == "waiting_approval"
    refused = run("rollout", "approve", "1")
    assert (refused.status, "ann is the author" in refused.err) == (2, True)
    monkeypatch.setenv("EDGE_FLEET_USER", "bob")
    assert run("rollout", "approve", "1").out.startswith("rollout 1 of model@2.0.0 is running")
    assert run("rollout", "pause", "1").out == "rollout 1 of model@2.0.0 is paused: paused by bob\n"
    again = run("rollout", "pause", "1")
    assert (again.status, "is paused and cannot be paused: only a running one can" in again.err) == (2, True)
    assert run("rollout", "resume", "1", "--json").json["state"] == "running"
    assert "there is nothing to accept" in run("rollout", "resume", "1").err + run("rollout", "pause", "1").out + (
        run("rollout", "resume", "1", "--accept", "why").err
    )
    assert run("rollout", "retry", "1").status == 2
    assert run("rollout", "abort", "1").out == "rollout 1 of model@2.0.0 is aborted: aborted by bob\n"
    assert run("rollout", "abort", "1").status == 2
    actions = [json.loads(line)["action"] for line in run("audit", "--json", "--subject", "rollout 1").out.splitlines()]
    assert actions == ["rollout.start", "rollout.approve", "rollout.pause", "rollout.resume", "rollout.pause",
                       "rollout.abort"]  # fmt: skip
    assert "the chain is whole" in run("audit", "--verify").out


def test_watching_ends_with_the_rollout_and_its_status(run: Run, known: Database) -> None:
    run("rollout", "start", "model@2.0.0", "--where", "*")
    waits = run("rollout", "watch", "1", "--timeout", "1ms")
    assert (waits.status, "rollout 1 is still running" in waits.err) == (4, True)
    assert run("rollout", "watch", "1", "--timeout", "soon").status == 2
    run("rollout", "abort", "1")
    ended = run("rollout", "watch", "1")
    assert ended.status == 3
    assert ended.out.startswith("rollout 1 of model@2.0.0 is aborted: aborted by ann\n")
    assert "1 is aborted" not in run("rollout", "list").out.splitlines()[0]
    assert "aborted by ann" in run("rollout", "list").out
    shown = run("rollout", "show", "1", "--json").json
    assert {each["state"] for each in shown["targets"]} == {"skipped"}


def test_a_newer_rollout_takes_the_devices_of_an_older_one(run: Run, known: Database) -> None:
    run("rollout", "start", "model@2.0.0", "--where", "site=oslo")
    run("rollout", "start", "model@2.1.0", "--where", "*")
    assert {str(target.state) for target in load(known, 1).targets.values()} == {"superseded"}
    with known.read() as connection:
        assert outbox.unsent(connection) == []


def test_a_devices_page_shows_what_it_was_asked(run: Run, known: Database) -> None:
    run("rollout", "start", "model@2.0.0", "--where", "*")
    with known.write() as connection:
        before = rollouts.load(connection, 1)
        name = next(iter(before.targets))
        rollouts.save(connection, before, [
            MoveTarget(name, TargetState.ASKED, changes={"attempt": 1}),
            Publish(name, "ro1.w1.a1", before.bundle),
            MoveTarget(name, TargetState.FAILED, "canary_drift", "it drifted", {"attempt": 1}),
        ], 5.0)  # fmt: skip
    text = run("device", name).out
    assert "canary_drift" in text
    assert "canary_drift" in run("rollout", "show", "1").out


def test_a_plan_says_when_its_window_opens_and_refuses_one_that_never_does(run: Run, known: Database) -> None:
    window = '[[windows]]\nfrom = "00:00"\nuntil = "24:00"\nzone = "Europe/Oslo"\n'
    Path("rollout.toml").write_text(f'bundle = "model@2.0.0"\nwhere = "*"\n{window}')
    assert "the next one is open from 20" in run("rollout", "plan", "--spec", "rollout.toml").out
    Path("rollout.toml").write_text(
        f'bundle = "model@2.0.0"\nwhere = "*"\nexpires = "1m"\ndeadline = "1m"\n{window}days = ["{_another_day()}"]\n'
    )
    refused = run("rollout", "plan", "--spec", "rollout.toml")
    assert (refused.status, "no maintenance window opens within 1 min" in refused.err) == (2, True)


def test_a_plan_says_what_is_fetched_ahead_and_watching_says_what_devices_wait_for(run: Run, known: Database) -> None:
    window = f'[[windows]]\nfrom = "22:00"\nuntil = "23:00"\nzone = "Europe/Oslo"\ndays = ["{_another_day()}"]\n'
    Path("rollout.toml").write_text(f'bundle = "model@2.0.0"\nwhere = "*"\nwaves = ["100%"]\nprefetch = true\n{window}')
    planned = run("rollout", "plan", "--spec", "rollout.toml").out
    assert "as much longer as its maintenance windows are closed" in planned
    assert "prefetch: devices fetch as soon as they are asked, and activate within the windows" in planned
    run("rollout", "start", "--spec", "rollout.toml")
    with known.write() as connection:
        before = rollouts.load(connection, 1)
        rollouts.save(connection, before, [
            MoveWave(1, WaveState.OPEN),
            *(MoveTarget(f"sim-{n}", TargetState.ASKED, changes={"attempt": 1}) for n in range(1, 6)),
            *(MoveTarget(f"sim-{n}", TargetState.INSTALLING) for n in range(1, 4)),
            *(NoteTarget(f"sim-{n}", {"reason": "waiting_for_window", "message": "opens at 22:00"}) for n in (1, 2)),
            MoveTarget("sim-0", TargetState.DEFERRED, "offline"),
            MoveTarget("sim-6", TargetState.DEFERRED, "pinned"),
        ], 5.0)  # fmt: skip
    waits = "2 asked, 2 deferred (offline 1, pinned 1), 3 installing (waiting_for_window 2), 5 pending"
    watched = run("rollout", "watch", "1", "--timeout", "1ms")
    assert watched.out.splitlines()[1] == f"  wave 1 is open: {waits}"
    shown = run("rollout", "show", "1").out
    assert waits in shown
    assert "opens at 22:00" in shown


def _another_day() -> str:
    """Two days from now, so that midnight is far away."""
    return (datetime.now(ZoneInfo("Europe/Oslo")) + timedelta(days=2)).strftime("%a").lower()
