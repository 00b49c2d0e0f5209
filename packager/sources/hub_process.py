"""The process that fetches from the Hugging Face hub; the only one that may open connections."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.subprocess_job import Reporter, child_main

WEIGHTS = "*.safetensors"
WANTED = ["*.json", WEIGHTS, "*.model", "*.jinja", "*.txt", "*.md", "LICENSE*", "NOTICE*", "*.tiktoken", "*.py"]
UNWANTED = ["*/*", "consolidated*"]
"""Other formats of the same weights lie in subdirectories, and Mistral's own beside those of transformers."""
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def fetch(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
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

    model, revision = job["model"], job["revision"]
    reporter.progress(0, 1)
    try:
        if job["small"]:
            path = snapshot_download(
                model,
                revision=revision,
                cache_dir=job["cache"],
                allow_patterns=[pattern for pattern in WANTED if pattern != WEIGHTS],
                ignore_patterns=UNWANTED,
            )
            commit = Path(path).name
            return {"path": path, "commit": commit, "weight_bytes": count_weight_bytes(model, commit, Path(path))}
        path = snapshot_download(
            model, revision=revision, cache_dir=job["cache"], allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
        if not any(Path(path).glob("*.safetensors")):
            path = snapshot_download(
                model, revision=revision, cache_dir=job["cache"], allow_patterns=[*WANTED, *PICKLED]
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
    return {"path": path, "commit": Path(path).name}


def count_weight_bytes(model: str, commit: str, path: Path) -> int:
    """What the weights take, by what lies in ``path`` already or by what the hub says; 0 where it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    here = sum(file.stat().st_size for file in path.glob(WEIGHTS) if not file.name.startswith("consolidated"))
    if here:
        return here
    try:
        files = HfApi().model_info(model, revision=commit, files_metadata=True).siblings or []
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return 0
    sizes = {file.rfilename: file.size or 0 for file in files if "/" not in file.rfilename}
    for kind in (WEIGHTS, *PICKLED[:1]):
        found = sum(size for name, size in sizes.items() if fnmatch(name, kind) and not name.startswith("consolidated"))
        if found:
            return found
    return 0


if __name__ == "__main__":
    child_main(fetch)
