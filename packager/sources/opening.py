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
from packager.evaluate.jobs import Reference, Templates
from packager.evaluate.reference import read_reference, read_templates
from packager.sources.adapter import check_base, inspect_adapter, merge_adapter, pending_merge
from packager.sources.checkpoint import (
    INDEX_FILE,
    Checkpoint,
    Pending,
    digest_directory,
    find_shards,
    inspect_checkpoint,
)
from packager.sources.gguf import check_gguf, convert_gguf, pending_gguf, survey_gguf
from packager.sources.headers import WeightHeaders, read_headers, refuse_wrong_index
from packager.sources.hub import fetch_from_hub, is_hub_id, look_at_hub
from packager.sources.naming import check_directory, check_naming
from packager.sources.pickled import INDEX as PICKLED_INDEX
from packager.sources.pickled import convert_pickled, find_pickled, read_pickled_headers
from packager.sources.survey import pending_directory, survey_directory, survey_small_files
from packager.sources.template import check_template, replace_template
from packager.sources.text_only import extract_text, find_vision, is_built_whole, name_of_text, read_text_config
from packager.sources.vision_part import VisionPart, count_vision, open_vision_part
from packager.sources.weight_check import check_weights, refuse_more_layers
from packager.sources.weights import refuse_broken_numbers
from packager.vision.families import vision_family


class OpenedSource(Struct, frozen=True):
    """A checkpoint and where it came from. ``label`` is a file or directory name, never a path of this host.

    ``chat_template`` is the SHA-256 of the template that took the place of the source's.
    ``reference`` is None for a checkpoint that runs code of its own. Where there is a ``vision`` part, ``checkpoint``
    is the text model beside it.
    """

    kind: str
    label: str
    sha256: str
    checkpoint: Checkpoint
    revision: str | None = None
    adapter: dict[str, str] | None = None
    chat_template: str | None = None
    reference: Reference | None = None
    vision: VisionPart | None = None

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


class Outline(Struct, frozen=True):
    """Names and shapes of the weights of a checkpoint that is yet to be; its ``config`` where that is to be another."""

    headers: WeightHeaders
    config: dict[str, Any] | None = None


class _Found(Struct, frozen=True):
    """A source that nothing was read of but small files and headers: ``checkpoint`` is what will come of it.

    ``whole``: it is a checkpoint as it stands. ``outline`` reads what weights it has, None where that is not known yet
    or, of a GGUF file, judged already. ``read`` hashes, converts or fetches.
    """

    checkpoint: Checkpoint
    whole: bool
    read: Callable[[Progress], OpenedSource]
    outline: Callable[[], Outline | None] = lambda: None
    templates: Templates | None = None


Progress = Callable[[float, float], None]


def open_source(
    text: str,
    cache: Path,
    log: Path,
    on_progress: Progress,
    options: SourceOptions | None = None,
    *,
    on_headers: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> OpenedSource:
    """Open a model of the hub, a GGUF file or a local checkpoint directory, with an adapter merged in if there is one.

    What small files and headers say is judged first, also by ``on_headers``, which is given what will come of the
    source as far as it is known: no weights are read, hashed, converted or fetched before. Only a hub id makes a
    connection. Conversions are kept in ``cache`` by the digests of what they were made from.

    Raises:
        BuildRefused: it is none of these, or cannot become a bundle.
    """
    options = options or SourceOptions()
    check_naming(text)
    adapter = None if options.adapter is None else inspect_adapter(options.adapter.expanduser())
    found = _find(text, cache, log, on_progress, options)
    if found.checkpoint.needs_code and not options.trust_code:
        raise BuildRefused(
            f"{found.checkpoint.architecture} runs Python files of the checkpoint itself; read them, then add "
            "--trust-remote-code"
        )
    pending = found.checkpoint.pending
    if adapter is not None:
        pending = pending.then(pending_merge(found.checkpoint, cache))
    on_headers(msgspec.structs.replace(found.checkpoint, pending=pending))
    outline = found.outline()
    if adapter is not None and outline is not None:
        check_base(adapter, found.checkpoint, outline.headers, text)
    reference = _check_headers(found, outline, cache, log, options)
    opened = found.read(on_progress)
    base = opened.checkpoint
    if not found.whole:
        converted = _Found(base, True, found.read)
        reference = _check_headers(converted, Outline(read_headers(base.path)), cache, log, options)
    opened = msgspec.structs.replace(opened, reference=reference)
    whole = base.path if opened.vision is None else opened.vision.directory
    refuse_broken_numbers(find_shards(whole), on_progress)
    if adapter is not None:
        check_base(adapter, base, read_headers(base.path), text)
        merged = merge_adapter(base, opened.sha256, adapter, cache=cache, log=log, on_progress=on_progress)
        names = {"name": adapter.path.resolve().name, "sha256": adapter.sha256}
        opened = msgspec.structs.replace(opened, checkpoint=merged, adapter=names)
    if options.chat_template is not None:
        changed, sha256 = replace_template(opened.checkpoint, opened.digest, options.chat_template, cache)
        opened = msgspec.structs.replace(opened, checkpoint=changed, chat_template=sha256)
    return opened


def _check_headers(
    found: _Found, outline: Outline | None, cache: Path, log: Path, options: SourceOptions
) -> Reference | None:
    """Template, names and shapes, as far as they are known; None where the checkpoint's own code would have to run."""
    base, template = found.checkpoint, options.chat_template
    if base.needs_code:
        return None  # code of the checkpoint alone knows its weights; running it to compare comes later
    if outline is not None:
        refuse_more_layers(outline.config or base.config, outline.headers)
        reference = read_reference(base, cache, log, template, headers=outline.headers, config=outline.config)
        check_template(base.path, reference.templates, template)
        check_weights(base, reference, outline.headers)
        return reference
    templates = found.templates if template is None else None
    check_template(base.path, templates or read_templates(base.path, log, template), template)
    return None


def _find(text: str, cache: Path, log: Path, on_progress: Progress, options: SourceOptions) -> _Found:
    if is_hub_id(text):
        return _find_on_hub(text, cache, log, on_progress, options)
    if options.revision is not None:
        raise UsageError("--revision belongs to a model of the hub; a file or directory has none", field="revision")
    path = Path(text).expanduser()
    if path.is_dir():
        return _find_directory(path.resolve(), cache, log, options)
    if not path.is_file():
        raise BuildRefused(
            f"{text!r} is neither a GGUF file, nor a directory with a Hugging Face checkpoint, "
            "nor OWNER/MODEL of the hub"
        )
    if options.text_only:
        raise UsageError("--text-only is for checkpoint directories; a GGUF file reads alone", field="text-only")
    return _find_gguf(path, cache, log)


def _find_directory(path: Path, cache: Path, log: Path, options: SourceOptions) -> _Found:
    sees, options = _takes_vision(path, options)
    checkpoint, whole = survey_directory(path, text_only=options.text_only)
    pickled = find_pickled(path)

    @functools.cache
    def outline() -> Outline:
        headers = read_pickled_headers(pickled, log) if pickled else read_headers(path)
        refuse_wrong_index(path, headers, PICKLED_INDEX if pickled else INDEX_FILE)
        if sees:
            vision_family(path).check(path, headers.tensors)
        return _outline_text(path, headers, log, options)

    def read(on_progress: Progress) -> OpenedSource:
        digest = digest_directory(path)
        made = checkpoint if whole else convert_directory(path, digest, cache, log, options, config=outline().config)
        opened = OpenedSource("checkpoint", path.name, digest, made)
        return msgspec.structs.replace(opened, vision=open_vision_part(path, digest, cache, log)) if sees else opened

    pending = Pending() if whole else pending_directory(path, checkpoint, cache, text_only=options.text_only)
    seen = count_vision(read_headers(path)) if sees and not pickled else 0
    checkpoint = msgspec.structs.replace(checkpoint, pending=pending, sees=sees, vision_parameters=seen)
    return _Found(checkpoint, whole, read, outline)


def _takes_vision(path: Path, options: SourceOptions) -> tuple[bool, SourceOptions]:
    """Whether ``path`` is to see, and the options for its text model then: that is taken out of it like any other."""
    sees = is_built_whole(path) and not options.text_only
    return sees, msgspec.structs.replace(options, text_only=True) if sees else options


def _outline_text(path: Path, headers: WeightHeaders, log: Path, options: SourceOptions) -> Outline:
    """What ``headers`` are of the text model where that is asked for."""
    architecture = find_vision(path) if options.text_only else None
    if architecture is None:
        return Outline(headers)
    return Outline(headers.rename(name_of_text), read_text_config(path, architecture, log))


def _find_gguf(path: Path, cache: Path, log: Path) -> _Found:
    check_gguf(path)
    checkpoint, templates = survey_gguf(path.resolve(), cache, log)
    pending = pending_gguf(checkpoint, cache)

    def read(on_progress: Progress) -> OpenedSource:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made = convert_gguf(path.resolve(), digest, checkpoint, cache=cache, log=log, on_progress=on_progress)
        return OpenedSource("gguf", path.name, digest, made)

    return _Found(msgspec.structs.replace(checkpoint, pending=pending), False, read, templates=templates)


def _find_on_hub(text: str, cache: Path, log: Path, on_progress: Progress, options: SourceOptions) -> _Found:
    seen = look_at_hub(text, options.revision, options.hub_cache, log)
    check_directory(seen.path, text)
    sees, options = _takes_vision(seen.path, options)
    checkpoint = survey_small_files(seen.path, seen.weight_bytes, text_only=options.text_only)
    pending = Pending(
        disk_bytes=seen.weight_bytes if options.text_only else 0,
        download_bytes=seen.missing_bytes,
        download_directory=seen.path,
    )

    @functools.cache
    def outline() -> Outline | None:
        if seen.headers is None:
            return None
        refuse_wrong_index(seen.path, seen.headers, PICKLED_INDEX if seen.pickled else INDEX_FILE)
        if sees:
            vision_family(seen.path).check(seen.path, seen.headers.tensors)
        return _outline_text(seen.path, seen.headers, log, options)

    def read(on_progress: Progress) -> OpenedSource:
        # The commit that was judged, whatever its branch is at by now.
        path = fetch_from_hub(text, seen.commit, options.hub_cache, log, on_progress)
        survey_directory(path, text_only=options.text_only)
        digest = digest_directory(path)
        known = outline()
        config = None if known is None else known.config
        made = convert_directory(path, digest, cache, log, options, config=config)
        opened = OpenedSource("hub", text, digest, made, revision=seen.commit)
        return msgspec.structs.replace(opened, vision=open_vision_part(path, digest, cache, log)) if sees else opened

    parameters = count_vision(seen.headers) if sees and seen.headers is not None else 0
    checkpoint = msgspec.structs.replace(checkpoint, pending=pending, sees=sees, vision_parameters=parameters)
    return _Found(checkpoint, False, read, outline)


def convert_directory(
    path: Path, digest: str, cache: Path, log: Path, options: SourceOptions, *, config: dict[str, Any] | None = None
) -> Checkpoint:
    """The checkpoint in ``path``: its weights as safetensors, and of a model that also sees, the one that reads, with
    ``config`` where that is known already.
    """
    pickled = find_pickled(path)
    if pickled:
        path = convert_pickled(path, pickled, digest, cache, log)
    architecture = find_vision(path)
    if architecture is not None and options.text_only:
        path = extract_text(path, digest, architecture, cache, log, config=config)
    return inspect_checkpoint(path)
