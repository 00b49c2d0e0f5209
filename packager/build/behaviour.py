"""The signed defaults of a bundle: what a build is told, and what the source's ``generation_config.json`` says."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle.manifest import Behaviour, GenerationDefaults
from contract.chat.files import DEFAULT, ChatFiles
from contract.chat.template import ChatTemplate
from contract.errors import BuildRefused, UsageError
from packager.sources.checkpoint import read_json

GENERATION_FILE = "generation_config.json"

MAX_TEXT_BYTES = 1 << 18
"""A system prompt or chat template; the longest published templates (tools and thinking) take 20 kB."""

FIELDS = tuple(field.name for field in msgspec.structs.fields(GenerationDefaults))

_NEXT_FIELD = re.compile(r",(?=[A-Za-z_]+=)")
"""A comma that begins the next ``name=value``; others belong to the value, as in ``stop=,``."""

_SOURCE_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
}
"""What transformers applies only when it samples (``do_sample``)."""

_ALWAYS = {
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "max_new_tokens": "max_tokens",
    "stop_strings": "stop",
}


def read_system_prompt(text: str | None) -> str | None:
    """``text`` itself, or the contents of the file that ``@FILE`` names.

    Raises:
        UsageError: the file cannot be read, or there is nothing in it.
    """
    if text is None:
        return None
    if text.startswith("@"):
        text = read_text_file(Path(text[1:]), "system-prompt").strip("\n")
    if not text.strip():
        raise UsageError("--system-prompt is empty; leave it out for none", field="system-prompt")
    if len(text) > 65536:
        raise UsageError("--system-prompt has more than 65536 characters", field="system-prompt")
    return text


def read_text_file(path: Path, option: str) -> str:
    """A small UTF-8 file.

    Raises:
        UsageError: it cannot be read, is too large, or not UTF-8.
    """
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--{option}: {path} cannot be read: {error.strerror}", field=option) from error
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"--{option}: {path} is larger than {MAX_TEXT_BYTES >> 10} KiB", field=option)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--{option}: {path} is not UTF-8", field=option) from error


def read_template(path: Path) -> str:
    """The chat template of the file ``path``.

    Raises:
        UsageError: it cannot be read, or is no Jinja template.
    """
    text = read_text_file(path, "chat-template")
    fault = ChatTemplate(ChatFiles({DEFAULT: text}, {})).fault
    if fault is not None:
        raise UsageError(f"--chat-template: {path}: {fault.message}", field="chat-template")
    return text


def read_generation(options: Sequence[str]) -> GenerationDefaults:
    """``temperature=0.7,max_tokens=256,stop=END``; ``stop`` may come more than once, or as a JSON list.

    Raises:
        UsageError: naming the field, with the nearest one that there is.
    """
    found: dict[str, Any] = {}
    for pair in (pair for option in options for pair in _pairs(option)):
        name, equals, value = pair.partition("=")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(FIELDS)}"
            raise UsageError(f"--generation has no {name!r}; {hint}", field=f"generation.{name}")
        if not equals or not value:
            raise UsageError(f"--generation needs a value: {name}=…", field=f"generation.{name}")
        if name == "stop":
            found["stop"] = [*found.get("stop", []), *_stops(value)]
        else:
            found[name] = _number(name, value)
    return _convert(found, "--generation")


def _pairs(option: str) -> list[str]:
    """``name=value`` each; a JSON list of stop texts fills an option of its own, since it may hold anything."""
    if option.startswith("stop=[") and _json_list(option.removeprefix("stop=")) is not None:
        return [option]
    return _NEXT_FIELD.split(option)


def _json_list(text: str) -> list[Any] | None:
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def _stops(value: str) -> list[Any]:
    listed = _json_list(value)
    return [value] if listed is None else listed


def _number(name: str, value: str) -> int | float:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--generation {name}={value!r} is not a number", field=f"generation.{name}")
    return number


def _convert(found: Mapping[str, Any], what: str) -> GenerationDefaults:
    try:
        return msgspec.convert(dict(found), GenerationDefaults)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`")
        raise UsageError(f"{what}: {field}: {text.lower()}", field=f"generation.{field}") from error


def generation_of_source(checkpoint: Path) -> GenerationDefaults:
    """What the source's own ``generation_config.json`` says, as transformers applies it: sampling parameters count only
    with ``do_sample``. What it leaves to transformers' defaults is left open here, too.

    Raises:
        BuildRefused: the file is there and cannot be read, or holds values that no request could have.
    """
    path = checkpoint / GENERATION_FILE
    if not path.is_file():
        return GenerationDefaults()
    document = read_json(path)
    if not isinstance(document, dict):
        raise BuildRefused(f"{path} is not a JSON object")
    names = {**_ALWAYS, **(_SOURCE_NAMES if document.get("do_sample") is True else {})}
    found = {ours: document[theirs] for theirs, ours in names.items() if document.get(theirs) is not None}
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    # What says nothing: transformers writes its neutral values out.
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "top_p": 1.0, "min_p": 0.0}
    found = {name: value for name, value in found.items() if neutral.get(name) != value}
    if document.get("do_sample") is True:
        found.setdefault("temperature", 1.0)
    try:
        return _convert(found, GENERATION_FILE)
    except UsageError as error:
        raise BuildRefused(f"{path}: {error.message}") from error


def complete_behaviour(asked: Behaviour, model_dir: Path) -> Behaviour | None:
    """What goes into the manifest: what was asked for goes before what the source says; None for nothing.

    Raises:
        BuildRefused: as :func:`generation_of_source`.
    """
    named = {name: getattr(asked.generation, name) for name in FIELDS}
    generation = msgspec.structs.replace(
        generation_of_source(model_dir), **{name: value for name, value in named.items() if value is not None}
    )
    behaviour = msgspec.structs.replace(asked, generation=generation)
    return None if behaviour == Behaviour() else behaviour
