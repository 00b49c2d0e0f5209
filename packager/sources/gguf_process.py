"""The process that turns a GGUF file into a checkpoint directory; the only one that needs transformers' GGUF reader.

The file's fields are read and judged first, since dequantising takes minutes; transformers then names and dequantises
the weights, and nothing else of what it makes is taken on trust.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.evaluate.reference_process import render
from packager.sources.checkpoint import CARD_FILE
from packager.sources.families import check_architecture
from packager.sources.gguf_metadata import find_ends, read_config
from packager.sources.gguf_tokenizer import CONTROL, settle_tokenizer
from packager.sources.jobs import GGUF, GgufFacts, GgufJob, GgufResult
from packager.sources.weight_names import Mismatch, WeightFaults, drop_harmless, refuse_wrong_weights, shape_text
from packager.subprocess_job import Reporter, child_main

STEPS = 4
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
PARTS = {
    "adapter": "a LoRA adapter", "mmproj": "the part of a model that sees", "clip": "the part of a model that sees",
    "imatrix": "a table of how much each weight matters", "vocab": "a vocabulary without weights",
}  # fmt: skip
"""What files of the same format hold instead, by their type or architecture."""

FAILURES = (ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, RuntimeError, OSError)


def convert(job: GgufJob, reporter: Reporter) -> GgufResult:
    """Save tokenizer, template and special tokens; then, unless only the header is asked for, the model, dequantised to
    fp32.
    """
    path, out = Path(job.gguf), Path(job.out)
    reporter.progress(1, STEPS)
    try:
        kind, fields, factors, tensors = read_fields(path)
        config = make_config(path, kind, fields, factors)
        reporter.progress(2, STEPS)
        judged = judge_weights(path, config, tensors) if job.header else None
        write_tokenizer(path, out, kind, fields)
        _write_card(fields, out / CARD_FILE)
        reporter.progress(3, STEPS)
        if judged is not None:
            resolved = json.loads(config.to_json_string(use_diff=False))
            return GgufResult(GgufFacts(resolved, *judged, render(str(out))))
        write_model(path, config, fields, out)
    except FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"{path.name} cannot be read as a language model: {reason}") from error
    reporter.progress(STEPS, STEPS)
    return GgufResult()


def read_fields(path: Path) -> tuple[str, dict[str, Any], dict[str, list[float]], list[Any]]:
    """The architecture, every field by its name, the numbers of rotary factors, and all tensors as the library has
    them.

    Raises:
        BuildRefused: it is one of several pieces, not whole, or no language model.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
    except FAILURES as error:
        reason = " ".join(str(error).split())[:120]
        raise BuildRefused(f"{path.name} is not whole, or damaged; fetch it again ({reason})") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = str(fields.get("general.architecture", ""))
    if not kind:
        raise BuildRefused(f"{path.name} names no architecture (general.architecture); fetch the model again")
    part = PARTS.get(str(fields.get("general.type", "model")), PARTS.get(kind))
    if part is not None:
        raise BuildRefused(f"{path.name} is {part}; name the GGUF file of the model itself")
    pieces = fields.get("split.count", 1)
    if pieces and pieces > 1:
        raise BuildRefused(f"{path.name} is one of {pieces} pieces; join them with llama.cpp's gguf-split --merge")
    factors = {
        tensor.name: [float(value) for value in tensor.data.ravel()]
        for tensor in reader.tensors
        if tensor.name in FACTORS
    }
    return kind, fields, factors, list(reader.tensors)


def judge_weights(path: Path, config: Any, tensors: list[Any]) -> tuple[str, int]:
    """Architecture and number of weights, if the file holds every weight of the model, in a format that
    can be read.

    Raises:
        BuildRefused: it does not, with what is wrong.
    """
    import torch
    from gguf import dequantize
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    architecture = check_architecture(type(model).__name__)
    for tensor in {tensor.tensor_type: tensor for tensor in tensors}.values():
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except (NotImplementedError, KeyError) as error:
            raise BuildRefused(
                f"{path.name} holds weights as {tensor.tensor_type.name}, which cannot be read; fetch it as Q8_0 or F16"
            ) from error
    named = model
    if config.model_type == "mistral":  # which llama.cpp calls a llama, and so does transformers' reader
        with torch.device("meta"):
            named = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_shapes(config)))
    kind = str(named.config.model_type)
    names = get_gguf_hf_weights_map(named, TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=config.to_dict()))
    stored = {names[tensor.name]: math.prod(map(int, tensor.shape)) for tensor in tensors if tensor.name in names}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name in names.values()}
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    faults = WeightFaults(
        missing=sorted(name for name in wanted.keys() - stored.keys() if tied.get(name) not in stored),
        unexpected=[],
        mismatched=[
            Mismatch(name, f"{stored[name]} numbers", shape_text(wanted[name].shape))
            for name in wanted.keys() & stored.keys()
            if stored[name] != wanted[name].numel()
        ],
    )
    refuse_wrong_weights(architecture, faults)
    return architecture, sum(stored.values())


def make_config(path: Path, kind: str, fields: dict[str, Any], factors: dict[str, list[float]]) -> Any:
    """transformers' configuration, every value of it that the file names as the file names it.

    Raises:
        BuildRefused: the file says what is not known here.
    """
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    own = {name.removeprefix(f"{kind}."): value for name, value in fields.items() if name.startswith(f"{kind}.")}
    stored = read_config(kind, own, factors)
    tokens = fields.get("tokenizer.ggml.tokens") or []
    stored.setdefault("vocab_size", len(tokens))
    guessed = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"):
        guessed.pop(key, None)
    for name, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        stored[key] = fields.get(f"tokenizer.ggml.{name}_token_id")
    merged = {**guessed, **stored}
    config = AutoConfig.for_model(merged.pop("model_type"), **merged)
    made = {
        key: getattr(config, key, None) for key in stored.keys() - {"model_type", "architectures", "rope_parameters"}
    }
    wrong = [f"{key} is {value} instead of {stored[key]}" for key, value in made.items() if value != stored[key]]
    if wrong:
        raise BuildRefused(f"{path.name} cannot be read for what it says: {'; '.join(wrong[:4])}")
    return config


def write_tokenizer(path: Path, out: Path, kind: str, fields: dict[str, Any]) -> None:
    """The file's tokenizer and template."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(out)
    settle_tokenizer(out, kind, fields)


def write_model(path: Path, config: Any, fields: dict[str, Any], out: Path) -> None:
    """The dequantised weights, all that the model has and nothing else.

    Raises:
        BuildRefused: with every weight that is missing, unexpected or mismatched.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    named = model
    if config.model_type == "mistral":  # which llama.cpp calls a llama, and so does transformers' reader
        with torch.device("meta"):
            named = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_shapes(config)))
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=named)["tensors"]
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    faults = WeightFaults(
        missing=sorted(name for name in wanted.keys() - loaded.keys() if tied.get(name) not in loaded),
        unexpected=drop_harmless(loaded.keys() - wanted.keys()),
        mismatched=[
            Mismatch(name, shape_text(tensor.shape), shape_text(wanted[name]))
            for name, tensor in loaded.items()
            if name in wanted and tuple(tensor.shape) != wanted[name]
        ],
    )
    refuse_wrong_weights(type(model).__name__, faults)
    model.load_state_dict({name: tensor.float() for name, tensor in loaded.items()}, strict=False, assign=True)
    model.tie_weights()
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    ends = find_ends(fields, tokens, [kind == CONTROL for kind in types])
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(out)


def _shapes(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}


def _write_card(fields: dict[str, Any], file: Path) -> None:
    """A model card out of the file's own words, with the licence where the hub's cards have it."""
    lines = ["---"]
    if isinstance(fields.get("general.license"), str):
        lines.append(f"license: {' '.join(fields['general.license'].split())[:64]}")
    lines.append("---")
    for key in ("general.name", "general.description", "general.author", "general.organization"):
        if isinstance(fields.get(key), str):
            lines.append(f"{key.removeprefix('general.')}: {' '.join(fields[key].split())[:500]}")
    file.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    child_main(GGUF, convert)
