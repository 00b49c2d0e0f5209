"""The process that turns a GGUF file into a checkpoint directory; the only one that needs transformers' GGUF reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.child import Reporter, child_main
from packager.sources.weight_names import Mismatch, WeightFaults, drop_harmless, refuse_wrong_weights, shape_text

STEPS = 5


def convert(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Dequantise ``job["gguf"]`` to fp32 and save model, tokenizer, template and special tokens to ``job["out"]``."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    path, out = Path(job["gguf"]), Path(job["out"])
    reporter.progress(1, STEPS)
    try:
        fields = GGUFReader(str(path)).fields
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype="float32", output_loading_info=True
        )
        reporter.progress(2, STEPS)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"{path.name} cannot be read as a language model: {reason}") from error
    faults = WeightFaults(
        missing=sorted(info["missing_keys"]),
        unexpected=drop_harmless(info["unexpected_keys"]),
        mismatched=[
            Mismatch(name, shape_text(stored), shape_text(wanted)) for name, stored, wanted in info["mismatched_keys"]
        ],
    )
    refuse_wrong_weights(type(model).__name__, faults)
    reporter.progress(3, STEPS)
    # A model that was loaded from GGUF refuses to be saved ("quantized with gguf"): a fresh one takes its weights.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    ends = _end_tokens(fields, config.eos_token_id)
    fresh.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id
    )
    reporter.progress(4, STEPS)
    fresh.save_pretrained(out)
    tokenizer.save_pretrained(out)
    reporter.progress(5, STEPS)
    return {"license": _text(fields, "general.license")}


def _end_tokens(fields: Any, eos: Any) -> Any:
    """The tokens that end an answer: chat models end a turn with another token than a text."""
    ids = list(eos) if isinstance(eos, list) else [eos] if eos is not None else []
    for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"):
        if key in fields and (token := int(fields[key].contents())) not in ids:
            ids.append(token)
    return ids[0] if len(ids) == 1 else ids or None


def _text(fields: Any, key: str) -> str | None:
    return str(fields[key].contents()) if key in fields else None


if __name__ == "__main__":
    child_main(convert)
