"""What every family's part that sees is judged by before weights are read: names, shapes, and the processor's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.sources.checkpoint import read_json
from packager.sources.text_only import name_of_text
from packager.sources.vocabulary import TOKENIZER_FILE
from packager.sources.weight_names import (
    Mismatch,
    WeightFaults,
    drop_harmless,
    find_odd_types,
    refuse_wrong_weights,
    shape_text,
)
from packager.sources.weights import StoredTensor

PROCESSOR_FILE = "preprocessor_config.json"
NEWER_FILE = "processor_config.json"
"""Where transformers 5 saves the same, beside what it says of other kinds of input."""

_NEWER = re.compile(r"^model\.(?=visual\.|vision_tower\.|multi_modal_projector\.)")
_TOWER = re.compile(r"^vision_tower\.(?!vision_model\.)")


def published_name(name: str) -> str:
    """What a weight is called where models are published: versions of transformers save it under other names.

    One of the text model has its name there, so that all families' embeddings are called the same.
    """
    text = name_of_text(name)
    if text is not None:
        return text
    return _TOWER.sub("vision_tower.vision_model.", _NEWER.sub("", name))


def refuse_wrong_vision(
    architecture: str,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    unread: re.Pattern[str],
) -> None:
    """Refuse weights of the part that sees, by their published names, that are not those ``wanted``.

    Raises:
        BuildRefused: some are missing, of another size or type, or more than those and ``unread``.
    """
    faults = WeightFaults(
        missing=sorted(wanted.keys() - stored.keys()),
        unexpected=drop_harmless(name for name in stored.keys() - wanted.keys() if unread.match(name) is None),
        mismatched=[
            Mismatch(name, shape_text(stored[name].shape), shape_text(size))
            for name, size in wanted.items()
            if name in stored and stored[name].shape != size
        ]
        + find_odd_types(stored.values()),
    )
    refuse_wrong_weights(architecture, faults)


def read_processor(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of the checkpoint in ``path`` that says what pictures become, and what it says.

    Raises:
        BuildRefused: it is missing or no JSON object.
    """
    file, newer = path / PROCESSOR_FILE, path / NEWER_FILE
    if not file.is_file() and newer.is_file():
        document = read_json(newer)
        within = document.get("image_processor") if isinstance(document, dict) else None
        if isinstance(within, dict):
            return newer, within
    if not file.is_file():
        raise BuildRefused(f"{path} has no {PROCESSOR_FILE}, which says what pictures become; fetch it too")
    document = read_json(file)
    if not isinstance(document, dict):
        raise BuildRefused(f"{file} is not a JSON object; fetch it again")
    return file, document


def same_numbers(given: Any, wanted: Sequence[float]) -> bool:
    """Whether a list in a configuration is ``wanted``, as far as it is written out."""
    return isinstance(given, list) and [_rounded(value) for value in given] == [_rounded(value) for value in wanted]


def _rounded(value: Any) -> float | None:
    return round(value, 6) if isinstance(value, float | int) and not isinstance(value, bool) else None


def read_colours(file: Path, given: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the three colours of pixels, as the processor's ``file`` has them.

    Raises:
        BuildRefused: they are no three numbers, or pixels are no longer scaled to one before.
    """
    found = []
    for key in ("image_mean", "image_std"):
        values = given.get(key)
        if (
            not isinstance(values, list)
            or len(values) != 3
            or not all(isinstance(value, float | int) and not isinstance(value, bool) for value in values)
            or (key == "image_std" and not all(value > 0 for value in values))
        ):
            raise BuildRefused(f"{file} has {key} {values!r}; three numbers are expected, one for each colour")
        found.append(tuple(float(value) for value in values))
    for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", True)):
        if given.get(key, wanted) not in (wanted, None):
            raise BuildRefused(f"{file} has {key} {given[key]!r}; the runtime always does that")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise BuildRefused(f"{file} has rescale_factor {factor!r}; the runtime's is 1/255")
    return found[0], found[1]


def refuse_other_token(path: Path, text: str, number: int) -> None:
    """Refuse a tokenizer whose ``text`` is not the token that config.json says stands for pictures.

    Raises:
        BuildRefused: it is another or none.
    """
    file = path / TOKENIZER_FILE
    document = read_json(file) if file.is_file() else None
    if not isinstance(document, dict):
        return  # what has no such file is refused for that
    added = document.get("added_tokens")
    found = {each.get("content"): each.get("id") for each in added or [] if isinstance(each, dict)}
    if found.get(text) != number:
        raise BuildRefused(
            f"{file} has {text} as token {found.get(text)!r}, and in config.json {number} stands for pictures"
        )
