"""A model of the Hugging Face hub: its files fetched into the cache once, at a revision that is written down."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from contract.errors import UsageError
from packager.sources.headers import WeightHeaders, read_headers, reported_headers
from packager.sources.jobs import HUB, HubJob, HubResult, RemoteWeights
from packager.sources.pickled import find_pickled, read_pickled_headers
from packager.subprocess_job import run_child

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` looks like ``OWNER/MODEL`` and is no path of this host."""
    return _ID.fullmatch(text) is not None and ".." not in text and not Path(text).exists()


class SeenOnHub(Struct, frozen=True):
    """The small files of a model lie in ``path``; its weights take ``weight_bytes``, 0 where nobody says, of which
    ``missing_bytes`` are to be fetched. ``pickled``: none of them is a safetensors file. ``headers``: what they hold,
    None where that cannot be told before they are fetched.
    """

    path: Path
    commit: str
    weight_bytes: int
    missing_bytes: int
    pickled: bool
    headers: WeightHeaders | None


def look_at_hub(model: str, revision: str | None, cache: Path | None, log: Path) -> SeenOnHub:
    """Fetch everything of ``model`` but its weights, and of these their headers.

    Raises:
        BuildRefused, UsageError: as :func:`fetch_from_hub`.
    """
    with tempfile.TemporaryDirectory(prefix="edge-bundle-") as scratch:
        found = _run(model, revision, cache, log, scratch=Path(scratch))
        path, weights = Path(found.path), found.weights
        assert weights is not None
        headers = _read_headers(path, weights, Path(scratch), log)
    return SeenOnHub(path, found.commit, weights.weight_bytes, weights.missing_bytes, weights.pickled, headers)


def _read_headers(path: Path, weights: RemoteWeights, outlines: Path, log: Path) -> WeightHeaders | None:
    if weights.headers is not None:
        return reported_headers(weights.headers)
    if weights.outlines is not None:
        return read_pickled_headers([outlines / name for name in weights.outlines], log)
    if weights.weight_bytes == 0 or weights.missing_bytes > 0:
        return None
    here = find_pickled(path)
    return read_pickled_headers(here, log) if here else read_headers(path)


def fetch_from_hub(
    model: str,
    revision: str | None,
    cache: Path | None,
    log: Path,
    on_progress: Callable[[float, float], None],
) -> Path:
    """The directory of ``model`` at ``revision`` (a branch, tag or commit; the default branch without one).

    ``cache`` is a hub cache directory, the user's own when None. This is the only place that uses a network; with
    ``HF_HUB_OFFLINE=1`` it uses what the cache holds.

    Raises:
        BuildRefused: there is no such model or revision, it may not be read, or it cannot be reached.
        UsageError: ``revision`` is none.
    """
    return Path(_run(model, revision, cache, log, on_progress=on_progress).path)


def _run(
    model: str,
    revision: str | None,
    cache: Path | None,
    log: Path,
    *,
    scratch: Path | None = None,
    on_progress: Callable[[float, float], None] | None = None,
) -> HubResult:
    if revision is not None and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise UsageError(f"{revision!r} is not a branch, tag or commit", field="revision")
    job = HubJob(model, revision, None if cache is None else str(cache), None if scratch is None else str(scratch))
    return run_child(HUB, job, log, doing=f"fetching {model}", on_progress=on_progress, online=True)
