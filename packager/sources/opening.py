"""From what a person names to a checkpoint directory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused, UsageError
from packager.reference import Reference, read_reference
from packager.sources.adapter import check_base, inspect_adapter, merge_adapter
from packager.sources.checkpoint import Checkpoint, digest_directory, find_shards, inspect_checkpoint
from packager.sources.gguf import GGUF_MAGIC, convert_gguf
from packager.sources.hub import fetch_from_hub, is_hub_id
from packager.sources.naming import check_naming
from packager.sources.pickled import convert_pickled, find_pickled
from packager.sources.template import check_template, replace_template
from packager.sources.text_only import extract_text, find_sight
from packager.sources.weight_check import check_weights
from packager.sources.weights import refuse_broken_numbers


class OpenedSource(Struct, frozen=True):
    """A checkpoint and where it came from. ``label`` is a file or directory name, never a path of this host.

    ``chat_template`` is the SHA-256 of the template that took the place of the source's.
    ``reference`` is None for a checkpoint that runs code of its own.
    """

    kind: str
    label: str
    sha256: str
    checkpoint: Checkpoint
    revision: str | None = None
    adapter: dict[str, str] | None = None
    chat_template: str | None = None
    reference: Reference | None = None

    @property
    def digest(self) -> str:
        """One digest of everything that went into ``checkpoint``."""
        parts = [self.sha256, *([self.adapter["sha256"]] if self.adapter else [])]
        parts += [self.chat_template] if self.chat_template else []
        return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For the manifest: what it was, and the digests of its files."""
        found = {"kind": self.kind, "name": self.label, "revision": self.revision, "sha256": self.sha256}
        return {
            key: value
            for key, value in {**found, "adapter": self.adapter, "chat_template": self.chat_template}.items()
            if value is not None
        }


class SourceOptions(Struct, frozen=True):
    """How a source is to be opened. ``adapter`` is merged; ``chat_template`` takes the place of the source's;
    ``trust_code`` lets the checkpoint run Python of its own; ``text_only`` takes the text model of one that also sees.
    """

    revision: str | None = None
    hub_cache: Path | None = None
    adapter: Path | None = None
    chat_template: str | None = None
    trust_code: bool = False
    text_only: bool = False


def open_source(
    text: str,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None],
    options: SourceOptions | None = None,
    *,
    on_headers: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> OpenedSource:
    """Open a model of the hub, a GGUF file or a local checkpoint directory, with an adapter merged in if there is one.

    Only a hub id makes a connection. Conversions are kept in ``cache`` by the digests of what they were made from.
    ``on_headers`` is called once the small files and the headers of the weights are known, and may refuse: the weights
    themselves, gigabytes, are read after that.

    Raises:
        BuildRefused: it is none of these, or cannot become a bundle.
    """
    options = options or SourceOptions()
    check_naming(text)
    # Before the base is fetched or converted, which takes long.
    adapter = None if options.adapter is None else inspect_adapter(options.adapter.expanduser())
    found = _find_base(text, cache, log, on_progress, options)
    base = found.checkpoint
    if base.needs_code and not options.trust_code:
        raise BuildRefused(
            f"{base.architecture} runs Python files of the checkpoint itself; read them, then add --trust-remote-code"
        )
    on_headers(base)
    reference = None
    if not base.needs_code:  # code of the checkpoint alone knows its weights; running it to compare comes later
        asked = base
        if options.chat_template is not None:
            asked, _ = replace_template(base, found.digest(), options.chat_template, cache)
        reference = read_reference(asked, cache, log)
        check_template(asked, reference)
        check_weights(base, reference)
    opened = OpenedSource(found.kind, found.label, found.digest(), base, revision=found.revision, reference=reference)
    refuse_broken_numbers(find_shards(base.path), on_progress)
    if adapter is not None:
        check_base(adapter, base, text)
        merged = merge_adapter(base, opened.sha256, adapter, cache=cache, log=log, on_progress=on_progress)
        names = {"name": adapter.path.resolve().name, "sha256": adapter.sha256}
        opened = msgspec.structs.replace(opened, checkpoint=merged, adapter=names)
    if options.chat_template is not None:
        changed, sha256 = replace_template(opened.checkpoint, opened.digest, options.chat_template, cache)
        opened = msgspec.structs.replace(opened, checkpoint=changed, chat_template=sha256)
    return opened


class _Base(Struct, frozen=True):
    """A source whose weights were not read yet: ``digest`` does that, once."""

    kind: str
    label: str
    digest: Callable[[], str]
    checkpoint: Checkpoint
    revision: str | None = None


def _open_directory(
    path: Path, digest: Callable[[], str], cache: Path, log: Path, options: SourceOptions
) -> Checkpoint:
    """The checkpoint in ``path``: its weights as safetensors, and of a model that also sees, the one that reads."""
    pickled = find_pickled(path)
    if pickled:
        path = convert_pickled(path, pickled, digest(), cache, log)
    architecture = find_sight(path)
    if architecture is not None and options.text_only:
        path = extract_text(path, digest(), architecture, cache, log)
    elif options.text_only:
        raise UsageError("--text-only is for models that also see; this one reads alone", field="text-only")
    return inspect_checkpoint(path)


def _find_base(
    text: str, cache: Path, log: Path, on_progress: Callable[[float, float], None], options: SourceOptions
) -> _Base:
    if is_hub_id(text):
        found, commit = fetch_from_hub(text, options.revision, options.hub_cache, log, on_progress)
        digest = functools.cache(lambda: digest_directory(found))
        checkpoint = _open_directory(found, digest, cache, log, options)
        return _Base("hub", text, digest, checkpoint, revision=commit)
    if options.revision is not None:
        raise UsageError("--revision belongs to a model of the hub; a file or directory has none", field="revision")
    path = Path(text).expanduser()
    if path.is_dir():
        digest = functools.cache(lambda: digest_directory(path))
        checkpoint = _open_directory(path.resolve(), digest, cache, log, options)
        return _Base("checkpoint", path.resolve().name, digest, checkpoint)
    if not path.is_file():
        raise BuildRefused(
            f"{text!r} is neither a GGUF file, nor a directory with a Hugging Face checkpoint, "
            "nor OWNER/MODEL of the hub"
        )
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise BuildRefused(f"{path} is not a GGUF file; name a .gguf file or a checkpoint directory")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Base("gguf", path.name, lambda: sha256, convert_gguf(path.resolve(), sha256, cache, log, on_progress))
