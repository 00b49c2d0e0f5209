"""A build's options in a file: written by a person (TOML), or by a build, to make the same bundle again.

The keys of a recipe are the options of ``edge-packager build`` with ``_`` for ``-``. What the command line says goes
before the recipe. Paths in it are relative to the recipe.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contract import strict_json
from contract.bundle.manifest import GenerationDefaults
from contract.errors import BundleRefused, UsageError
from packager.build.plan import CALIBRATION_TEXTS, BuildPlan
from packager.evaluate.evidence import BUILD_TOOLS, EVIDENCE_DIR, tool_versions
from packager.sources.checkpoint import TEMPLATE_FILE

PROVENANCE_FILE = "provenance.json"
MAX_RECIPE_BYTES = 1 << 20
"""A page of options; a system prompt may take some kilobytes of it."""

FILE_OPTIONS = ("calibration", "eval", "behaviour", "chat_template")
"""Options that name a file whose contents reach the bundle."""

PATH_OPTIONS = (*FILE_OPTIONS, "adapter", "base", "hub_cache", "cache", "out")


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of a build, as the command line names them."""

    source: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    version: str | UnsetType = UNSET
    epoch: int | UnsetType = UNSET
    precision: str | UnsetType = UNSET
    ep: str | UnsetType = UNSET
    quantizer: str | UnsetType = UNSET
    calibration: str | UnsetType = UNSET
    kv: str | UnsetType = UNSET
    embedding: str | UnsetType = UNSET
    block_size: int | UnsetType = UNSET
    accuracy_level: int | UnsetType = UNSET
    adapter_slots: bool | UnsetType = UNSET
    license: str | UnsetType = UNSET
    revision: str | UnsetType = UNSET
    hub_cache: str | UnsetType = UNSET
    adapter: str | UnsetType = UNSET
    merge_adapter: bool | UnsetType = UNSET
    base: str | UnsetType = UNSET
    eval: str | UnsetType = UNSET
    behaviour: str | UnsetType = UNSET
    max_kl: float | UnsetType = UNSET
    max_perplexity_ratio: float | UnsetType = UNSET
    accept_quality: str | UnsetType = UNSET
    system_prompt: str | UnsetType = UNSET
    chat_template: str | UnsetType = UNSET
    generation: GenerationDefaults | UnsetType = UNSET
    out: str | UnsetType = UNSET
    cache: str | UnsetType = UNSET


OPTIONS = tuple(field.name for field in msgspec.structs.fields(Recipe))


class UsedFile(Struct, frozen=True):
    """A file that an option named; ``name`` without its directory."""

    name: str
    sha256: str


class RecordedBuild(Struct, frozen=True):
    """What ``evidence/provenance.json`` says of a build: its options, the files they named, the source, the tools."""

    recipe: Recipe
    source: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, UsedFile] = {}

    @property
    def tools_changed(self) -> list[str]:
        """Packages whose version is another one here."""
        here = tool_versions(BUILD_TOOLS)
        return [
            f"{name} {version} (here {here.get(name, 'none')})"
            for name, version in sorted(self.tools.items())
            if here.get(name) != version
        ]


def read_recipe(path: Path) -> dict[str, Any]:
    """The options of a TOML file, by their names.

    Raises:
        UsageError: it cannot be read, or has a key or value that no option has.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise UsageError(f"the recipe {path} is larger than {MAX_RECIPE_BYTES >> 10} KiB", field="recipe")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}", field="recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} is not TOML: {error}", field="recipe") from error
    for key in document:
        if key not in OPTIONS:
            near = difflib.get_close_matches(key.replace("-", "_"), OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else "its keys are the options of edge-packager build"
            raise UsageError(f"the recipe {path} has the key {key!r}, which is no option; {hint}", field=key)
    try:
        recipe = msgspec.convert(document, Recipe)
    except msgspec.ValidationError as error:
        text, _, field = str(error).partition(" - at `$.")
        field = field.rstrip("`")
        raise UsageError(f"the recipe {path}: {field}: {text.lower()}", field=field) from error
    return _resolve(options_of(recipe), path.parent)


def _resolve(options: dict[str, Any], directory: Path) -> dict[str, Any]:
    for name in PATH_OPTIONS:
        if name in options and not (name == "calibration" and options[name] in CALIBRATION_TEXTS):
            options[name] = str(directory / Path(options[name]).expanduser())
    source = options.get("source")
    if source is not None and (directory / Path(source).expanduser()).exists():
        options["source"] = str(directory / Path(source).expanduser())
    return options


def options_of(recipe: Recipe) -> dict[str, Any]:
    """What ``recipe`` says, by option."""
    return {name: getattr(recipe, name) for name in OPTIONS if getattr(recipe, name) is not UNSET}


def read_recorded_build(path: Path) -> RecordedBuild:
    """What a build wrote into its evidence: ``path`` is ``provenance.json``, or the bundle that holds it.

    Raises:
        UsageError: it cannot be read, or holds no recipe.
    """
    file = path / EVIDENCE_DIR / PROVENANCE_FILE if path.is_dir() else path
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_RECIPE_BYTES + 1)
        document = strict_json.loads(data, max_bytes=MAX_RECIPE_BYTES, what=file.name)
        return msgspec.convert(document, RecordedBuild)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", field="from") from error
    except (BundleRefused, msgspec.ValidationError) as error:
        raise UsageError(f"{file} holds no recipe of a build: {error}", field="from") from error


def replay(recorded: RecordedBuild, given: dict[str, Any]) -> dict[str, Any]:
    """The options that make ``recorded`` again, with the local files that ``given``, the command line, names.

    Raises:
        UsageError: a file is not named, or is not the one that was used.
    """
    options = {**options_of(recorded.recipe), **given}
    if recorded.source.get("kind") != "hub" and "source" not in given:
        raise UsageError(
            f"that build read {recorded.source.get('name')!r}, which is no model of the hub: name it as SOURCE",
            field="source",
        )
    for option, used in recorded.files.items():
        flag = f"--{option.replace('_', '-')}"
        if option not in given:
            raise UsageError(f"that build read {used.name!r}: name it with {flag}", field=option)
        if _file_digest(Path(str(given[option]))) != used.sha256:
            raise UsageError(f"{flag} {given[option]} is not the file that was used, {used.name!r}", field=option)
    if "adapter" in recorded.source and "adapter" not in given:
        raise UsageError(
            f"that build added the adapter {recorded.source['adapter'].get('name')!r}: name it with --adapter",
            field="adapter",
        )
    return options


def _file_digest(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", field="from") from error


def record_build(plan: BuildPlan, source: dict[str, Any]) -> dict[str, Any]:
    """``recipe`` and ``files`` for the evidence of a build: no paths of this host, and no names but of files."""
    quality, behaviour = plan.quality, plan.behaviour
    hub = source.get("kind") == "hub"
    named = {
        "source": plan.source if hub else UNSET,
        "revision": source.get("revision", UNSET) if hub else UNSET,
        "merge_adapter": True if "adapter" in source else UNSET,
        "license": plan.license or UNSET,
        "calibration": plan.calibration if plan.calibration in CALIBRATION_TEXTS[1:] else UNSET,
        "max_kl": _or_unset(quality.max_kl),
        "max_perplexity_ratio": _or_unset(quality.max_perplexity_ratio),
        "accept_quality": _or_unset(quality.accept),
        "system_prompt": _or_unset(behaviour.system_prompt),
        "generation": behaviour.generation if behaviour.generation != GenerationDefaults() else UNSET,
    }
    plain = (
        "name",
        "version",
        "epoch",
        "precision",
        "ep",
        "quantizer",
        "kv",
        "embedding",
        "block_size",
        "accuracy_level",
    )
    recipe = Recipe(**{name: getattr(plan, name) for name in plain}, adapter_slots=plan.adapter_slots, **named)
    files = {
        "calibration": None if plan.calibration in CALIBRATION_TEXTS else Path(plan.calibration),
        "eval": None if quality.eval_file is None else Path(quality.eval_file),
        "behaviour": None if quality.behaviour_file is None else Path(quality.behaviour_file),
    }
    used = {
        option: {"name": path.name, "sha256": _file_digest(path)} for option, path in files.items() if path is not None
    }
    template = plan.origin.chat_template
    if template is not None:
        used["chat_template"] = {"name": TEMPLATE_FILE, "sha256": hashlib.sha256(template.encode()).hexdigest()}
    return {"recipe": msgspec.to_builtins(recipe), **({"files": used} if used else {})}


def _or_unset(value: Any) -> Any:
    return UNSET if value is None else value
