"""The weight files of a checkpoint as a whole: an index that tells the truth, and every weight of the model in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from contract.errors import BuildRefused
from packager.evaluate.reference import LoadFaults, Reference
from packager.sources.checkpoint import INDEX_FILE, Checkpoint, find_shards, read_weight_map
from packager.sources.weight_names import (
    Mismatch,
    WeightFaults,
    compare_quantised,
    drop_harmless,
    find_odd_types,
    refuse_wrong_weights,
    shape_text,
)
from packager.sources.weights import StoredTensor, find_zeros, list_tensors, refuse_different_tie


def check_weights(checkpoint: Checkpoint, reference: Reference) -> None:
    """Refuse files that are not the weights of the model, all of them and nothing else.

    Raises:
        BuildRefused: with everything missing, unexpected or mismatched; or an index or a tie that the files break.
    """
    held = _list_files(checkpoint)
    tensors = {tensor.name: (shard, tensor) for shard, tensor in held}
    stored = {name: tensor for name, (_, tensor) in tensors.items()}
    quantization = checkpoint.quantization
    if quantization is not None:
        biases = [entry for name, entry in tensors.items() if name.endswith(".bias") and name not in reference.weights]
        faults = compare_quantised(
            stored,
            reference.weights,
            reference.tied,
            method=quantization.method,
            bits=quantization.bits,
            group=quantization.group_size,
            zero_biases=find_zeros(biases),
        )
    elif reference.faults is not None:
        faults = _read_faults(reference.faults, stored.values())
    else:
        raise BuildRefused(f"{checkpoint.path} says in config.json that it is quantised, and by nothing that is known")
    refuse_wrong_weights(checkpoint.architecture, faults)
    for target, source in reference.tied.items():
        if target in tensors and source in tensors:
            refuse_different_tie(tensors[target], tensors[source])


def _list_files(checkpoint: Checkpoint) -> list[tuple[Path, StoredTensor]]:
    shards = find_shards(checkpoint.path)
    held = [(shard, tensor) for shard in shards for tensor in list_tensors(shard)]
    twice = [name for name, count in Counter(tensor.name for _, tensor in held).items() if count > 1]
    if twice:
        raise BuildRefused(f"{checkpoint.path} holds the weight {twice[0]!r} in two files; fetch them again")
    index = checkpoint.path / INDEX_FILE
    if len(shards) > 1 or shards[0].name != "model.safetensors":
        at = {tensor.name: shard.name for shard, tensor in held}
        for name, shard in read_weight_map(index).items():
            if at.get(name) != shard:
                raise BuildRefused(f"{index} states that {name!r} is in {shard}, and it is not; fetch both again")
    others = sorted({path.name for path in checkpoint.path.glob("*.safetensors")} - {shard.name for shard in shards})
    if others and checkpoint.quantization is not None:
        # The builder reads every weight file of a quantised checkpoint.
        raise BuildRefused(f"{checkpoint.path} holds {others[0]!r} beside its own weight files; move it elsewhere")
    return held


def _read_faults(faults: LoadFaults, stored: Iterable[StoredTensor]) -> WeightFaults:
    wrong = [Mismatch(name, shape_text(theirs), shape_text(ours)) for name, theirs, ours in faults.mismatched]
    return WeightFaults(
        missing=faults.missing,
        unexpected=drop_harmless(faults.unexpected),
        mismatched=wrong + find_odd_types(stored),
    )
