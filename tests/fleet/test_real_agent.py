"""The fleet and a real agent: a signed bundle through the commands, and a bad one turned back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec import structs

from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.system.command_line import main
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.rollout.states import TargetState, TurnBack
from fleet.store import devices, outbox
from fleet.store.database import Database, parse_database
from fleet.store.devices import DeviceRow
from tests.fleet.stage import load, serving, wait_for_state
from tests.fleet.waiting import until
from tests.soak.world import World

pytestmark = pytest.mark.broker

SPEC = """
where = "device=soak"
bake = "3s"
deadline = "2m"
[gates]
tokens_per_second = false
first_token_p95 = false
error_rate = false
"""


def find(database: Database) -> DeviceRow | None:
    with database.read() as connection:
        return next(iter(devices.rows(connection, "soak")), None)


def test_a_real_device_gets_a_good_bundle_and_is_turned_back_from_a_bad_one(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    database = Database(parse_database(url))
    database.create()
    (tmp_path / "rollout.toml").write_text(SPEC)
    world = World(tmp_path, tiny_bundle)
    world.start()

    def start(reference: str) -> int:
        words = ["rollout", "start", reference, "--spec", str(tmp_path / "rollout.toml"), "--database", url, "--json"]
        place = ["--depot", world.market.location, "--root", str(world.market.root_json)]
        assert main("edge-fleet", DESCRIPTION, COMMANDS, [*words, *place]) == 0
        return int(json.loads(capsys.readouterr().out)["rollout"])

    try:
        with serving(database, world.broker.address):
            until(lambda: (row := find(database)) is not None and row.info is not None, "the device to be heard")
            good = start(f"tiny@{world.publish()}")
            found = wait_for_state(database, good, "done", "paused", "rolled_back")
            assert found.state == "done", found.reason
            row = find(database)
            assert row is not None
            assert (row.traits.bundle, row.trouble) == ("tiny@1.1.0", "")
            manifest = parse_manifest((tiny_bundle / MANIFEST_FILE).read_bytes())
            drifting = [structs.replace(each, mean_nll=each.mean_nll + 9) for each in manifest.canary]
            world.market.publish("1.9.0", canary=drifting)
            bad = start("tiny@1.9.0")
            found = wait_for_state(database, bad, "rolled_back")
            target = found.targets["soak"]
            assert (target.state, target.turn_back, target.reason) == (
                TargetState.ROLLED_BACK, TurnBack.DONE, "canary_drift"
            )  # fmt: skip
            row = find(database)
            assert row is not None
            assert row.traits.bundle == "tiny@1.1.0"
            with database.read() as connection:
                assert outbox.current(connection)["soak"].revision == f"ro{bad}.w1.a1.back"
            assert load(database, good).state == "done"
    finally:
        world.stop()
        database.close()
