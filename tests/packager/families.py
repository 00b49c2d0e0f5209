"""A tiny random checkpoint of every family, with the family's real configuration class, and ways to run one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packager.build.jobs import BuilderJob, BuilderReport
from packager.build.plan import BuildPlan
from packager.subprocess_job import OFFLINE, Reporter
from tests.tiny import VOCABULARY, make_tokenizer

os.environ.update(OFFLINE)  # before the libraries read it

CONTEXT = 128
ORIGINAL_CONTEXT = 64
"""Where rope switches from its short to its long factors."""

WINDOW = 40
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.08,
}  # fmt: skip
LOCAL_AND_GLOBAL = ["sliding_attention", "sliding_attention", "full_attention"]


def _longrope(pairs: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.5 + 0.4 * pair for pair in range(pairs)],
        **more,
    }


def _config(kind: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, kind)(**{**BASE, **changes})

    return make


_WIDE: dict[str, Any] = {"original_max_position_embeddings": ORIGINAL_CONTEXT, "sliding_window": 262144}
_GEMMA: dict[str, Any] = {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32}
_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_NESTED = {"sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}
FAMILY_CONFIGS: dict[str, Callable[[], Any]] = {
    "phi-2": _config("PhiConfig", num_key_value_heads=4),
    "phi-3": _config("Phi3Config", original_max_position_embeddings=CONTEXT, sliding_window=WINDOW),
    "phi-3.5-mini": _config("Phi3Config", **_WIDE, rope_parameters=_longrope(16)),
    "phi-4-mini": _config(
        "Phi3Config",
        **_WIDE,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        partial_rotary_factor=0.75,
        rope_parameters=_longrope(24, partial_rotary_factor=0.75),
    ),
    "gemma": _config("GemmaConfig", head_dim=32),
    "gemma-2": _config("Gemma2Config", **_GEMMA),
    "gemma-3": _config("Gemma3TextConfig", **_GEMMA, layer_types=LOCAL_AND_GLOBAL),
    "gemma-3-scaled": _config(
        "Gemma3TextConfig",
        **_GEMMA,
        layer_types=LOCAL_AND_GLOBAL,
        rope_parameters={
            **_NESTED,
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
        },
    ),
    "mistral": _config("MistralConfig", sliding_window=WINDOW),
    "mistral-full": _config("MistralConfig", sliding_window=None),
    "llama-3": _config(
        "LlamaConfig",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "llama-linear": _config(
        "LlamaConfig", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}
    ),
    "llama-dynamic": _config(
        "LlamaConfig", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "qwen-yarn": _config("Qwen2Config", rope_parameters=_YARN),
    "granite-yarn": _config("GraniteConfig", rope_parameters={**_YARN, "attention_factor": 1.3}),
    "qwen-2": _config("Qwen2Config"),
    "qwen-2-window": _config("Qwen2Config", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen-3": _config("Qwen3Config", head_dim=32),
    "smollm-3": _config("SmolLM3Config", no_rope_layers=[1, 0, 1]),
    "nemotron": _config("NemotronConfig", head_dim=32),
    "granite": _config("GraniteConfig", embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22),
    "ernie": _config("Ernie4_5Config", head_dim=32),
    "hunyuan": _config("HunYuanDenseV1Config", head_dim=32),
    "lfm2": _config("Lfm2Config", layer_types=["conv", "full_attention", "conv"]),
    "gemma-3-wide": _config("Gemma3TextConfig", **{**_GEMMA, "sliding_window": 512}, layer_types=LOCAL_AND_GLOBAL),
}  # fmt: skip


def make_random(directory: Path, config: Any) -> Any:
    """Save a random model of ``config`` with a tokenizer to ``directory``; the model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # models this small only lose by a second one
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases and norms that are all zero or one would hide that they are dropped
            centre = 0.0 if "bias" in name or "gemma" in config.model_type else 1.0
            parameter.data.uniform_(centre - 0.1, centre + 0.1)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return model


MENDED = ("Model", "Gemma3Model", "SmolLM3Model")
"""Classes of the builder that workarounds change; a process of its own forgets that, this one must undo it."""


def build_here(
    checkpoint: Path,
    out: Path,
    precision: str,
    ep: str = "cpu",
    options: tuple[str, ...] = (),
    skip: str = "",
    embedding: str | None = None,
    shared: Path | None = None,
) -> BuilderReport:
    """What the builder's process does, in this one: loading its libraries takes longer than a tiny build."""
    from packager.build.model_builder_process import build

    own_embedding = BuildPlan("source", "tiny", "1.0.0", precision=precision, ep=ep).own_embedding
    with tempfile.TemporaryDirectory() as scratch, unmended_afterwards():
        job = BuilderJob(
            str(checkpoint), str(out), scratch, precision, ep, list(options), embedding=embedding or own_embedding,
            skip=skip, shared=None if shared is None else str(shared),
        )  # fmt: skip
        return build(job, Reporter(os.open(os.devnull, os.O_WRONLY)))


@contextlib.contextmanager
def unmended_afterwards() -> Iterator[None]:
    """Undo what workarounds changed in the builder."""
    from onnxruntime_genai.models import builder

    classes = {name: vars(kind).copy() for name in MENDED for kind in [getattr(builder, name)]}
    as_it_comes = {name: getattr(builder, name) for name in MENDED}
    try:
        yield
    finally:
        for name, kind in as_it_comes.items():
            setattr(builder, name, kind)
            for key in [key for key in vars(kind) if vars(kind)[key] is not classes[name].get(key)]:
                if key in classes[name]:
                    setattr(kind, key, classes[name][key])
                else:
                    delattr(kind, key)


def sample_ids(count: int) -> npt.NDArray[np.int32]:
    """The same ``count`` ordinary tokens every time."""
    return np.random.default_rng(1).integers(3, VOCABULARY, count, dtype=np.int32)


def source_logits(model: Any, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Logits of the source at every position."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy())


def runtime(folder: Path) -> Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float32]]:
    """Load ``folder`` once; a function from tokens to logits at every position."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))

    def logits(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=CONTEXT, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        return np.array(generator.get_output("logits")[0])

    return logits


def generate(folder: Path, count: int) -> list[int]:
    """``count`` greedy tokens after a short prompt, fewer when the model ends."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=CONTEXT, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(sample_ids(10))
    while not generator.is_done() and generator.token_count() < 10 + count:
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[10:]]


def difference(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Largest absolute difference, and cosine."""
    return float(np.abs(first - second).max()), cosine(first, second)


def cosine(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Of the angle between them, summed up in double precision: sums in single precision exceed 1 by their rounding,
    which is another one on every processor.
    """
    one, other = first.astype(np.float64), second.astype(np.float64)
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
