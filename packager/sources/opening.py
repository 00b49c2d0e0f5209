"""From what a person names to a checkpoint directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.checkpoint import Checkpoint, digest_directory, inspect_checkpoint
from packager.sources.gguf import GGUF_MAGIC, convert_gguf


class OpenedSource(Struct, frozen=True):
    """A checkpoint and where it came from. ``label`` is a file or directory name, never a path of this host."""

    kind: str
    label: str
    sha256: str
    checkpoint: Checkpoint


def open_source(text: str, cache: Path, log: Path, on_progress: Callable[[float, float], None]) -> OpenedSource:
    """Open a GGUF file or a local checkpoint directory; a GGUF is converted into ``cache`` once.

    Raises:
        BuildRefused: it is neither, or cannot become a bundle.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        checkpoint = inspect_checkpoint(path.resolve())
        return OpenedSource("checkpoint", path.resolve().name, digest_directory(path), checkpoint)
    if not path.is_file():
        raise BuildRefused(f"{text!r} is neither a GGUF file nor a directory with a Hugging Face checkpoint")
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise BuildRefused(f"{path} is not a GGUF file; name a .gguf file or a checkpoint directory")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return OpenedSource("gguf", path.name, digest, convert_gguf(path.resolve(), digest, cache, log, on_progress))
