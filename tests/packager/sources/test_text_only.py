"""Models that see, as text bundles; pickled weights; sharded ones: each the same model as its source."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import BuildRefused, UsageError
from packager.sources import pickled, text_only
from packager.sources.checkpoint import Checkpoint
from packager.sources.jobs import PICKLED, TEXT_CONFIG
from packager.sources.opening import SourceOptions, convert_directory, open_source
from packager.sources.pickled import read_pickled_headers
from packager.sources.pickled_process import convert
from packager.sources.survey import survey_directory
from packager.sources.text_config_process import resolve
from packager.sources.weight_check import check_weights
from packager.subprocess_job import Reporter, Task
from tests.packager.families import FAMILY_CONFIGS, difference, make_random, sample_ids, source_logits
from tests.packager.sources.test_published import reference_of
from tests.tiny import VOCABULARY, make_tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "initializer_range": 0.08,
}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.fixture(autouse=True)
def children_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes of their own do, in this one: loading their libraries takes longer than their work."""

    def run(task: Task[Any, Any], job: Any, log: Path, **more: Any) -> Any:
        work: Any = {TEXT_CONFIG.module: resolve, PICKLED.module: convert}[task.module]
        return work(job, Reporter(os.open(os.devnull, os.O_WRONLY)))

    monkeypatch.setattr(text_only, "run_child", run)
    monkeypatch.setattr(pickled, "run_child", run)


def gemma_3() -> tuple[str, Any]:
    from transformers import Gemma3Config

    text = {**TEXT, "sliding_window": 512, "query_pre_attn_scalar": 32, "num_hidden_layers": 6}
    return "Gemma3ForConditionalGeneration", Gemma3Config(
        text_config=text, vision_config={**VISION, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )


def mistral_3() -> tuple[str, Any]:
    from transformers import Mistral3Config

    return "Mistral3ForConditionalGeneration", Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "rope_theta": 1e9, "sliding_window": None},
        vision_config={**VISION, "model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16},
    )


def qwen_25_vl() -> tuple[str, Any]:
    from transformers import Qwen2_5_VLConfig

    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    rope = {"type": "mrope", "mrope_section": [4, 6, 6]}
    return "Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLConfig(
        text_config={**text, "rope_theta": 1e6, "rope_scaling": rope},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64},
    )


def qwen_3_vl() -> tuple[str, Any]:
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return "Qwen3VLForConditionalGeneration", Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
                       "deepstack_visual_indexes": [0]},
    )  # fmt: skip


SEEING: dict[str, tuple[Callable[[], tuple[str, Any]], Callable[[str], str]]] = {
    "gemma-3-4b": (gemma_3, lambda name: "language_model." + name.replace("model.language_model.", "model.")
                   if "language_model" in name else name.removeprefix("model.")),
    "mistral-small-3.1": (mistral_3, lambda name: "language_model." + name.replace("model.language_model.", "model.")
                          if "language_model" in name or "lm_head" in name else name.removeprefix("model.")),
    "qwen2.5-vl": (qwen_25_vl, lambda name: name.replace("model.visual.", "visual.").replace(".language_model.", ".")),
    "qwen3-vl": (qwen_3_vl, lambda name: name),
}  # fmt: skip
"""How each is made, and what its weights are called where it is published."""


def make_seeing(directory: Path, name: str) -> Any:
    import torch
    import transformers
    from safetensors.torch import save_file

    kind, published = SEEING[name]
    architecture, config = kind()
    torch.manual_seed(5)
    model = getattr(transformers, architecture)(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(-0.1, 0.1)
    directory.mkdir()
    tied = bool(getattr(config, "tie_word_embeddings", False))
    tensors = {
        published(key): value.clone().contiguous()
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    document = {**config.to_dict(), "architectures": [architecture], "tie_word_embeddings": tied, **TOKENS}
    (directory / "config.json").write_text(json.dumps(document))
    (directory / "preprocessor_config.json").write_text("{}")
    make_tokenizer().save_pretrained(directory)
    return model


def opened(directory: Path, tmp_path: Path, **options: Any) -> Checkpoint:
    surveyed, whole = survey_directory(directory, text_only=bool(options.get("text_only")))
    found = convert_directory(directory, "0" * 64, tmp_path / "cache", tmp_path / "log", SourceOptions(**options))
    assert surveyed.architecture == found.architecture
    assert (surveyed.config["vocab_size"], whole) == (found.config["vocab_size"], found.path == directory)
    assert 0.8 * found.parameters < surveyed.parameters < 1.5 * found.parameters
    return found


@pytest.mark.parametrize("name", SEEING)
def test_the_text_model_of_one_that_sees(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = make_seeing(tmp_path / "source", name)
    with pytest.raises(BuildRefused, match="add --text-only"):
        opened(tmp_path / "source", tmp_path)
    checkpoint = opened(tmp_path / "source", tmp_path, text_only=True)
    assert not (checkpoint.path / "preprocessor_config.json").exists()
    check_weights(checkpoint, reference_of(checkpoint.path))
    text = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    ids = sample_ids(60)
    furthest, _ = difference(source_logits(text, ids), source_logits(model, ids))
    assert furthest < 1e-4


def make_phi_that_sees(source: Path) -> Any:
    """Phi-3.5-vision: its text model has the names of Phi-3.5-mini, its configuration class lies in the checkpoint."""
    import torch
    from safetensors.torch import load_file, save_file

    model = make_random(source, FAMILY_CONFIGS["phi-3.5-mini"]())
    document = json.loads((source / "config.json").read_text())
    document |= {
        "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "embd_layer": {"image_dim_out": 1024},
        "img_processor": {"name": "clip_vision_model"},
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(document))
    tensors = load_file(source / "model.safetensors")
    vision = {"model.vision_embed_tokens.glb_GN": torch.zeros(1, 1, 4)}
    save_file({**tensors, **vision}, source / "model.safetensors", metadata={"format": "pt"})
    return model


def test_a_phi_that_sees_is_a_phi_that_reads_under_the_same_names(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    source = tmp_path / "source"
    make_phi_that_sees(source)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.vision_embed_tokens.glb_GN"]
    checkpoint = opened(source, tmp_path, text_only=True)
    assert (checkpoint.architecture, checkpoint.family, checkpoint.needs_code) == ("Phi3ForCausalLM", "phi3", False)
    check_weights(checkpoint, reference_of(checkpoint.path))
    kept = load_file(checkpoint.path / "model.safetensors")
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[name], tensors[name]) for name in tensors)


def test_its_names_are_judged_before_its_weights_are_copied(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_seeing(tmp_path / "source", "gemma-3-4b")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    [name] = [name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight") and "vision" not in name]
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(BuildRefused, match=r"1 missing in the files: model\.layers\.1\.mlp\.up_proj\.weight"):
        open_source(
            str(tmp_path / "source"), tmp_path / "cache", tmp_path / "log", lambda done, total: None,
            SourceOptions(text_only=True),
        )  # fmt: skip
    assert not (tmp_path / "cache" / "checkpoints").exists()


def test_text_only_of_a_model_that_reads_alone(tmp_path: Path) -> None:
    make_random(tmp_path / "source", FAMILY_CONFIGS["qwen-2"]())
    with pytest.raises(UsageError, match="reads alone"):
        opened(tmp_path / "source", tmp_path, text_only=True)


class TestPickled:
    @pytest.mark.parametrize("sharded", [False, True])
    def test_the_same_weights_as_safetensors(self, sharded: bool, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import load_file

        source = tmp_path / "source"
        make_random(source, FAMILY_CONFIGS["qwen-2"]())
        tensors = load_file(source / "model.safetensors")
        (source / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = [names[::2], names[1::2]] if sharded else [names]
        index = {}
        for number, part in enumerate(parts, 1):
            file = f"pytorch_model-{number:05}-of-00002.bin" if sharded else "pytorch_model.bin"
            torch.save({name: tensors[name] for name in part}, source / file)
            index |= dict.fromkeys(part, file)
        if sharded:
            (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        checkpoint = opened(source, tmp_path)
        check_weights(checkpoint, reference_of(checkpoint.path))
        kept: dict[str, Any] = {}
        for file in checkpoint.path.glob("*.safetensors"):
            kept |= load_file(file)
        assert kept.keys() == tensors.keys()
        assert all(np.array_equal(kept[name].numpy(), tensors[name].numpy()) for name in tensors)

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        import torch

        class Trap:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "sprung"),)

        source = tmp_path / "source"
        make_random(source, FAMILY_CONFIGS["qwen-2"]())
        (source / "model.safetensors").unlink()
        file = source / "pytorch_model.bin"
        torch.save({"x": Trap()}, file)
        for refused in (lambda: opened(source, tmp_path), lambda: read_pickled_headers([file], tmp_path / "log")):
            with pytest.raises(BuildRefused, match="holds more than tensors"):
                refused()
        file.write_bytes(pickle.dumps({"x": Trap()}))
        with pytest.raises(BuildRefused, match="or of the format that torch wrote before version"):
            opened(source, tmp_path)
        assert not (tmp_path / "sprung").exists()
