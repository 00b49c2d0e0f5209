"""Every published layout times every kind of source: what each becomes is the source, or is refused with a sentence.

The table of ``docs/FAMILIES.md`` is made of this one: ``python -m tests.packager.matrix`` prints it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from packager.build.plan import BuildPlan
from packager.evaluate.check_process import Runtime, _respelled, _stopping
from packager.evaluate.conformance import compare, compare_ends
from packager.evaluate.corpus import TEXTS
from packager.evaluate.ends import find_ends
from packager.evaluate.jobs import LogitsJob, Reference
from packager.evaluate.logits_process import QUANTISED, _write_plain
from packager.evaluate.logits_process import compare as compare_layers
from packager.graph.facts import read_back
from packager.graph.rope_check import compare_rope
from packager.sources.checkpoint import Checkpoint, inspect_checkpoint
from packager.sources.weight_check import check_weights
from packager.subprocess_job import Reporter
from tests.packager.families import build_here, difference, source_logits, unmended_afterwards
from tests.packager.gguf_files import write_published_gguf
from tests.packager.published import PUBLISHED, write_layout

KINDS = ("safetensors", "sharded", "bin", "gguf", "gptq", "awq")

SEEING = {
    "phi-3.5-vision": "phi-3.5-mini", "gemma-3-4b": "gemma-3-270m", "mistral-small-3.1": "mistral-7b-v0.3",
    "qwen2.5-vl": "qwen2.5", "qwen3-vl": "qwen3",
}  # fmt: skip
"""Layouts of models that also see, built with ``--text-only``, and whose tokenizer and template each has."""

LAYOUTS = (*PUBLISHED, *SEEING)

LLAMA_CPP = {
    "llama-2": "llama", "llama-2-with-padding": "llama", "llama-3": "llama", "llama-3.1": "llama", "llama-3.2": "llama",
    "tinyllama": "llama", "longchat-linear": "llama", "smollm2": "llama", "mistral-7b-v0.1": "llama",
    "mistral-7b-v0.3": "llama", "mistral-nemo": "llama", "ministral-8b": "llama", "mistral-small-3.1": "llama",
    "deepseek-r1-distill-llama": "llama", "phi-3-mini-4k": "phi3", "phi-3.5-mini": "phi3", "phi-3.5-vision": "phi3",
    "phi-4-mini": "phi3", "gemma": "gemma", "gemma-2": "gemma2", "gemma-3-270m": "gemma3", "gemma-3-1b": "gemma3",
    "gemma-3-4b": "gemma3", "qwen2.5": "qwen2", "qwen2.5-yarn": "qwen2", "qwen3": "qwen3", "qwen2.5-vl": "qwen2vl",
    "qwen3-vl": "qwen3vl", "deepseek-r1-distill-qwen": "qwen2", "phi-2": "phi2", "smollm3": "smollm3",
    "granite-3.3": "granite",
}  # fmt: skip
"""What llama.cpp calls each layout."""

HEADLINE = ("llama-3.2", "qwen2.5", "gemma-3-270m", "phi-3.5-mini", "mistral-7b-v0.3")
"""Shown from every kind of source whenever the tests run; the others from safetensors."""

NO_READER = "transformers' reader of GGUF does not know it"
NO_LOADER = "the builder reads no such checkpoint of it"
REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    **{(layout, "gguf"): ("cannot be read as a language model", NO_READER)
       for layout in ("gemma", "smollm3", "granite-3.3", "qwen2.5-vl", "qwen3-vl")},
    ("phi-2", "gguf"): ("as no phi2 model does", NO_READER),
    **{("phi-2", kind): ("cannot read a checkpoint of this family that is quantised", NO_LOADER)
       for kind in ("gptq", "awq")},
}  # fmt: skip
"""Cells that cannot be built, with what the refusal says, and the reason in the documentation."""

BOUND = 1e-3
"""Of the spread of the source's logits."""


def is_quick(layout: str, kind: str) -> bool:
    """Whether a cell is among those that every run of the tests shows."""
    return kind == "safetensors" or layout in HEADLINE


class Published(msgspec.Struct):
    """A layout as its makers publish it: where it lies, and the model that it is."""

    path: Path
    model: Any
    text_only: bool


def publish(layout: str, directory: Path, *, exact: bool) -> Published:
    """``layout`` in plain safetensors; its weights in fp32 where ``exact``, else in the type it is published in."""
    import torch
    from transformers import AutoModelForCausalLM

    if layout in SEEING:
        return _publish_seeing(layout, directory)
    write_layout(directory, PUBLISHED[layout], dtype="float32" if exact else None)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return Published(directory, model, text_only=False)


def _publish_seeing(layout: str, directory: Path) -> Published:
    from tests.packager.sources.test_text_only import make_phi_that_sees, make_seeing

    model = make_phi_that_sees(directory) if layout == "phi-3.5-vision" else make_seeing(directory, layout)
    for file in directory.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            file.unlink()
    like = write_layout(directory.parent / "like", PUBLISHED[SEEING[layout]])
    for file in like.iterdir():
        if "token" in file.name or file.suffix == ".jinja" or file.name == "generation_config.json":
            shutil.copyfile(file, directory / file.name)
    said = json.loads((like / "config.json").read_text())
    ids = {key: said[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in said}
    document = json.loads((directory / "config.json").read_text())
    for part in (document, document.get("text_config", {})):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            part.pop(key, None)
    (directory / "config.json").write_text(json.dumps({**document, **ids}))
    return Published(directory, model, text_only=True)


def shard(source: Path) -> None:
    """Cut the weights of ``source`` into two files with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )


def pickle(source: Path) -> None:
    """Make the weights of ``source`` a ``pytorch_model.bin``."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


Open = Callable[[Path, bool], Checkpoint]
"""Opens a directory, of a model that also sees the text model, as a build does."""
OpenGguf = Callable[[Path, Path], Path]


def show(
    layout: str, kind: str, place: Path, opening: Open, read_gguf: OpenGguf, look: Callable[[Path], Reference]
) -> None:
    """Build ``layout`` from a source of ``kind`` in fp32 and hold everything against what was published.

    Raises:
        AssertionError: it is not the source.
        BuildRefused: it cannot be built.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    published = publish(layout, place / "published", exact=kind == "gguf")
    source, model = published.path, published.model
    theirs = look(source if not published.text_only else opening(source, True).path)
    ends = find_ends(source, AutoTokenizer.from_pretrained(source))
    if kind == "gguf":  # which has no generation_config.json, and names nothing that stands there alone
        ends = {token: named for token, named in ends.items() if named != ["generation_config.json"]}
    if kind == "gguf":
        plain = source if not published.text_only else opening(source, True).path
        more = {"attention.sliding_window": 4096} if layout == "mistral-7b-v0.1" else {}
        write_published_gguf(place / "model.gguf", plain, LLAMA_CPP[layout], **more)
        checkpoint = inspect_checkpoint(read_gguf(place / "model.gguf", place / "converted"))
    else:
        changed = place / "changed"
        shutil.copytree(source, changed)
        {"sharded": shard, "bin": pickle}.get(kind, lambda path: None)(changed)
        if kind in ("gptq", "awq"):
            from tests.packager.sources.test_sources import quantise

            quantise(changed, kind)
        checkpoint = opening(changed, published.text_only)
    check_weights(checkpoint, look(checkpoint.path))
    options: list[str] = []
    if checkpoint.quantization is not None:
        options = ["block_size=32", *QUANTISED]
        _write_plain(checkpoint.path, place / "plain", kind, 4)
        model = AutoModelForCausalLM.from_pretrained(place / "plain", dtype=torch.float32).eval()
    precision = "int4" if options else "fp32"
    if (layout, kind) in REFUSED:  # by what every build computes first
        (place / "scratch").mkdir()
        job = LogitsJob(
            str(checkpoint.path), theirs.config, [0, 1], [], method=kind, bits=4, group=32,
            scratch=str(place / "scratch"),
        )  # fmt: skip
        with unmended_afterwards():
            compare_layers(job, Reporter(os.open(os.devnull, os.O_WRONLY)))
    report = build_here(checkpoint.path, place / "built", precision, options=tuple(options), embedding="float")
    config, graph = read_back(place / "built")
    if not options:
        plan = BuildPlan("source", "tiny", "1.0.0", precision="fp32")
        assert compare(plan, report.config, config, graph) == []
    assert theirs.rope is not None
    assert compare_rope(theirs.rope, config, place / "built") == []
    runtime = Runtime(place / "built", 1)
    spellings = theirs.spellings
    if kind == "gguf":  # which lacks what transformers adds by the tokenizer's class alone
        stored = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
        own = {f"a {token['content']} b" for token in stored}
        spellings = [each for each in spellings if each[0] in TEXTS or each[0] in own]
    assert _respelled(runtime, spellings) == []
    assert runtime.rerendered(theirs.templates.renderings) == []
    assert set(_stopping(runtime)) >= {token for token in ends if token < config.vocab_size}
    assert compare_ends(report.ends, config) == []
    spread = float(source_logits(model, np.arange(3, 40, dtype=np.int32)).std())
    for length in PUBLISHED[SEEING.get(layout, layout)].lengths:
        ids = np.random.default_rng(length).integers(6, config.vocab_size - 80, length, dtype=np.int32)
        found = np.concatenate([rows for _, rows in runtime.walk([*map(int, ids), 0], 1, 64)])
        furthest, _ = difference(found, source_logits(model, ids))
        assert furthest <= BOUND * spread, f"{length} tokens: {furthest} of {spread}"


NOTES = {
    "phi-2": "epsilon 1e-5, a rotated share of each head",
    "phi-3-mini-4k": "window of 2047, `<\\|end\\|>` ends a turn",
    "phi-3.5-mini": "both sets of factors",
    "phi-4-mini": "three quarters of each head, shared embedding",
    "phi-3.5-vision": "`--text-only` (whole: [VISION](VISION.md)): the same weights under the same names",
    "gemma-2": "window of 4096, soft caps",
    "gemma-3-270m": "window of 512, 40 and 600 tokens",
    "gemma-3-1b": "`<image_soft_token>` without a row",
    "gemma-3-4b": "`--text-only` (whole: [VISION](VISION.md)): logits equal the whole model's",
    "mistral-7b-v0.1": "window of 4096",
    "mistral-nemo": "heads of another length than width divided by heads",
    "mistral-small-3.1": "`--text-only`: logits equal the whole model's",
    "llama-2-with-padding": "an unused `[PAD]` without a row",
    "llama-3.1": "rotary factors",
    "longchat-linear": "linear scaling",
    "qwen2.5-yarn": "YaRN as documented",
    "qwen2.5-vl": "`--text-only` (whole: [VISION](VISION.md)): logits equal the whole model's",
    "qwen3-vl": "`--text-only`: logits equal the whole model's",
    "smollm2": "the real one, too: built, deployed and asked (`make demo`)",
    "smollm3": "layers that do not rotate",
    "granite-3.3": "multipliers",
    "deepseek-r1-distill-qwen": "control tokens beyond ASCII",
}


def table() -> list[str]:
    """The lines of the table in the documentation."""
    lines = [f"| layout as published | {' | '.join(KINDS)} | |", f"|---|{'---|' * len(KINDS)}---|"]
    for layout in LAYOUTS:
        cells = ["no" if (layout, kind) in REFUSED else "yes" for kind in KINDS]
        why = dict.fromkeys(REFUSED[layout, kind][1] for kind in KINDS if (layout, kind) in REFUSED)
        notes = [*([NOTES[layout]] if layout in NOTES else []), *(f"no: {reason}" for reason in why)]
        lines.append(f"| {layout} | {' | '.join(cells)} | {'; '.join(notes)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
