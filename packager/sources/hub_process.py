"""The process that fetches from the Hugging Face hub; the only one that may open connections."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import cast

from contract.errors import BuildRefused
from packager.sources import pickled
from packager.sources.checkpoint import INDEX_FILE, WHOLE_FILE, read_weight_map
from packager.sources.jobs import HUB, HubJob, HubResult, RemoteWeights, ReportedHeaders
from packager.sources.pickled_front import measure_front, write_outline
from packager.sources.safetensors_header import header_length
from packager.sources.weights import parse_header
from packager.subprocess_job import Reporter, child_main

WEIGHTS = "*.safetensors"
WANTED = ["*.json", WEIGHTS, "*.model", "*.jinja", "*.txt", "*.md", "LICENSE*", "NOTICE*", "*.tiktoken", "*.py"]
UNWANTED = ["*/*", "consolidated*"]
"""Other formats of the same weights lie in subdirectories, and Mistral's own beside those of transformers."""
PICKLED = ["pytorch_model*.bin", pickled.INDEX]

FIRST_BYTES = 128 * 2**10
"""Asked for of each weight file at first: nearly all headers, and pickles of names, are shorter."""

AT_ONCE = 8
"""Weight files whose headers are asked for at a time."""

HTTP_PARTIAL = 206


def fetch(job: HubJob, reporter: Reporter) -> HubResult:
    """Fetch what a build reads, pickled weights only where there are no others, and say which commit it is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    model, revision = job.model, job.revision
    reporter.progress(0, 1)
    try:
        if job.scratch is not None:
            path = snapshot_download(
                model,
                revision=revision,
                cache_dir=job.cache,
                allow_patterns=[pattern for pattern in WANTED if pattern != WEIGHTS],
                ignore_patterns=UNWANTED,
            )
            seen = look_at_weights(model, Path(path), Path(job.scratch))
            return HubResult(path, Path(path).name, seen)
        path = snapshot_download(
            model, revision=revision, cache_dir=job.cache, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
        if not any(Path(path).glob("*.safetensors")):
            path = snapshot_download(
                model,
                revision=revision,
                cache_dir=job.cache,
                allow_patterns=[*WANTED, *PICKLED],
                ignore_patterns=UNWANTED,
            )
    except GatedRepoError as error:
        raise BuildRefused(f"{model} is gated; accept its terms on the hub and log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise BuildRefused(f"{model} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise BuildRefused(
            f"{model} is not in the cache and the hub cannot be reached; connect, or name a local directory"
        ) from error
    except RepositoryNotFoundError as error:
        raise BuildRefused(f"the hub has no model {model!r} that you may read; check its name") from error
    except HfHubHTTPError as error:
        raise BuildRefused(f"the hub did not deliver {model}: {' '.join(str(error).split())[:200]}") from error
    reporter.progress(1, 1)
    return HubResult(path, Path(path).name)


def look_at_weights(model: str, path: Path, outlines: Path) -> RemoteWeights:
    """What is known of the weights of the snapshot ``path`` before they are fetched."""
    from huggingface_hub import HfApi

    found = [*path.glob(WEIGHTS), *path.glob(PICKLED[0])]
    here = {file.name: file.stat().st_size for file in found if _is_wanted(file.name)}
    try:
        files = HfApi().model_info(model, revision=path.name, files_metadata=True).siblings or []
        there = {file.rfilename: file.size or 0 for file in files if _is_wanted(file.rfilename)}
    except _client_errors():
        there = here
    safe = {name: size for name, size in there.items() if fnmatch(name, WEIGHTS)}
    sizes = safe or {name: size for name, size in there.items() if fnmatch(name, PICKLED[0])}
    missing = [name for name in sizes if not (path / name).is_file()]
    return RemoteWeights(
        weight_bytes=sum(sizes.values()),
        missing_bytes=sum(sizes[name] for name in missing),
        pickled=not safe,
        headers=read_remote_headers(model, path, sorted(safe)) if safe and missing else None,
        outlines=None if safe or not missing else read_remote_pickles(model, path, sorted(sizes), outlines),
    )


def _client_errors() -> tuple[type[Exception], ...]:
    """Those of the library's HTTP client, whichever that is, and of the system."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)


def _is_wanted(name: str) -> bool:
    return "/" not in name and not name.startswith("consolidated")


def read_remote_headers(model: str, path: Path, present: list[str]) -> ReportedHeaders | None:
    """The headers of the weight files at the commit that the snapshot ``path`` is of, of which nothing else is fetched;
    None where the server does not give them.

    Raises:
        BuildRefused: the index names files that the repository lacks, or one of them is no safetensors file.
    """
    names = _list_weight_files(model, path / INDEX_FILE, WHOLE_FILE, present)
    starts = _fetch_starts(model, path.name, names, lambda start, name: 8 + header_length(start, name))
    if starts is None:
        return None
    for name, start in starts.items():
        if len(start) < 8 + header_length(start, name):
            raise BuildRefused(f"{name} of {model} is truncated or is not a safetensors file")
    return [
        (
            name,
            [
                (each.name, each.dtype, list(each.shape), each.end - each.start)
                for each in parse_header(start[8 : 8 + header_length(start, name)], name)
            ],
        )
        for name, start in starts.items()
    ]


def read_remote_pickles(model: str, path: Path, present: list[str], outlines: Path) -> list[str] | None:
    """Write to ``outlines`` what the pickled weight files at the commit of the snapshot ``path`` say of their weights,
    of which nothing else is fetched; their names, None where that is not known before they are.

    Raises:
        BuildRefused: the index names files that the repository lacks.
    """
    names = _list_weight_files(model, path / pickled.INDEX, pickled.WHOLE, present)
    starts = _fetch_starts(model, path.name, names, lambda start, _: measure_front(start))
    if starts is None or not all(write_outline(start, outlines / name) for name, start in starts.items()):
        return None
    return names


def _list_weight_files(model: str, index: Path, whole: str, present: list[str]) -> list[str]:
    names = sorted(set(read_weight_map(index).values())) if index.is_file() else [whole]
    lacking = [name for name in names if name not in present]
    if lacking:
        raise BuildRefused(
            f"{model} has no {lacking[0]!r}"
            + (
                f", one of {len(names)} files that its {index.name} names"
                if index.is_file()
                else " and no index of others"
            )
        )
    return names


Measure = Callable[[bytes, str], int]
"""How many bytes of a file have to be known that begins so and has that name: as many as there are, if that is all."""


def _fetch_starts(model: str, commit: str, names: list[str], measure: Measure) -> dict[str, bytes] | None:
    """How each of the files begins, as far as ``measure`` asks for; None where the server does not say."""
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(partial(_fetch_start, model, commit, measure), names), strict=True))
    except _client_errors():
        return None


def _fetch_start(model: str, commit: str, measure: Measure, name: str) -> bytes:
    """How one file begins, or all of a short one. The connection is closed then, should a server send the whole."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    found, wanted = b"", FIRST_BYTES
    while len(found) < wanted:
        headers = {**build_hf_headers(), "Range": f"bytes={len(found)}-{wanted - 1}"}
        with get_session().stream("GET", hf_hub_url(model, name, revision=commit), headers=headers) as response:
            hf_raise_for_status(response)
            if found and response.status_code != HTTP_PARTIAL:
                found = b""  # the server begins at the beginning again
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= wanted:
                    break
        if len(found) < wanted:
            break  # there is no more of it
        wanted = measure(found, name)
    return found


if __name__ == "__main__":
    child_main(HUB, fetch)
