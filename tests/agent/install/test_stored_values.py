"""Whatever stands in whatever column of ``state.db``: the agent starts, serves what it can, says what it set aside, and
never takes a floor of trust that it cannot read for a lower one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.diagnosis.state import trust as examine_trust
from agent.install.status import collect_status
from agent.serving.recovery import recover
from agent.serving.replies import Replies, Undelivered
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.integrity import MAX_KEPT
from agent.state.layout import StateDirectory
from agent.state.result_store import Key
from agent.state.result_writer import ResultWriter
from agent.state.schema import SCHEMA
from agent.telemetry.llm import LlmMeter
from contract.errors import BundleRefused
from contract.mqtt.reports import Reported
from contract.mqtt.topics import Topics
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active, stage_for
from tests.broker import Broker
from tests.e2e.raw_client import RawClient

DIGEST = "ab" * 32

TEXT_OF_BYTES = "CAST(? AS TEXT)"

HOSTILE: list[tuple[str, str, object]] = [
    ("nothing", "?", None),
    ("negative", "?", -1),
    ("huge", "?", 2**63 - 1),
    ("fraction", "?", 3.5),
    ("huge fraction", "?", 1e308),
    ("infinite", "?", float("inf")),
    ("empty", "?", ""),
    ("NUL", "?", "\0"),
    ("NUL within", "?", "IDLE\0"),
    ("no UTF-8", TEXT_OF_BYTES, b"\xff\xfe"),
    ("half a pair", TEXT_OF_BYTES, b"\xed\xa0\xbd"),
    ("long", "?", "x" * 2_000_000),
    ("path", "?", "../../etc"),
    ("truncated JSON", "?", b'{"revision":"r'),
    ("deep JSON", "?", b"[" * 100_000),
    ("no bytes", "?", b""),
    ("bytes", "?", bytes(range(256))),
]

STEP = int(os.environ.get("EDGE_STORED_VALUES_STEP", "4"))
"""Every column gets each so-manieth of them, beginning with another one; 1 gives all to all, in a minute or two."""

TABLES = (
    "bundles", "installation", "role_versions", "attempts", "quarantine", "swaps", "answers", "warnings", "adapters",
    "history", "metadata_expiry", "set_aside", "sqlite_sequence",
)  # fmt: skip


class Filled:
    """A device on which every table has rows; ``restore`` brings its state back to how it was."""

    def __init__(self, stage: Stage, root: Path) -> None:
        self.stage = stage
        self.place = stage.directory
        self._kept = root / "kept"
        shutil.copytree(self.place.root, self._kept, symlinks=True)

    def restore(self) -> None:
        for leftover in self.place.root.glob("state.db*"):
            leftover.unlink()
        shutil.copy(self._kept / "state.db", self.place.database)
        shutil.rmtree(self.place.trust)
        shutil.copytree(self._kept / "trust", self.place.trust)
        for bundle in (self._kept / "bundles").iterdir():
            if not (self.place.bundles / bundle.name).exists():
                shutil.copytree(bundle, self.place.bundles / bundle.name)
        self.restart()

    def restart(self) -> None:
        """As a new process, with an event loop of its own."""
        self.stage.restart()
        self.stage.news = asyncio.Event()

    def put(self, table: str, column: str, expression: str, value: object) -> None:
        """Write past every check that SQLite would make."""
        connection = sqlite3.connect(self.place.database)
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(replace(sql, ' STRICT', ''), 'NOT NULL', '')")
        connection.commit()
        connection.close()
        connection = sqlite3.connect(self.place.database)
        connection.execute("PRAGMA ignore_check_constraints=ON")
        try:
            connection.execute(f"UPDATE {table} SET {column} = {expression}", (value,))  # our own names
        except sqlite3.IntegrityError as error:
            if "datatype mismatch" in str(error):
                # A rowid, which holds nothing but integers in any file.
                connection.close()
                return
            # The same in more than one row of a key: in one of them, then.
            connection.execute(
                f"UPDATE {table} SET {column} = {expression} WHERE rowid = (SELECT max(rowid) FROM {table})",
                (value,),
            )
        connection.commit()
        connection.close()


async def fill(stage: Stage, market: Market) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()}, security_epoch=2)
    async with stage.agent() as reconciler:
        for version in ("1.0.0", "1.1.0"):
            reconciler.set_desired(desired(version))
            await stage.until(active(version))
        stage.state.raise_clock_floor(1_700_000_000)
    connection = sqlite3.connect(stage.directory.database)
    (first,) = connection.execute("SELECT previous FROM installation").fetchone()
    connection.execute("INSERT OR IGNORE INTO attempts VALUES (?, 2)", (DIGEST,))
    connection.execute(
        "INSERT OR IGNORE INTO quarantine VALUES (?, 'bad', '1.0.0', 'canary_drift', 'it drifts', 5)", (DIGEST,)
    )
    connection.execute("INSERT OR IGNORE INTO warnings VALUES ('expired', '', 'it expired', 5)")
    connection.execute("INSERT OR IGNORE INTO metadata_expiry VALUES ('root', 1900000000)")
    connection.execute("INSERT OR IGNORE INTO adapters VALUES (?, ?, 0)", (first, DIGEST))
    connection.execute(
        "INSERT INTO set_aside (source, reason, content, at, told) VALUES ('swaps', 'r', '{}', ?, 1)",
        (int(time.time()),),
    )
    for number, state in enumerate((0, 1, 2, 3, 4)):
        body = b'{"id":"q%d","prompt":"x"}' % number
        connection.execute(
            "INSERT INTO answers VALUES ('me', ?, 'f', ?, 1, 1000.0, 1e12, ?, x'71', ?, ?, 0)",
            (f"q{number}", state, time.time(), body if state < 2 else None, b"{}" if state in (2, 4) else None),
        )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Market, Filled]:
    root = tmp_path_factory.mktemp("filled")
    market = Market(root / "market", tiny_bundle)
    stage = stage_for(market, Device(root / "device"))
    asyncio.run(fill(stage, market))
    market.publish("1.2.0", {"README.md": b"newer"}, security_epoch=2)
    return market, Filled(stage, root)


@pytest.fixture
def market(home: tuple[Market, Filled]) -> Market:
    return home[0]


@pytest.fixture
def filled(home: tuple[Market, Filled]) -> Filled:
    home[1].restore()
    return home[1]


def columns(place: StateDirectory) -> Iterator[tuple[str, str]]:
    connection = sqlite3.connect(place.database)
    for table in TABLES:
        for row in connection.execute(f"PRAGMA table_info({table})").fetchall():
            yield table, row[1]
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
    connection.close()
    assert names == set(TABLES), "a new table: what its columns may hold stands in agent/state/columns.py"


class Outlet:
    """Remembers what was published."""

    writable, full = True, False

    def __init__(self) -> None:
        self.published: dict[str, bytes] = {}

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        correlation: bytes | None = None,
        on_answer: Callable[[Undelivered | None], None] | None = None,
    ) -> None:
        self.published[topic] = payload

    def publish_once(self, topic: str, payload: bytes, *, correlation: bytes | None = None) -> None: ...


async def read_all(place: StateDirectory) -> tuple[InstallationState, dict[str, bytes]]:
    """Everything that is read at a start, but for bundles and what the installation does about them."""
    database = Database(place.database, SCHEMA)
    state = InstallationState(database)
    snapshot = state.snapshot()
    state.role_versions(), state.clock_floor(), state.history.once_active(), state.warning_store.revoked()
    state.swaps_between(0, 2**40)
    state.count_attempt(snapshot.active or DIGEST)  # type: ignore[arg-type]
    outlet = Outlet()
    ledger = ResultWriter(database)
    replies = Replies(outlet, Topics("box"), ledger, LlmMeter(0.0))
    left = await recover(ledger, replies)
    assert all(isinstance(each.of.key, Key) for each in left)
    await ledger.close()
    return state, outlet.published


def test_any_value_in_any_column_is_read_or_set_aside(filled: Filled) -> None:
    state = InstallationState(Database(filled.place.database, SCHEMA))
    epoch, versions, clock = state.epoch(), state.role_versions(), state.clock_floor()
    assert (epoch, len(versions)) == (2, 4)
    state._database.close()
    seen = 0
    for number, (table, column) in enumerate(columns(filled.place)):
        for name, expression, value in HOSTILE[number % STEP :: STEP]:
            filled.restore()
            filled.put(table, column, expression, value)
            case = f"{name} in {table}.{column}"
            try:
                state, _ = asyncio.run(read_all(filled.place))
                collect_status(state, filled.place, Reported(None, "IDLE", None, None, None, None), running=False)
            except Exception as error:
                raise AssertionError(case) from error
            found = state.set_aside()
            seen += any(each.source.startswith(table) for each in found)
            assert len(found) <= MAX_KEPT, case
            lowered = (
                state.epoch() < epoch
                or state.clock_floor() < clock
                or any(state.role_versions().get(role, 0) < version for role, version in versions.items())
            )
            if lowered:
                with pytest.raises(BundleRefused) as caught:
                    state.check_floors()
                assert caught.value.reason is Reason.TRUST_STATE_LOST, case
            # That nothing is active is a state like any other.
            assert state.snapshot().active is not None or case == "nothing in installation.active", case
            state._database.close()
    assert seen > 600 / STEP, "most of them cannot be meant"


async def start(filled: Filled) -> None:
    async with filled.stage.agent() as reconciler:
        served = filled.stage.serving.bundle
        assert served is not None
        assert served.manifest.version in ("1.0.0", "1.1.0")
        unread = bool(filled.stage.state.set_aside())
        assert ("stored_data_invalid" in reconciler.warnings) == unread
        if unread:
            told = [each.reason for each in reconciler.reported.warnings]  # type: ignore[union-attr]
            assert "stored_data_invalid" in told


def test_the_installation_starts_with_any_column_hostile(filled: Filled) -> None:
    for number, (table, column) in enumerate(columns(filled.place)):
        name, expression, value = HOSTILE[(number + 1) % len(HOSTILE)]
        filled.restore()
        filled.put(table, column, expression, value)
        try:
            asyncio.run(start(filled))
        except Exception as error:
            raise AssertionError(f"{name} in {table}.{column}") from error


@pytest.mark.parametrize(
    ("table", "column"),
    [("role_versions", "version"), ("role_versions", "role"), ("installation", "epoch"),
     ("installation", "clock_floor"), ("set_aside", "source")],
)  # fmt: skip
def test_a_floor_that_cannot_be_read_refuses_installation_until_trust_is_provisioned(
    filled: Filled, market: Market, table: str, column: str
) -> None:
    filled.put(table, column, TEXT_OF_BYTES, b"\xff")
    filled.restart()

    async def install() -> Any:
        async with filled.stage.agent() as reconciler:
            assert filled.stage.serving.bundle is not None, "what is active serves"
            reconciler.set_desired(desired("1.2.0"))
            return await filled.stage.until(lambda reported: reported.error is not None or active("1.2.0")(reported))

    reported = asyncio.run(install())
    assert reported.error is not None
    assert reported.error.reason == "trust_state_lost"
    assert "trust provision" in reported.error.message
    assert [found.fix for found in examine_trust(filled.place) if found.verdict == "bad"] == [
        "edge-agent trust provision ROOT_JSON --replace"
    ], "doctor says so also before an installation is tried"
    state = InstallationState(Database(filled.place.database, SCHEMA))
    TrustStore(filled.place.trust, Disk()).reprovision(market.root_json.read_bytes(), state)
    state.check_floors()
    assert state.epoch() == 2
    assert not [found for found in examine_trust(filled.place) if "--replace" in found.fix]
    state._database.close()
    filled.restart()
    assert asyncio.run(install()).active.version == "1.2.0"


def test_a_request_that_cannot_be_restored_is_answered(filled: Filled) -> None:
    filled.put("answers", "attempt", "?", "often")
    _, published = asyncio.run(read_all(filled.place))
    answered = {topic.rsplit("/", 1)[1]: payload for topic, payload in published.items()}
    assert set(answered) == {f"q{number}" for number in range(5)}
    assert all(b"internal_error" in payload for payload in answered.values())


def test_the_active_bundle_is_found_again_by_what_was_active_last(filled: Filled) -> None:
    (digest,) = sqlite3.connect(filled.place.database).execute("SELECT active FROM installation").fetchone()
    filled.put("installation", "active", "?", "nonsense")
    state, _ = asyncio.run(read_all(filled.place))
    assert state.snapshot().active == digest
    state._database.close()


def test_a_bundle_is_read_anew_from_its_manifest(filled: Filled) -> None:
    filled.put("bundles", "name", "?", "\0")
    state, _ = asyncio.run(read_all(filled.place))
    assert sorted(bundle.reference for bundle in state.bundles()) == ["tiny@1.0.0", "tiny@1.1.0"]
    assert {bundle.security_epoch for bundle in state.bundles()} == {2}
    state._database.close()


@pytest.mark.broker
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("installation", "phase", "\0"), ("warnings", "reason", "unheard_of"), ("answers", "client", b"\xff")],
)
def test_a_real_agent_starts_all_the_same(
    filled: Filled, tmp_path: Path, table: str, column: str, value: object
) -> None:
    filled.put(table, column, "?", value)
    broker = Broker(tmp_path / "broker")
    broker.start()
    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "box"\nstate_dir = "{filled.place.root}"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
    )
    client = RawClient(broker.port, "me", "box")
    agent = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "run", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    try:
        health = client.next_device_message("health")
        while "stored_data_invalid" not in health.get("warnings", []):
            health = client.next_device_message("health")
        event = client.next_device_message("event/refused")
        assert event["detail"]["reason"] == "stored_data_invalid"
        assert table in event["detail"]["message"]
        assert agent.poll() is None
        client.close()
    finally:
        agent.kill()
        _, words = agent.communicate()
        broker.stop()
    assert "Traceback" not in words
