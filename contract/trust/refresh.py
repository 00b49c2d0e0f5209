"""python-tuf over a :class:`~contract.source.BundleSource`: strict readers on its way in, our errors on its way out.

The one module that knows ``tuf.ngclient``. python-tuf (pinned below 8) offers no way to set the time that expiry is
judged by; its ``TrustedMetadataSet.reference_time`` is set here, and a test fails when a new version moves it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType
from tuf.ngclient.fetcher import FetcherInterface

from contract import strict_json
from contract.bundle.layout import METADATA_DIR, is_repository_path
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.tar import TarSource
from contract.system.durable import translate
from contract.trust.key_policy import check_metadata

ROOT_MAX_BYTES = 512_000
"""64 keys with their roles take 16 KB; python-tuf's own default."""

TIMESTAMP_MAX_BYTES = 16_384
SNAPSHOT_MAX_BYTES = 2_000_000
TARGETS_MAX_BYTES = 5_000_000
"""About 20,000 published bundles."""

MAX_ROOT_ROTATIONS = 256
"""Roots followed in one refresh; a device that missed more follows the rest in the next one."""

_BASE = "bundle:///"
_CAPS = {
    "root": ROOT_MAX_BYTES,
    "timestamp": TIMESTAMP_MAX_BYTES,
    "snapshot": SNAPSHOT_MAX_BYTES,
    "targets": TARGETS_MAX_BYTES,
}

TrustFiles = Mapping[str, bytes]
"""Verified metadata by role: ``root`` always, the other three once a refresh has succeeded."""


class Trusted(NamedTuple):
    """What one successful refresh has proved."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    files: dict[str, bytes]


class _Known(NamedTuple):
    version: int
    data: bytes


class SourceFetcher(FetcherInterface):
    """Fetches metadata from ``source``, strictly parsed and checked before python-tuf sees a byte.

    ``known_timestamp`` is asked when the source is a tar: one older than the device adds nothing to its trust.
    """

    def __init__(self, source: BundleSource, known_timestamp: Callable[[], _Known | None]) -> None:
        self._source = source
        self._known_timestamp = known_timestamp
        self.source_is_older = False

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError("metadata is fetched whole")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As in the base class, but raises our errors for all but a missing file."""
        path = f"{METADATA_DIR}/{unquote(url.removeprefix(_BASE))}"
        if not is_repository_path(path):
            raise BundleRefused(Reason.METADATA_INVALID, f"{path[:120]!r} is not a name for metadata")
        role = path.rsplit("/", 1)[1].split(".")[-2]
        data = self._source.read(path, min(max_length, _CAPS[role]))
        known = self._known_timestamp() if role == "timestamp" and isinstance(self._source, TarSource) else None
        if data is None:
            if known is not None:
                self.source_is_older = True
                return known.data
            raise exceptions.DownloadHTTPError(f"{path} is missing", 404)
        document = strict_json.loads(data, max_bytes=_CAPS[role], what=path)
        check_metadata(document, path)
        if known is not None and document["signed"]["version"] < known.version:
            self.source_is_older = True
            return known.data
        return data


class Refresh:
    """One run of the TUF client workflow, in a scratch directory below ``scratch``.

    ``at`` is the time that expiry is judged by; timestamp and snapshot are forgiven ``grace`` beyond theirs.
    """

    def __init__(self, known: TrustFiles, source: BundleSource, *, at: datetime, grace: timedelta, scratch: Path):
        self._known = known
        self._source = source
        self._at = at
        self._grace = grace
        self._scratch = scratch
        self._set: Any = None
        self.newer_root: bytes | None = None

    def run(self) -> Trusted:
        """Refresh all four roles.

        After a failure ``newer_root`` holds a verified root that is newer than the known one, if there was one: it may
        have revoked keys, so it must be kept whatever happened next.

        Raises:
            BundleRefused, SourceUnavailable, StoreBroken, StoreFull.
        """
        fetcher = SourceFetcher(self._source, self._known_timestamp)
        directory: Path | None = None
        try:
            directory = Path(tempfile.mkdtemp(prefix="work-", dir=self._scratch))
            for role, data in self._known.items():
                (directory / f"{role}.json").write_bytes(data)
            try:
                return self._update(directory, fetcher)
            finally:
                if self._set is not None and self._set.root.version > _version(self._known["root"]):
                    self.newer_root = (directory / "root.json").read_bytes()
        except EdgeBundleError:
            raise
        except OSError as error:
            raise translate(error, "writing trust metadata") from error
        except Exception as error:
            raise self._explain(error, fetcher) from error
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def _update(self, directory: Path, fetcher: SourceFetcher) -> Trusted:
        config = UpdaterConfig(
            max_root_rotations=MAX_ROOT_ROTATIONS,
            root_max_length=ROOT_MAX_BYTES,
            timestamp_max_length=TIMESTAMP_MAX_BYTES,
            snapshot_max_length=SNAPSHOT_MAX_BYTES,
            targets_max_length=TARGETS_MAX_BYTES,
        )
        updater = Updater(str(directory), _BASE, fetcher=fetcher, config=config, bootstrap=self._known["root"])
        self._set = updater._trusted_set
        self._set.reference_time = self._at - self._grace
        updater.refresh()
        # Grace is for what a machine signs every few days, never for what people sign.
        for role in ("root", "targets"):
            if self._set[role].is_expired(self._at):
                raise exceptions.ExpiredMetadataError(f"{role}.json is expired")
        roles = ("root", "timestamp", "snapshot", "targets")
        files = {role: (directory / f"{role}.json").read_bytes() for role in roles}
        return Trusted(self._set.root, self._set.timestamp, self._set.snapshot, self._set.targets, files)

    def _known_timestamp(self) -> _Known | None:
        # Only when python-tuf has verified our own timestamp under the root now in force.
        if self._set is None or Timestamp.type not in self._set or "timestamp" not in self._known:
            return None
        return _Known(self._set.timestamp.version, self._known["timestamp"])

    def _explain(self, error: Exception, fetcher: SourceFetcher) -> EdgeBundleError:
        where = self._source.description
        if isinstance(error, exceptions.DownloadHTTPError):
            if fetcher.source_is_older:
                if self._set.timestamp.is_expired(self._set.reference_time):
                    return BundleRefused(Reason.EXPIRED, "the metadata on this device has expired; refresh it")
                return BundleRefused(
                    Reason.SOURCE_OLDER, f"{where} is older than what this device trusts and lacks what it needs"
                )
            return SourceUnavailable(f"{where} is not a complete repository: {error}")
        return explain(error, where)


def check_root(data: bytes) -> int:
    """The version of a root that an operator hands over, after checking that it is well-formed and signed by itself.

    Raises:
        BundleRefused: with the reason.
    """
    what = "that root"
    document = strict_json.loads(data, max_bytes=ROOT_MAX_BYTES, what=what)
    check_metadata(document, what)
    try:
        return int(TrustedMetadataSet(data, EnvelopeType.METADATA).root.version)
    except Exception as error:
        raise explain(error, what) from error


def _version(data: bytes) -> int:
    return int(strict_json.loads(data, max_bytes=ROOT_MAX_BYTES, what="the trusted root")["signed"]["version"])


_SIGNED_BY = re.compile(r"\w+ was signed by (\d+)/\d+ keys")
_SENTENCES = {
    Reason.EXPIRED: "has expired",
    Reason.SIGNATURE_INVALID: "is not signed by a trusted key",
    Reason.THRESHOLD_NOT_MET: "is not signed by enough trusted keys",
    Reason.METADATA_MIXED: "does not belong together",
    Reason.METADATA_ROLLBACK: "is older than what was seen before",
    Reason.METADATA_INVALID: "cannot be checked",
}


def explain(error: Exception, where: str) -> BundleRefused:
    """Our error for one of python-tuf's; whatever it could not check is refused."""
    reason = _reason(error)
    return BundleRefused(reason, f"the metadata of {where} {_SENTENCES[reason]}: {str(error)[:200]}")


def _reason(error: Exception) -> Reason:
    text = str(error)
    if isinstance(error, exceptions.ExpiredMetadataError):
        return Reason.EXPIRED
    if isinstance(error, exceptions.UnsignedMetadataError):
        match = _SIGNED_BY.search(text)
        return Reason.SIGNATURE_INVALID if match and match[1] == "0" else Reason.THRESHOLD_NOT_MET
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return Reason.METADATA_MIXED
    if isinstance(error, exceptions.BadVersionNumberError):
        # python-tuf has one class for both; only its checks against what was trusted before say "must be" or name a
        # file, the others compare files of one repository.
        before = "must be" in text or re.match(r"Expected \S+\.json version", text)
        return Reason.METADATA_ROLLBACK if before else Reason.METADATA_MIXED
    if isinstance(error, exceptions.RepositoryError) and "missing info" in text:
        return Reason.METADATA_ROLLBACK
    return Reason.METADATA_INVALID
