"""Plans look the bundle up where devices will: listed, revoked, its bytes, and what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.bundle.manifest import parse_manifest
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable, UsageError
from contract.identifiers import parse_reference
from contract.reasons import Reason
from contract.system.command_line import main
from fleet.catalogue import look_up, read_catalogue
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.rollout.model import Bundle
from fleet.rollout.plan import Needs, draft
from fleet.rollout.selector import Traits
from fleet.rollout.spec import read_spec
from fleet.store import devices
from fleet.store.database import Database, parse_database
from packager.publish import Repository
from tests.contract.source.servers import Connections, serve
from tests.contract.trust.samples import make_bundle


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A repository, the bundle that it lists, and the bytes of its files."""
    directory = tmp_path_factory.mktemp("depot")
    repository = Repository.init(directory / "repository", directory / "keys")
    bundle = make_bundle(directory / "bundle")
    repository.publish(bundle)
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    return repository.path, manifest.reference, sum(file.size for file in manifest.files)


def root_of(repository: Path) -> Path:
    return repository / "metadata" / "1.root.json"


def test_a_listed_bundle_is_found_with_its_digest_bytes_and_needs(depot: tuple[Path, str, int]) -> None:
    repository, reference, count = depot
    found = look_up(*parse_reference(reference), depot=str(repository), root=root_of(repository))
    assert (found.bundle.reference, found.bytes) == (reference, count)
    assert len(found.bundle.digest) == 64
    assert found.needs.arch


def test_what_is_not_listed_is_refused(depot: tuple[Path, str, int]) -> None:
    repository, _, _ = depot
    with pytest.raises(BundleRefused, match="is not listed"):
        look_up("other", "1.0.0", depot=str(repository), root=root_of(repository))


def test_no_connection_to_a_depot_outlives_the_look(depot: tuple[Path, str, int]) -> None:
    """Nor does it while somebody holds the refusal."""
    repository, reference, _ = depot
    open_now = Connections()
    with serve(repository, connections=open_now) as url:
        with pytest.raises(BundleRefused, match="is not listed") as refused:
            look_up("other", "1.0.0", depot=url, root=root_of(repository))
        assert open_now.until(0)
        found = read_catalogue(url, root_of(repository))
        assert open_now.until(0)
    assert [each.reference for each in found.listed.values()] == [reference]
    assert refused.value.reason is Reason.NOT_LISTED


def test_what_is_revoked_is_refused(tmp_path: Path) -> None:
    repository = Repository.init(tmp_path / "repository", tmp_path / "keys")
    bundle = make_bundle(tmp_path / "bundle")
    reference = parse_manifest((bundle / "manifest.json").read_bytes()).reference
    repository.publish(bundle)
    repository.revoke(reference)
    with pytest.raises(BundleRefused, match="was revoked"):
        look_up(*parse_reference(reference), depot=str(repository.path), root=root_of(repository.path))


def test_a_real_repository_is_read_whole_with_what_was_revoked(tmp_path: Path) -> None:
    repository = Repository.init(tmp_path / "repository", tmp_path / "keys")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        repository.publish(make_bundle(tmp_path / version, "model", version))
    repository.revoke("model@1.1.0")
    found = read_catalogue(str(repository.path), root_of(repository.path))
    assert [each.reference for each in found.listed.values()] == ["model@1.0.0", "model@1.2.0"]
    assert found.revoked == {"model@1.1.0"}
    for digest, manifest in found.listed.items():
        looked_up = look_up(manifest.name, manifest.version, depot=str(repository.path), root=root_of(repository.path))
        assert looked_up.bundle.digest == digest
    # With the root of somebody else nothing is believed, and what is not there is said.
    stranger = Repository.init(tmp_path / "stranger", tmp_path / "other-keys")
    with pytest.raises(BundleRefused):
        read_catalogue(str(repository.path), root_of(stranger.path))
    with pytest.raises(SourceUnavailable):
        read_catalogue(str(tmp_path / "nowhere"), root_of(repository.path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_catalogue(str(repository.path), tmp_path / "no-root.json")


@pytest.mark.parametrize(
    ("depot_", "root", "kind"),
    [("nowhere", None, SourceUnavailable), (None, "nowhere", UsageError), (None, "pyproject.toml", EdgeBundleError)],
)
def test_what_cannot_be_looked_up_is_said(
    depot: tuple[Path, str, int], depot_: str | None, root: str | None, kind: type[EdgeBundleError]
) -> None:
    repository, reference, _ = depot
    with pytest.raises(kind):
        look_up(
            *parse_reference(reference),
            depot=depot_ or str(repository),
            root=root_of(repository) if root is None else Path(root),
        )


def test_devices_that_cannot_run_it_are_left_out_before_anything_is_sent() -> None:
    boxes = [
        Traits(device="fits", arch="x86_64", ram=8 * 2**30),
        Traits(device="small", arch="x86_64", ram=2**30),
        Traits(device="other", arch="riscv64", ram=8 * 2**30),
        Traits(device="silent"),
    ]
    spec = read_spec({"bundle": "model@2.0.0", "where": "*", "waves": ["100%"]})
    needs = Needs(("x86_64",), 4 * 2**30)
    made = draft(spec, boxes, number=1, bundle=Bundle("model", "2.0.0"), by="ann", now=0.0, needs=needs)
    assert {target.device for target in made.wave_targets(1)} == {"fits", "silent"}
    assert {t.device: t.reason for t in made.wave_targets(0)} == {"small": "requires_ram", "other": "requires_arch"}
    with pytest.raises(EdgeBundleError, match="none of the 1 devices that are selected can run"):
        draft(spec, boxes[1:2], number=1, bundle=Bundle("model", "2.0.0"), by="ann", now=0.0, needs=needs)


def test_a_plan_says_how_many_bytes(
    depot: tuple[Path, str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, reference, count = depot
    url = f"sqlite:///{tmp_path}/fleet.db"
    database = Database(parse_database(url))
    database.create()
    with database.write() as connection:
        devices.take(connection, [devices.DeviceUpdate(device=f"box-{n}", at=1.0, online=True) for n in range(3)])
    words = [reference, "--where", "*", "--depot", str(repository), "--root", str(root_of(repository))]
    place = ["--database", url, "--json"]
    assert main("edge-fleet", DESCRIPTION, COMMANDS, ["rollout", "plan", *words, *place]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["looked_up"]
    assert sum(wave["bytes"] for wave in planned["waves"]) == 3 * count
    words[0] = "other@1.0.0"
    assert main("edge-fleet", DESCRIPTION, COMMANDS, ["rollout", "start", *words, *place]) == 3
    assert "not_listed" in capsys.readouterr().out
    database.close()
