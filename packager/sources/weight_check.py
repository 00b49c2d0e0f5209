"""The weight files of a checkpoint as a whole: an index that tells the truth, and every weight of the model in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.evaluate.jobs import LoadFaults, Reference
from packager.sources.checkpoint import Checkpoint
from packager.sources.headers import WeightHeaders, read_headers, refuse_wrong_index
from packager.sources.weight_names import (
    Mismatch,
    WeightFaults,
    compare_quantised,
    drop_harmless,
    find_odd_types,
    refuse_wrong_weights,
    shape_text,
)
from packager.sources.weights import StoredTensor, find_zeros, refuse_different_tie


def check_weights(checkpoint: Checkpoint, reference: Reference, headers: WeightHeaders | None = None) -> None:
    """Refuse files that are not the weights of the model, all of them and nothing else.

    ``headers`` are those of a checkpoint whose numbers are not here yet; what only they can show is left out.

    Raises:
        BuildRefused: with everything missing, unexpected or mismatched; or an index or a tie that the files break.
    """
    headers = headers or read_headers(checkpoint.path)
    where = headers.directory
    if where is not None:
        refuse_wrong_index(where, headers)
        _refuse_others(checkpoint, headers)
    stored = {tensor.name: tensor for tensor in headers.tensors}
    quantization = checkpoint.quantization
    if quantization is not None:
        if not any(name.endswith(".qweight") for name in stored):
            raise BuildRefused(
                f"{checkpoint.path}/config.json states that the weights are quantised with {quantization.method}, and "
                "none is; take quantization_config out of it if they are plain"
            )
        biases = [name for name in stored if name.endswith(".bias") and name not in reference.weights]
        faults = compare_quantised(
            stored,
            reference.weights,
            reference.tied,
            method=quantization.method,
            bits=quantization.bits,
            group=quantization.group_size,
            zero_biases=biases if where is None else find_zeros(_located(where, headers, biases)),
        )
    elif reference.faults is not None:
        faults = _read_faults(reference.faults, stored.values())
    else:
        raise BuildRefused(f"{checkpoint.path} says in config.json that it is quantised, and by nothing that is known")
    refuse_wrong_weights(checkpoint.architecture, faults)
    for pair in reference.tied.items():
        if where is not None and all(name in stored for name in pair):
            refuse_different_tie(*_located(where, headers, pair))


def refuse_more_layers(config: Mapping[str, Any], headers: WeightHeaders) -> None:
    """Refuse a ``config`` of so many layers that the weights cannot be theirs, before anybody makes lists or modules of
    that many.

    Raises:
        BuildRefused: with both numbers.
    """
    for part in (config, config.get("text_config")):
        layers = part.get("num_hidden_layers") if isinstance(part, Mapping) else None
        if isinstance(layers, int | float) and not layers <= len(headers.tensors):
            raise BuildRefused(
                f"config.json states {str(layers)[:20]} layers ('num_hidden_layers'), and there are "
                f"{len(headers.tensors)} weights in all; correct it there, or fetch the files again"
            )


def _located(directory: Path, headers: WeightHeaders, names: Iterable[str]) -> list[tuple[Path, StoredTensor]]:
    at = {tensor.name: (directory / shard, tensor) for shard, tensors in headers.shards.items() for tensor in tensors}
    return [at[name] for name in names]


def _refuse_others(checkpoint: Checkpoint, headers: WeightHeaders) -> None:
    others = sorted({path.name for path in checkpoint.path.glob("*.safetensors")} - set(headers.shards))
    if others and checkpoint.quantization is not None:
        # The builder reads every weight file of a quantised checkpoint.
        raise BuildRefused(f"{checkpoint.path} holds {others[0]!r} beside its own weight files; move it elsewhere")


def _read_faults(faults: LoadFaults, stored: Iterable[StoredTensor]) -> WeightFaults:
    wrong = [Mismatch(name, shape_text(theirs), shape_text(ours)) for name, theirs, ours in faults.mismatched]
    return WeightFaults(
        missing=faults.missing,
        unexpected=drop_harmless(faults.unexpected),
        mismatched=wrong + find_odd_types(stored),
    )
