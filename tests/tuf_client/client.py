"""A plain TUF client over HTTP.

It shares the readers, the key policy and the errors of the product, but keeps its state as python-tuf does, in a
directory with non-versioned file names, and follows delegations. ``any_key`` admits the other key types of TUF's own
test data; the product never does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from tuf.api import exceptions
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from contract import strict_json
from contract.errors import BundleRefused, EdgeBundleError, SourceUnavailable
from contract.reasons import Reason
from contract.source.http_session import Exchange, Response
from contract.source.throughput_guard import ThroughputGuard
from contract.system.durable import translate
from contract.trust.key_policy import check_metadata
from contract.trust.refresh import TARGETS_MAX_BYTES, check_root, explain

PIECE_BYTES = 2**20
_UNESCAPED_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CACHED = ("timestamp", "snapshot", "targets")


class UrlFetcher(FetcherInterface):
    """Fetches by URL; metadata is read strictly before python-tuf sees it."""

    def __init__(self, exchange: Exchange, *, any_key: bool) -> None:
        self._exchange = exchange
        self._any_key = any_key

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._exchange.get(_escaped(url))
        if response is None:
            raise exceptions.DownloadHTTPError(f"{url.rsplit('/', 1)[-1]} is missing", 404)
        return self._pieces(response)

    def fetch(self, url: str) -> Iterator[bytes]:
        """As in the base class, but our own errors pass unchanged."""
        return self._fetch(url)

    def _pieces(self, response: Response) -> Iterator[bytes]:
        announced = response.raw.length
        count = 0
        while piece := self._exchange.read_some(response, PIECE_BYTES):
            count += len(piece)
            yield piece
        if announced is not None and count < announced:
            raise SourceUnavailable("the server broke off")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Metadata, whole and strictly parsed."""
        data = super().download_bytes(url, max_length)
        check(data, url.rsplit("/", 1)[-1], any_key=self._any_key)
        return data


def _escaped(url: str) -> str:
    """``url`` with what may not stand in one escaped: python-tuf appends the names of artifacts as they are."""
    return quote(_UNESCAPED_PERCENT.sub("%25", url), safe="%/:?=&@+!$,;'()*~[]")


def check(data: bytes, what: str, *, any_key: bool) -> None:
    """Refuse what is not strict JSON, and unless ``any_key`` what the key policy does not admit.

    Raises:
        BundleRefused: with the reason.
    """
    document = strict_json.loads(data, max_bytes=TARGETS_MAX_BYTES, what=what)
    if not any_key:
        check_metadata(document, what, delegations=True)


class Client:
    """One metadata directory.

    Raises:
        BundleRefused, SourceUnavailable, StoreBroken, StoreFull: from every method, and nothing else.
    """

    def __init__(self, metadata_dir: Path, *, any_key: bool = False, pace: ThroughputGuard | None = None) -> None:
        self._directory = metadata_dir
        self._any_key = any_key
        self._exchange = Exchange(pace=pace)

    def init(self, root_json: bytes) -> None:
        """Trust ``root_json`` from now on and forget everything else."""
        if self._any_key:
            check(root_json, "that root", any_key=True)
        else:
            check_root(root_json)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for role in _CACHED:
                (self._directory / f"{role}.json").unlink(missing_ok=True)
            for left in self._directory.glob("root_history/*.root.json"):
                left.unlink()
            Updater(str(self._directory), "", bootstrap=root_json)
        except Exception as error:
            raise self._explain(error) from error

    def refresh(self, metadata_url: str) -> None:
        """Bring all top-level metadata up to date."""
        try:
            self._updater(metadata_url, None, None).refresh()
        except Exception as error:
            raise self._explain(error) from error

    def download(self, metadata_url: str, names: Iterable[str], base_url: str, target_dir: Path) -> list[Path]:
        """Refresh, then download the artifacts ``names`` that are not in ``target_dir`` already."""
        found: list[Path] = []
        try:
            target_dir.mkdir(parents=True, exist_ok=True)
            updater = self._updater(metadata_url, base_url, target_dir)
            updater.refresh()
            for name in names:
                info = updater.get_targetinfo(name)
                if info is None:
                    raise BundleRefused(Reason.NOT_LISTED, f"{name!r} is not listed in the repository's metadata")
                found.append(Path(updater.find_cached_target(info) or updater.download_target(info)))
        except Exception as error:
            raise self._explain(error) from error
        return found

    def _updater(self, metadata_url: str, base_url: str | None, target_dir: Path | None) -> Updater:
        for role in _CACHED:
            path = self._directory / f"{role}.json"
            if path.exists():
                try:
                    check(path.read_bytes(), path.name, any_key=self._any_key)
                except BundleRefused as error:
                    # python-tuf would pass over it and forget which versions it has seen.
                    raise BundleRefused(
                        Reason.TRUST_STATE_LOST, f"{path} is damaged; begin again with `init ROOT_JSON`"
                    ) from error
        return Updater(
            str(self._directory),
            metadata_url,
            str(target_dir) if target_dir is not None else None,
            base_url,
            UrlFetcher(self._exchange, any_key=self._any_key),
            bootstrap=None,
        )

    def _explain(self, error: Exception) -> EdgeBundleError:
        if isinstance(error, EdgeBundleError):
            return error
        if isinstance(error, exceptions.DownloadLengthMismatchError):
            return BundleRefused(Reason.TOO_LARGE, f"the server sent more than is allowed: {error}")
        if isinstance(error, exceptions.DownloadError):
            return SourceUnavailable(f"the repository cannot be read: {error}")
        if isinstance(error, exceptions.LengthOrHashMismatchError):
            return BundleRefused(Reason.DIGEST_MISMATCH, f"a file is not what is listed: {error}")
        if isinstance(error, OSError):
            return translate(error, f"writing {self._directory}")
        return explain(error, "the repository")
