"""The process that computes a checkpoint of two layers twice: as transformers does, and as the built graph does.

Beyond a window or the switch of rotary factors, what came before is a cache of random keys and values, the same on both
sides: attention over it costs what it must, and nothing has to be computed to get there.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.errors import BuildRefused
from packager.build.jobs import BuilderJob, BuilderReport
from packager.build.model_builder_process import build
from packager.evaluate.jobs import LOGITS, LogitsJob, LogitsResult
from packager.graph.dequantised import dequantise
from packager.graph.truncation import write_truncated
from packager.subprocess_job import Event, Reporter, child_main

Logits = npt.NDArray[np.float32]
Cache = list[tuple[Any, Any]]
"""Keys and values ``[1, heads, positions, size]`` of each layer."""

STEPS = 5
FRESH = (40, 24)
"""Tokens read from the beginning, by slices."""

AROUND = (8, 16)
"""Tokens read around a boundary, by slices: the first ends before it, the second lies on both sides."""

BEFORE = 12
"""Positions before a boundary where reading begins."""

QUANTISED = ("accuracy_level=1", "nodes_to_exclude=/lm_head/MatMul", "shared_embeddings=false")
"""Options with which the builder computes with stored codes in fp32 and leaves the head as it is."""


def compare(job: LogitsJob, reporter: Reporter) -> LogitsResult:
    """Cut, run, build, run, compare."""
    scratch = Path(job.scratch)
    cut, plain, out = scratch / "checkpoint", scratch / "plain", scratch / "graph"
    write_truncated(Path(job.checkpoint), cut, job.config, job.layers)
    method = job.method
    if method:
        _write_plain(cut, plain, method, job.bits)
    reporter.progress(1, STEPS)
    starts = [0, *(max(1, boundary - BEFORE) for boundary in job.boundaries)]
    source = plain if method else cut
    wanted, pasts, vocabulary = run_source(source, starts, "float32", None)
    reporter.progress(2, STEPS)
    dtype, own = _own_type(source), None
    if dtype not in ("float32", "float64"):
        own, _, _ = run_source(source, starts, dtype, pasts)
    reporter.progress(3, STEPS)
    precision, options = (f"int{job.bits}", [f"block_size={job.group}", *QUANTISED]) if method else ("fp32", [])
    (scratch / "builder").mkdir()
    work = BuilderJob(str(cut), str(out), str(scratch / "builder"), precision, ep="cpu", options=options, skip=job.skip)
    report = _build(work, method)
    gc.collect()
    reporter.progress(4, STEPS)
    found = run_graph(out, starts, pasts, vocabulary)
    spread = float(np.concatenate(wanted).std())
    return LogitsResult(
        positions=sum(len(rows) for rows in wanted),
        spread=spread,
        furthest=_furthest(found, wanted),
        own_type=dtype,
        own_furthest=None if own is None else _furthest(found, own),
        own_rounding=None if own is None else _furthest(wanted, own),
        workarounds=report.workarounds,
    )


def _build(work: BuilderJob, method: str | None) -> BuilderReport:
    try:
        return build(work, _Silent())
    except Exception as error:
        if method is None:
            raise
        # Its readers of such checkpoints know fewer families than it does itself.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BuildRefused(
            f"the model builder cannot read a checkpoint of this family that is quantised with {method} ({reason}); "
            "name the checkpoint that it was made from"
        ) from error


class _Silent(Reporter):
    """The builder's steps are one of ours."""

    def __init__(self) -> None:
        """Nowhere to report to."""

    def send(self, event: Event) -> None:
        return None


def _furthest(found: list[Logits], wanted: list[Logits]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True))


def _own_type(checkpoint: Path) -> str:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def _write_plain(cut: Path, plain: Path, method: str, bits: int) -> None:
    """The quantised checkpoint ``cut`` with the weights that its codes stand for, in fp32."""
    from safetensors.torch import load_file, save_file

    plain.mkdir()
    config = json.loads((cut / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    config.pop("dtype", None)
    (plain / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}), "utf-8")
    tensors = dequantise(load_file(cut / "model.safetensors"), method, bits)
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})


def _ids(start: int, vocabulary: int) -> list[npt.NDArray[np.int64]]:
    """The tokens read at ``start``, the same every time, by slices."""
    sizes = AROUND if start else FRESH
    ids = np.random.default_rng(start).integers(0, vocabulary, sum(sizes))
    return list(np.split(ids.astype(np.int64), np.cumsum(sizes)[:-1]))


def run_source(
    checkpoint: Path, starts: list[int], dtype: str, pasts: list[Cache] | None
) -> tuple[list[Logits], list[Cache], int]:
    """Logits of every position read, by ``starts``; the caches before them, and the size of the vocabulary.

    Caches are made where there are none: random numbers as large as the model's own.
    """
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.eval()
    text = model.config.get_text_config()
    vocabulary = int(text.vocab_size)
    rows: list[Logits] = []
    made: list[Cache] = []
    scales: list[tuple[float, float]] = []
    with torch.inference_mode():
        for number, start in enumerate(starts):
            past: Any = None
            if start:
                entry = pasts[number] if pasts is not None else _random_cache(scales, made[0], start)
                if pasts is None:
                    made.append(entry)
                # Without a configuration every layer keeps everything; windows are the masks' then.
                past = DynamicCache()
                for layer, (keys, values) in enumerate(entry):
                    past.update(keys.to(model.dtype), values.to(model.dtype), layer)
            at = start
            slices = []
            for ids in _ids(start, vocabulary):
                positions = torch.arange(at, at + len(ids))[None]
                output = model(torch.tensor(ids)[None], past_key_values=past, position_ids=positions, use_cache=True)
                past, at = output.past_key_values, at + len(ids)
                slices.append(output.logits[0].float().numpy())
            rows.append(np.concatenate(slices))
            if not start and pasts is None and len(starts) > 1:
                made.append([(layer.keys, layer.values) for layer in past.layers])
                scales = [(float(keys.std()), float(values.std())) for keys, values in made[0]]
    if not all(np.isfinite(each).all() for each in rows):
        raise BuildRefused(
            "the source gives numbers that are not finite with two of its layers; its weights are damaged"
        )
    return rows, made if pasts is None else pasts, vocabulary


def _random_cache(scales: list[tuple[float, float]], like: Cache, length: int) -> Cache:
    import torch

    generator = torch.Generator().manual_seed(length)
    cache: Cache = []
    for (keys, values), pair in zip(like, scales, strict=True):
        shapes = [(*tensor.shape[:2], length, tensor.shape[3]) for tensor in (keys, values)]
        first, second = (
            size * torch.randn(shape, generator=generator) for size, shape in zip(pair, shapes, strict=True)
        )
        cache.append((first, second))
    return cache


def run_graph(folder: Path, starts: list[int], pasts: list[Cache], vocabulary: int) -> list[Logits]:
    """The same with the built ``folder``, its graph driven directly: caches are read and written in place."""
    import onnxruntime

    facts = read_genai_config((folder / CONFIG_FILE).read_bytes())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(folder / facts.filename), options, providers=["CPUExecutionProvider"])
    inputs = {entry.name: entry for entry in session.get_inputs()}
    rows = []
    for number, start in enumerate(starts):
        slices = _ids(start, vocabulary)
        room = max(start + sum(map(len, slices)), facts.least_cache)
        state = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values)
            for name, values in _make_state(inputs, pasts[number] if start else None, room, facts.head_size).items()
        }
        at, found = start, []
        for ids in slices:
            feed = {"input_ids": ids[None], "attention_mask": np.ones((1, at + len(ids)), np.int64)}
            if "position_ids" in inputs:
                feed["position_ids"] = np.arange(at, at + len(ids), dtype=np.int64)[None]
            binding = session.io_binding()
            for name, values in feed.items():
                binding.bind_cpu_input(name, values)
            for name, value in state.items():
                after = name.replace("_key_values", "").replace("past", "present", 1)
                binding.bind_ortvalue_input(name, value)
                if name.endswith((".key", ".value")):
                    binding.bind_ortvalue_output(after, value)
                else:  # what a convolution keeps is another tensor each time
                    state[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(value.numpy()))
                    binding.bind_ortvalue_output(after, state[name])
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            at += len(ids)
            found.append(np.asarray(binding.get_outputs()[-1].numpy()[0], dtype=np.float32))
        rows.append(np.concatenate(found))
    return rows


def _make_state(inputs: dict[str, Any], cache: Cache | None, room: int, head: int) -> dict[str, Logits]:
    """What the graph has to remember before the first token, by input: nothing, or ``cache``, with ``room`` for all."""
    state: dict[str, Logits] = {}
    for name, entry in inputs.items():
        if not name.startswith("past"):
            continue
        parts = name.split(".")
        shape = [size if isinstance(size, int) else 0 for size in entry.shape]
        shape[0] = 1
        if parts[-1] in ("key", "value"):
            shape[2:] = [room, head]
        values = np.zeros(shape, np.float32)
        if cache is not None:
            given = cache[int(parts[1])][parts[-1] == "value"].numpy()
            values[:, :, : given.shape[2]] = given
        state[name] = values
    return state


if __name__ == "__main__":
    child_main(LOGITS, compare)
