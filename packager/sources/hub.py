"""A model of the Hugging Face hub: its files fetched into the cache once, at a revision that is written down."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from contract.errors import UsageError
from packager.sources.headers import WeightHeaders, read_headers, reported_headers
from packager.subprocess_job import run_child

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` looks like ``OWNER/MODEL`` and is no path of this host."""
    return _ID.fullmatch(text) is not None and ".." not in text and not Path(text).exists()


class SeenOnHub(Struct, frozen=True):
    """The small files of a model lie in ``path``; its weights take ``weight_bytes``, 0 where nobody says, of which
    ``missing_bytes`` are to be fetched. ``headers``: what the weight files hold, None for pickled ones and where the
    server would not say.
    """

    path: Path
    commit: str
    weight_bytes: int
    missing_bytes: int
    headers: WeightHeaders | None


def look_at_hub(model: str, revision: str | None, cache: Path | None, log: Path) -> SeenOnHub:
    """Fetch everything of ``model`` but its weights, and of these their headers.

    Raises:
        BuildRefused, UsageError: as :func:`fetch_from_hub`.
    """
    value = _run(model, revision, cache, log, small=True, on_progress=None)
    path, reported = Path(value["path"]), value["headers"]
    here = value["weight_bytes"] > 0 and value["missing_bytes"] == 0 and any(path.glob("*.safetensors"))
    headers = read_headers(path) if here else None if reported is None else reported_headers(reported)
    return SeenOnHub(path, value["commit"], value["weight_bytes"], value["missing_bytes"], headers)


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
    return Path(_run(model, revision, cache, log, small=False, on_progress=on_progress)["path"])


def _run(
    model: str,
    revision: str | None,
    cache: Path | None,
    log: Path,
    *,
    small: bool,
    on_progress: Callable[[float, float], None] | None,
) -> dict[str, Any]:
    if revision is not None and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise UsageError(f"{revision!r} is not a branch, tag or commit", field="revision")
    job = {"model": model, "revision": revision, "cache": None if cache is None else str(cache), "small": small}
    return run_child(
        "packager.sources.hub_process", job, log, doing=f"fetching {model}", on_progress=on_progress, online=True
    )
