"""Publishing: atomic, resumable, one at a time, never replacing; keys on several machines; rotation and revocation."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from contract.errors import BuildRefused, BundleRefused, StoreBroken
from contract.reasons import Reason
from contract.source.directory import DirectorySource
from contract.source.tar import TarSource
from contract.system.durable import Disk, Effects
from packager.publish import Repository, report
from packager.publish.keyring import KeyRing
from packager.publish.repository import LOCK_FILE
from tests.contract.trust.publisher import Device
from tests.contract.trust.samples import NOW, make_bundle, make_repository

T = TypeVar("T")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def device_for(repository: Repository, path: Path) -> Device:
    return Device(path, (repository.path / "metadata/1.root.json").read_bytes())


def reopened(repository: Repository, keys: Path) -> Repository:
    return Repository(repository.path, KeyRing(keys, None), clock=lambda: NOW)


def test_a_published_bundle_is_accepted_by_a_device(repository: Repository, bundle: Path, tmp_path: Path) -> None:
    assert repository.publish(bundle).published
    device = device_for(repository, tmp_path / "trust")
    trusted = device.resolve(DirectorySource(repository.path))
    assert trusted.stored == (bundle / "manifest.json").read_bytes()
    for entry in trusted.manifest.files:
        assert (repository.path / "objects" / entry.sha256).read_bytes() == (bundle / entry.path).read_bytes()
    assert report.verify(repository.path, lambda: NOW) == 1


def test_publishing_again_changes_nothing(repository: Repository, bundle: Path) -> None:
    repository.publish(bundle)
    before = snapshot_of(repository.path)
    assert repository.publish(bundle).published
    assert snapshot_of(repository.path) == before


def snapshot_of(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_a_published_version_cannot_be_replaced(repository: Repository, bundle: Path, tmp_path: Path) -> None:
    repository.publish(bundle)
    with pytest.raises(BuildRefused, match="other contents"):
        repository.publish(make_bundle(tmp_path / "other", seed=5))


def _remove(bundle: Path) -> None:
    (bundle / "genai_config.json").unlink()


def _add(bundle: Path) -> None:
    (bundle / "tokenizer/extra.txt").write_text("x")


def _rename(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle / "model2.onnx")


def _change(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)


def _lengthen(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")


def _link(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle.parent / "elsewhere")
    (bundle / "model.onnx").symlink_to(bundle.parent / "elsewhere")


def _link_directory(bundle: Path) -> None:
    (bundle / "more").symlink_to(bundle.parent)


def _unmanifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_remove, Reason.FILE_MISSING),
        (_add, Reason.FILE_EXTRA),
        (_rename, Reason.FILE_MISSING),
        (_change, Reason.DIGEST_MISMATCH),
        (_lengthen, Reason.SIZE_MISMATCH),
        (_link, Reason.UNSAFE_PATH),
        (_link_directory, Reason.UNSAFE_PATH),
        (_unmanifest, Reason.FILE_MISSING),
    ],
)
def test_attack_bundle_directory_that_is_not_what_it_lists(
    repository: Repository, bundle: Path, damage: Callable[[Path], None], reason: Reason
) -> None:
    before = snapshot_of(repository.path / "metadata")
    damage(bundle)
    with pytest.raises(BundleRefused) as caught:
        repository.publish(bundle)
    assert caught.value.reason is reason
    assert snapshot_of(repository.path / "metadata") == before
    assert not list(repository.path.rglob("*.part"))


def test_a_second_publisher_is_told(repository: Repository, bundle: Path) -> None:
    with (repository.path / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreBroken) as caught:
            repository.publish(bundle)
    assert caught.value.reason is Reason.STATE_LOCKED
    assert repository.publish(bundle).published


class PowerCut(Exception):
    pass


class CuttingEffects(Effects):
    """Ends the process before the n-th effect, and lets a reader look whenever metadata has changed."""

    def __init__(self, left: int, look: Callable[[], None]) -> None:
        self.left = left
        self.look = look

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        if self.left == 0:
            raise PowerCut
        result = action()
        if "/metadata/" in target:
            self.look()
        self.left -= 1
        return result


@pytest.mark.parametrize(
    "operation", ["publish", "rotate-timestamp", "rotate-targets", "revoke", "refresh", "renew-root"]
)
def test_an_interrupted_change_resumes_and_readers_never_see_a_mix(tmp_path: Path, operation: str) -> None:
    base = tmp_path / "base"
    template = make_repository(base)
    template.publish(make_bundle(tmp_path / "b1", weights=2000))
    second = make_bundle(tmp_path / "b2", version="1.1.0", seed=1, weights=2000)
    cuts, done = 0, False
    while not done:
        here = tmp_path / f"cut{cuts}"
        shutil.copytree(base, here)

        def look(here: Path = here) -> None:
            device = Device(here / "trust", (here / "repository/metadata/1.root.json").read_bytes())
            try:
                device.resolve(DirectorySource(here / "repository"), "demo@1.0.0")
            except BundleRefused as error:
                assert operation == "revoke" and error.reason is Reason.REVOKED
            shutil.rmtree(here / "trust")

        effects = CuttingEffects(cuts, look)
        cut = Repository(
            here / "repository", KeyRing(here / "keys", None, Disk()), clock=lambda: NOW, disk=Disk(effects)
        )

        def act(repository: Repository) -> None:
            if operation == "publish":
                repository.publish(second)
            elif operation == "revoke":
                repository.revoke("demo@1.0.0")
            elif operation == "refresh":
                repository.refresh()
            elif operation == "renew-root":
                repository.renew_root()
            else:
                repository.rotate(operation.split("-")[1])

        try:
            act(cut)
            done = True
        except PowerCut:
            look()
            again = Repository(here / "repository", KeyRing(here / "keys", None), clock=lambda: NOW)
            act(again)
            assert not (here / "repository/staged").exists()
        assert report.verify(here / "repository", lambda: NOW) == {"publish": 2, "revoke": 0}.get(operation, 1)
        cuts += 1
    assert cuts >= (3 if operation == "refresh" else 7)


def test_an_interrupted_beginning_can_be_finished(tmp_path: Path) -> None:
    cuts, done = 0, False
    while not done:
        here = tmp_path / f"{cuts}"
        here.mkdir()
        effects = CuttingEffects(cuts, lambda: None)
        words = {"clock": lambda: NOW}
        try:
            Repository.init(here / "repository", here / "keys", disk=Disk(effects), **words)  # type: ignore[arg-type]
            done = True
        except PowerCut:
            try:
                Repository.init(here / "repository", here / "keys", clock=lambda: NOW)
            except BuildRefused as error:
                assert "repo sign" in error.message or (here / "repository/metadata/1.root.json").exists()
                again = Repository(here / "repository", KeyRing(here / "keys", None), clock=lambda: NOW)
                if (here / "repository/staged").exists():
                    again.sign()
        assert report.verify(here / "repository", lambda: NOW) == 0
        assert not (here / "repository/staged").exists()
        cuts += 1
    assert cuts > 12


def test_of_two_publishers_at_once_one_wins_and_the_other_is_told(repository: Repository, tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / f"b{number}", version=f"1.{number}.0", seed=number) for number in range(4)]
    told: list[Exception] = []

    def publish(bundle: Path) -> None:
        try:
            reopened(repository, tmp_path / "keys").publish(bundle)
        except StoreBroken as error:
            told.append(error)

    threads = [threading.Thread(target=publish, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(error.reason is Reason.STATE_LOCKED for error in told if isinstance(error, StoreBroken))
    assert report.verify(repository.path, lambda: NOW) == 4 - len(told) >= 1
    for bundle in bundles:
        publish(bundle)
    assert report.verify(repository.path, lambda: NOW) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "before this program was made"),
        (NOW - timedelta(days=2), "was signed at"),
        (NOW + timedelta(days=2000), "after the last timestamp ran out"),
    ],
)
def test_nothing_is_signed_by_a_clock_that_is_wrong(
    repository: Repository, bundle: Path, tmp_path: Path, wrong: datetime, said: str
) -> None:
    before = snapshot_of(repository.path)
    ring = KeyRing(tmp_path / "keys", None)
    for change in (
        lambda each: each.publish(bundle), lambda each: each.refresh(), lambda each: each.rotate("timestamp"),
        lambda each: each.renew_root(),
    ):  # fmt: skip
        with pytest.raises(BuildRefused, match=said):
            change(Repository(repository.path, ring, clock=lambda: wrong))
    assert snapshot_of(repository.path) == before
    insisting = Repository(repository.path, ring, clock=lambda: wrong, clock_is_right=True)
    assert insisting.refresh().published


def test_revoked_bundles_stay_revoked(repository: Repository, bundle: Path, tmp_path: Path) -> None:
    repository.publish(bundle)
    device = device_for(repository, tmp_path / "trust")
    source = DirectorySource(repository.path)
    device.resolve(source)
    repository.revoke("demo@1.0.0")
    assert device.refused(source) is Reason.REVOKED
    with pytest.raises(BuildRefused, match="revoked"):
        repository.publish(bundle)
    with pytest.raises(BuildRefused, match="not published"):
        repository.revoke("demo@3.0.0")
    assert report.show(repository.path).revoked == ["demo@1.0.0"]


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_rotated_keys_are_followed_and_old_ones_count_for_nothing(
    repository: Repository, bundle: Path, tmp_path: Path, role: str
) -> None:
    repository.publish(bundle)
    before = report.show(repository.path)
    device = device_for(repository, tmp_path / "trust")
    source = DirectorySource(repository.path)
    device.resolve(source)
    assert repository.rotate(role).published
    device.resolve(source)
    repository.refresh()
    repository.renew_targets()
    device.resolve(source)
    after = report.show(repository.path)
    keys = {entry.role: set(entry.keys) for entry in after.roles}
    old = {entry.role: set(entry.keys) for entry in before.roles}
    assert not keys[role] & old[role]
    assert all(keys[other] == old[other] for other in keys if other != role)


def test_people_sign_in_turns_on_their_own_machines(bundle: Path, tmp_path: Path) -> None:
    bob = KeyRing(tmp_path / "bob", None)
    others = {"root": [bob.generate("root").public], "targets": [bob.generate("targets").public]}
    alice = Repository.init(
        tmp_path / "repository", tmp_path / "alice", others=others, root_threshold=2, targets_threshold=2,
        clock=lambda: NOW,
    )  # fmt: skip
    with pytest.raises(BuildRefused, match="not a finished repository"):
        report.show(alice.path)
    on_bobs_machine = Repository(alice.path, bob, clock=lambda: NOW)
    outcome = on_bobs_machine.sign()
    assert outcome.pending == ["the snapshot key", "the timestamp key"], "those lie with Alice"
    assert alice.sign().published

    assert alice.publish(bundle).pending == ["1 more signature(s) for targets"]
    assert report.show(alice.path).waiting == {"targets": 1}
    device = device_for(alice, tmp_path / "trust")
    assert device.refused(DirectorySource(alice.path)) is Reason.NOT_LISTED
    with pytest.raises(BuildRefused, match="still waits"):
        alice.publish(make_bundle(tmp_path / "b2", version="2.0.0"))
    assert not on_bobs_machine.sign().published
    assert alice.sign().published
    device.resolve(DirectorySource(alice.path))

    assert alice.rotate("root", others=others["root"], threshold=2).pending == ["1 more signature(s) for root"]
    assert on_bobs_machine.sign().pending == ["the snapshot key", "the timestamp key"]
    assert alice.sign().published
    device.resolve(DirectorySource(alice.path))
    with pytest.raises(BuildRefused, match="nothing waits"):
        alice.sign()


def test_a_change_is_carried_to_the_other_machine_and_back(bundle: Path, tmp_path: Path) -> None:
    """The machines share nothing: metadata and the waiting change go one way, the signed change comes back."""
    bob = KeyRing(tmp_path / "bob", None)
    others = {"targets": [bob.generate("targets").public]}
    alice = Repository.init(
        tmp_path / "repository", tmp_path / "alice", others=others, targets_threshold=2, clock=lambda: NOW
    )
    away = tmp_path / "bobs-machine"

    def let_bob_sign() -> None:
        shutil.rmtree(away, ignore_errors=True)
        away.mkdir()
        for part in ("metadata", "staged"):
            if (alice.path / part).exists():
                shutil.copytree(alice.path / part, away / part)
        assert not Repository(away, bob, clock=lambda: NOW).sign().published
        for file in (away / "staged").iterdir():
            shutil.copy(file, alice.path / "staged" / file.name)

    let_bob_sign()
    assert alice.sign().published
    assert not alice.publish(bundle).published
    let_bob_sign()
    assert alice.sign().published
    shown = {entry.role: entry for entry in report.show(alice.path).roles}["targets"]
    assert len(shown.signed_by) == 2 == shown.threshold
    device_for(alice, tmp_path / "trust").resolve(DirectorySource(alice.path))
    assert report.verify(alice.path, lambda: NOW) == 1


def test_a_waiting_change_can_be_thrown_away(bundle: Path, tmp_path: Path) -> None:
    others = {"targets": [KeyRing(tmp_path / "bob", None).generate("targets").public]}
    with pytest.raises(BuildRefused, match="cannot be required"):
        Repository.init(tmp_path / "r", tmp_path / "k", targets_threshold=2)
    repository = Repository.init(tmp_path / "r", tmp_path / "k", others=others, clock=lambda: NOW)
    repository.rotate("targets", others=others["targets"], keys=0)
    assert report.show(repository.path).waiting == {"root": 0, "targets": 1}
    repository.discard()
    assert repository.publish(bundle).published


def test_keys_are_encrypted_with_the_passphrase(tmp_path: Path, bundle: Path) -> None:
    repository = Repository.init(tmp_path / "r", tmp_path / "k", passphrase="correct horse", clock=lambda: NOW)
    for key in (tmp_path / "k").glob("*.key"):
        assert b"ENCRYPTED" in key.read_bytes()
        assert key.stat().st_mode & 0o777 == 0o600
    for passphrase, message in (("wrong", "wrong"), ("", "empty")):
        ring = KeyRing(tmp_path / "k", lambda text=passphrase: text)
        with pytest.raises(BuildRefused, match=message):
            Repository(repository.path, ring, clock=lambda: NOW).publish(bundle)
    with pytest.raises(BuildRefused, match="encrypted"):
        reopened(repository, tmp_path / "k").publish(bundle)
    ring = KeyRing(tmp_path / "k", lambda: "correct horse")
    assert Repository(repository.path, ring, clock=lambda: NOW).publish(bundle).published


def test_initialising_twice_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match="already"):
        Repository.init(repository.path, tmp_path / "other-keys")


def test_refresh_moves_the_expiry_of_snapshot_and_timestamp_only(repository: Repository) -> None:
    before = {entry.role: entry for entry in report.show(repository.path).roles}
    later = Repository(repository.path, repository._keys, clock=lambda: NOW + timedelta(days=1))
    assert later.refresh().published
    after = {entry.role: entry for entry in report.show(repository.path).roles}
    assert {role for role in after if after[role] != before[role]} == {"snapshot", "timestamp"}


def test_export_is_deterministic_and_accepted_by_a_device(repository: Repository, bundle: Path, tmp_path: Path) -> None:
    repository.publish(bundle)
    repository.publish(make_bundle(tmp_path / "b2", version="2.0.0", seed=2))
    repository.rotate("timestamp")
    for name in ("a.edgebundle", "b.edgebundle"):
        repository.export("demo", "1.0.0", tmp_path / name)
    assert (tmp_path / "a.edgebundle").read_bytes() == (tmp_path / "b.edgebundle").read_bytes()
    tar = TarSource(tmp_path / "a.edgebundle")
    trusted = device_for(repository, tmp_path / "trust").resolve(tar)
    objects = [f"objects/{entry.sha256}" for entry in trusted.manifest.files]
    assert tar.members[:2] == ["metadata/1.root.json", "metadata/2.root.json"]
    assert tar.members[-len(objects) :] == objects
    assert not list(tmp_path.glob(".a.edgebundle*"))


def test_export_refuses_a_damaged_or_missing_object(repository: Repository, bundle: Path, tmp_path: Path) -> None:
    repository.publish(bundle)
    (victim,) = [file for file in (repository.path / "objects").iterdir() if file.stat().st_size == 3000]
    data = victim.read_bytes()
    victim.write_bytes(b"x" + data[1:])
    for out in (tmp_path / "x", tmp_path / "y"):
        with pytest.raises((BundleRefused, BuildRefused)):
            repository.export("demo", "1.0.0", out)
        assert not out.exists()
        victim.unlink(missing_ok=True)
    with pytest.raises(BundleRefused):
        report.verify(repository.path, lambda: NOW)
    assert repository.publish(bundle).published
    assert report.verify(repository.path, lambda: NOW) == 1


def test_a_mirror_without_keys_receives_and_never_goes_back(
    repository: Repository, bundle: Path, tmp_path: Path
) -> None:
    repository.publish(bundle)
    repository.export("demo", "1.0.0", tmp_path / "old.edgebundle")
    root = (repository.path / "metadata/1.root.json").read_bytes()
    mirror = Repository(tmp_path / "mirror", KeyRing(tmp_path / "none", None), clock=lambda: NOW)
    with pytest.raises(BuildRefused, match="--root"):
        mirror.receive(DirectorySource(repository.path))
    repository.publish(make_bundle(tmp_path / "b2", version="2.0.0", seed=2))
    assert mirror.receive(DirectorySource(repository.path), root) == ["demo@1.0.0", "demo@2.0.0"]
    assert report.verify(mirror.path, lambda: NOW) == 2
    before = snapshot_of(mirror.path)
    mirror.receive(TarSource(tmp_path / "old.edgebundle"))
    assert snapshot_of(mirror.path) == before
