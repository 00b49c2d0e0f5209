"""The default quantizer: one pass over a short text, on a grid that the builder finds again; always the same bytes."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from contract.errors import BuildRefused, UsageError
from packager import subprocess_job
from packager.build.estimate import estimate_build
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan, check_plan, goes_layer_by_layer, settle_quantizer
from packager.evaluate.check import CANARY_QUESTIONS
from packager.evaluate.source_process import load_source
from packager.evaluate.text import reference_text
from packager.graph.dequantised import dequantise
from packager.quantize import samples, single_pass
from packager.quantize.calibrate import calibrate_checkpoint, describe_calibration
from packager.quantize.export import gptq_tensors
from packager.quantize.gptq import plan_compensation, round_rows
from packager.quantize.grid import BLOCK, Grid
from packager.quantize.jobs import CalibrationJob, CalibrationResult
from packager.quantize.layers import Rounded
from packager.quantize.passages import digest_passages, read_passages
from packager.quantize.process import calibrate
from packager.quantize.samples import tokens_of_passages
from packager.quantize.single_pass import Shards, round_in_one_pass
from packager.sources.checkpoint import Quantization, digest_directory, inspect_checkpoint
from packager.sources.shape import ModelShape
from packager.subprocess_job import Reporter
from tests.forked import start_module
from tests.packager.build.test_build import manifest_of
from tests.packager.families import (
    FAMILY_CONFIGS,
    build_here,
    difference,
    make_random,
    runtime,
    sample_ids,
    source_logits,
)
from tests.packager.quantize.test_rounding import inputs, matrix, output_error
from tests.random_checkpoint import config_of, list_weights

PLAN = BuildPlan("source", "tiny", "1.0.0")


def job(checkpoint: Path, root: Path, **changes: Any) -> CalibrationJob:
    (root / "out").mkdir(exist_ok=True, parents=True)
    found = CalibrationJob(
        str(checkpoint), "gptq-fast", str(root / "out"), str(root / "stages"), text=None, passages="any", by_layer=True
    )
    return replace(found, **changes)


def quietly(work: CalibrationJob) -> CalibrationResult:
    return calibrate(work, Reporter(os.open(os.devnull, os.O_WRONLY)))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in sorted(checkpoint.glob("*.safetensors")) for name, one in load_file(path).items()}


def requantised(weight: torch.Tensor, block: int) -> torch.Tensor:
    """By largest magnitudes, as the model builder does; zeros fill up the last block."""
    short = -weight.shape[1] % block
    blocks = torch.nn.functional.pad(weight, (0, short)).reshape(len(weight), -1, block)
    scale = torch.gather(blocks, -1, blocks.abs().argmax(-1, keepdim=True)) / -8
    rounded = torch.where(scale == 0, 0, torch.round(blocks / scale).clamp(-8, 7) * scale)
    return rounded.reshape(len(weight), -1)[:, : weight.shape[1]]


@pytest.fixture
def as_another_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny Llama is treated as a family whose GPTQ checkpoints the builder is not known to read."""
    monkeypatch.setattr(single_pass, "GPTQ_FAMILIES", ())


@pytest.mark.parametrize("families", [("llama",), ()])
def test_an_interrupted_pass_goes_on_and_ends_in_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_pass, "GPTQ_FAMILIES", families)

    class Stopping:
        def progress(self, done: float, total: float) -> None:
            raise KeyboardInterrupt

    work = job(tiny_checkpoint, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        calibrate(work, cast(Reporter, Stopping()))
    assert [path.name for path in (tmp_path / "broken" / "stages").iterdir()] == ["model-layer-0000.safetensors"]
    done = quietly(work)
    assert done.matrices == 2 * 7 + 1
    quietly(job(tiny_checkpoint, tmp_path / "whole"))
    assert digest_directory(tmp_path / "broken" / "out") == digest_directory(tmp_path / "whole" / "out")
    stored = inspect_checkpoint(tmp_path / "whole" / "out").quantization
    assert stored == (Quantization("gptq", 4, 32) if families else None)


@pytest.mark.parametrize("full", [True, False])
def test_no_layer_is_lost_where_the_last_step_fails(
    tiny_checkpoint: Path, tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room for the tokenizer; or it is interrupted while layers are moved to where they belong."""
    work = job(tiny_checkpoint, tmp_path)
    rename = Path.rename

    def copy(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted(path: Path, target: Path) -> Path:
        if target.parent == tmp_path / "out" and any(target.parent.glob("*.safetensors")):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError if full else KeyboardInterrupt):
        patched.setattr(shutil, "copyfile", copy) if full else patched.setattr(Path, "rename", interrupted)
        quietly(work)
    made = {path.name: path.stat().st_ino for path in tmp_path.glob("*/model-layer-*")}
    assert len(made) == 2
    quietly(work)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("model-layer-*")} == made, "made again"


KILLED = """
import os, pathlib, signal
replace = pathlib.Path.replace
def then_die(path, target):
    replace(path, target)
    if pathlib.Path(target).name == "model-layer-0000.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = then_die
"""
"""The kernel ends the process right after a layer was written."""


def test_one_that_was_killed_for_memory_says_so_and_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLED)
    checkpoint, cache = inspect_checkpoint(tiny_checkpoint), tmp_path / "cache"
    plan = replace(PLAN, quantizer="gptq-fast")

    def run() -> Path:
        made, _ = calibrate_checkpoint(
            checkpoint, plan, None, cache, log=tmp_path / "log", on_progress=lambda done, total: None
        )
        return made.path

    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path / "killer"), prepend=":")
        patched.setattr(subprocess_job, "start_module", start_module)
        with pytest.raises(BuildRefused) as caught:
            run()
    assert caught.value.message == (
        "memory ran out while calibrating was at work; end other programs and build again, which resumes from what is "
        "done"
    )
    [layer] = cache.glob("calibrated/.*/stages/*.safetensors")
    kept = layer.stat().st_ino
    assert (run() / layer.name).stat().st_ino == kept, "not made again"


def test_packed_weights_are_read_back_as_they_were(tmp_path: Path) -> None:
    given = inputs(128)
    plan = plan_compensation(given.pow(2).sum(0), lambda columns: given[:, columns].t() @ given[:, columns])
    for block in (16, 32, 64):
        rounded = Rounded(*round_rows(matrix(48, 128), plan, symmetric=False, block=block))
        assert torch.equal(dequantise(gptq_tensors("a", rounded), "gptq", 4)["a.weight"], rounded.weight())


@pytest.mark.usefixtures("as_another_family")
@pytest.mark.parametrize("block", [16, 32, 128])
def test_the_builder_finds_the_very_grid_again(tiny_checkpoint: Path, tmp_path: Path, block: int) -> None:
    quietly(job(tiny_checkpoint, tmp_path, block=block))
    source, made = weights_of(tiny_checkpoint), weights_of(tmp_path / "out")
    assert made.keys() == source.keys()
    matrices = [name for name, one in made.items() if one.ndim == 2]
    assert len(matrices) == 2 * 7 + 1
    for name in made:
        same = torch.equal(made[name], source[name])
        assert same is (name not in matrices), name
    for name in matrices:
        assert torch.equal(requantised(made[name], block), made[name]), name


@pytest.mark.usefixtures("as_another_family")
def test_half_precision_holds_every_rounded_weight(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint in bfloat16 becomes one in float16 whose weights are exactly those of the grid."""
    half = {name: one.bfloat16() for name, one in weights_of(tiny_checkpoint).items()}
    (tmp_path / "source").mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "source" / path.name).write_bytes(path.read_bytes())
    save_file(half, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_checkpoint / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    quietly(job(tmp_path / "source", tmp_path))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    for name, one in weights_of(tmp_path / "out").items():
        assert one.dtype == torch.float16
        if one.ndim == 2:
            assert torch.equal(requantised(one.float(), 32), one.float()), name
    assert str(load_source(str(tmp_path / "out"))[0].dtype) == "torch.float16"


def test_the_sources_own_weights_are_there_again_after_the_pass(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One layer in fp32 at a time: what was passed is given back, and what comes is not yet taken."""
    model, tokenizer = load_source(str(tiny_checkpoint))
    mapped = {name: tensor.data_ptr() for name, tensor in model.named_parameters() if ".layers." in name}
    held: list[int] = []

    def look(done: int, of: int) -> None:
        held.append(
            sum(tensor.data_ptr() != mapped[name] for name, tensor in model.named_parameters() if name in mapped)
        )

    with torch.no_grad():
        round_in_one_pass(
            model, tokens_of_passages(tokenizer, 512), Shards(tmp_path, torch.float32), block=32, on_layer=look
        )
    assert held == [0, 0]


@pytest.mark.parametrize(("span", "part"), [(None, 0.5), (48, 0.6)])
def test_rows_are_rounded_better_than_by_the_grid_alone(span: int | None, part: float) -> None:
    weight, given = matrix(48, 100), inputs(100)
    plan = plan_compensation(given.pow(2).sum(0), lambda columns: given[:, columns].t() @ given[:, columns], span=span)
    assert sorted(int(one) for columns, _ in plan.spans for one in columns) == list(range(100))
    levels, grid = round_rows(weight, plan, symmetric=True)
    rounded = levels * grid.spread(grid.scale)[:, :100]
    nearest = requantised(weight, BLOCK)
    assert output_error(weight, rounded, given) < part * output_error(weight, nearest, given)


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen-2", "qwen-3", "phi-3.5-mini", "gemma-3"])
def test_the_graph_computes_what_was_rounded(family: str, tmp_path: Path) -> None:
    """In fp32 activations, so that nothing but a grid that was not found again could make a difference."""
    config = FAMILY_CONFIGS[family]()
    config.tie_word_embeddings = True  # a table of its own would be rounded by other rules
    model = make_random(tmp_path / "source", config)
    quietly(job(tmp_path / "source", tmp_path))
    made = dequantise(weights_of(tmp_path / "out"), "gptq", 4)
    packed = inspect_checkpoint(tmp_path / "out").quantization is not None
    assert packed is (model.config.model_type in single_pass.GPTQ_FAMILIES)
    wanted = source_logits(model, sample_ids(40))
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in made:
                tensor.copy_(made[name])
    rounded = source_logits(model, sample_ids(40))
    build_here(tmp_path / "out", tmp_path / "graph", "int4", options=("block_size=32", "accuracy_level=1"))
    computed = runtime(tmp_path / "graph")(sample_ids(40))
    assert difference(computed, rounded)[0] < 1e-3
    assert difference(computed, wanted)[0] > 1e-2


@pytest.mark.parametrize("family", sorted(FAMILY_CONFIGS))
def test_every_family_is_rounded(family: str, tmp_path: Path) -> None:
    make_random(tmp_path / "source", FAMILY_CONFIGS[family]())
    done = quietly(job(tmp_path / "source", tmp_path))
    source, made = weights_of(tmp_path / "source"), weights_of(tmp_path / "out")
    if inspect_checkpoint(tmp_path / "out").quantization is None:
        assert {name: one.shape for name, one in made.items()} == {name: one.shape for name, one in source.items()}
    assert sum(name not in made or not torch.equal(made[name], one) for name, one in source.items()) == done.matrices


def test_a_template_that_asks_for_the_date_gives_the_same_text_every_day(tiny_checkpoint: Path) -> None:
    _, tokenizer = load_source(str(tiny_checkpoint))
    plain = tokens_of_passages(tokenizer, 512)
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}" + tokenizer.chat_template
    dated = tokens_of_passages(tokenizer, 512)
    assert "01 January 2025" in tokenizer.decode(dated.flatten())
    assert len(dated) >= len(plain)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "Question: " in tokenizer.decode(tokens_of_passages(tokenizer, 512).flatten())


def test_bundles_are_not_judged_by_what_they_were_rounded_on() -> None:
    shipped = " ".join(text for passage in read_passages() for text in passage)
    assert len(shipped) > 12_000
    assert not any(question in shipped for question in CANARY_QUESTIONS)
    judged = reference_text().text
    assert not any(line in judged for line in shipped.splitlines() if len(line) > 40)


class TestDefault:
    def test_plain_int4_on_a_cpu_is_calibrated(self, tiny_checkpoint: Path) -> None:
        assert settle_quantizer(check_plan(PLAN), inspect_checkpoint(tiny_checkpoint)).quantizer == "gptq-fast"

    @pytest.mark.parametrize("changes", [{"precision": "int8"}, {"precision": "fp32"}, {"ep": "cuda"}])
    def test_where_it_was_not_measured_weights_are_rounded_to_nearest(
        self, tiny_checkpoint: Path, changes: dict[str, Any]
    ) -> None:
        plan = check_plan(msgspec.structs.replace(PLAN, **changes))
        assert settle_quantizer(plan, inspect_checkpoint(tiny_checkpoint)).quantizer == "rtn"

    def test_so_are_experts_and_what_is_quantised_stays(self, tiny_checkpoint: Path) -> None:
        checkpoint = inspect_checkpoint(tiny_checkpoint)
        experts = msgspec.structs.replace(checkpoint, config={**checkpoint.config, "num_local_experts": 8})
        stored = msgspec.structs.replace(checkpoint, quantization=Quantization("awq", 4, 32))
        for one in (experts, stored):
            assert settle_quantizer(PLAN, one).quantizer == "rtn"
        with pytest.raises(UsageError, match="--calibration is for"):
            settle_quantizer(msgspec.structs.replace(PLAN, calibration="shipped"), experts)

    def test_what_was_named_is_taken(self, tiny_checkpoint: Path) -> None:
        for quantizer in ("rtn", "gptq", "k-quant"):
            plan = msgspec.structs.replace(PLAN, quantizer=quantizer)
            assert settle_quantizer(plan, inspect_checkpoint(tiny_checkpoint)) == plan

    def test_a_build_is_nearer_to_its_source(self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        plain = manifest_of(tiny_bundle)
        built = build_bundle(BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0"), tmp_path / "out", cache=tmp_path / "one")
        manifest = built.manifest
        assert manifest.model.quantizer == "gptq-fast"
        assert manifest.quality["kl"] < 0.6 * plain.quality["kl"]
        sizes = [sum(entry.size for entry in made.files if entry.role == "model") for made in (manifest, plain)]
        assert sizes[0] < 1.04 * sizes[1]  # the graph file itself weighs in a model this small
        said = json.loads((tmp_path / "out" / "evidence" / "provenance.json").read_text())
        assert said["options"]["calibration"] == {"text": "shipped", "sha256": digest_passages(), "length": 256}
        assert said["options"]["calibration"] == describe_calibration(
            msgspec.structs.replace(PLAN, quantizer="gptq-fast"), 10**9
        )
        assert said["recipe"]["quantizer"] == "gptq-fast"


class TestLargeModels:
    """``gptq`` beyond the size whose scales are tuned: its own longer text, one layer in memory at a time."""

    def test_it_is_the_pass_on_what_the_model_writes(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(samples, "SEQUENCES", 8)
        monkeypatch.setattr(samples, "LENGTH", 48)
        done = quietly(job(tiny_checkpoint, tmp_path, quantizer="gptq", passages=None))
        assert (done.tokens, done.tuned) == (8 * 48, False)
        assert inspect_checkpoint(tmp_path / "out").quantization == Quantization("gptq", 4, 32)
        kept = sorted(path.name for path in (tmp_path / "stages").iterdir())
        assert kept == ["samples.pt"], "an interrupted one does not write its text again"

    def test_sequences_are_written_together_as_memory_allows(
        self, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, tokenizer = load_source(str(tiny_checkpoint))
        monkeypatch.setattr(samples, "SEQUENCES", 8)
        monkeypatch.setattr(samples, "LENGTH", 24)
        grown: list[int] = []

        def grow(
            model: Any, ids: torch.Tensor, length: int, _: torch.Generator, tell: samples.OnLength
        ) -> torch.Tensor:
            grown.append(len(ids))
            tell(length)
            return ids.new_zeros(len(ids), length)

        monkeypatch.setattr(samples, "_grow", grow)
        with torch.no_grad():
            samples.sample_self(model, tokenizer, 256)
            monkeypatch.setattr(samples, "CACHE_BYTES", 4 * 24 * samples._cached_bytes(model))
            told: list[tuple[int, int]] = []
            samples.sample_self(model, tokenizer, 256, lambda done, of: told.append((done, of)))
        assert told == [(4 * 24, 8 * 24), (8 * 24, 8 * 24)]
        assert grown == [8, 4, 4], "conversations among the others; then four at a time"

    @pytest.mark.parametrize(("name", "most"), [("phi-3.5-mini", 10), ("llama-3.2-1b", 10), ("mistral-7b", 12)])
    @pytest.mark.parametrize("quantizer", ["gptq", "gptq-fast"])
    def test_what_it_takes_of_real_shapes(self, name: str, most: int, quantizer: str) -> None:
        needed = estimate_build(msgspec.structs.replace(PLAN, quantizer=quantizer, kv="auto"), shape_of(name))
        assert needed.memory_bytes < most * 2**30

    def test_it_takes_longer_where_the_processor_has_no_instructions_for_halves(self) -> None:
        plan = msgspec.structs.replace(PLAN, quantizer="gptq")
        for name in ("llama-3.2-1b", "phi-3.5-mini"):
            quick, slow = (estimate_build(plan, shape_of(name), halves=halves) for halves in (True, False))
            assert 1.2 < slow.seconds / quick.seconds < 2.5
            assert slow.memory_bytes == quick.memory_bytes
        plain = msgspec.structs.replace(PLAN, quantizer="rtn")
        assert estimate_build(plain, shape_of("llama-3.2-1b"), halves=False) == estimate_build(
            plain, shape_of("llama-3.2-1b"), halves=True
        )

    def test_what_is_tuned_is_told(self) -> None:
        plan = msgspec.structs.replace(PLAN, quantizer="gptq")
        assert [describe_calibration(plan, size)["tuned"] for size in (135_000_000, 3_800_000_000)] == [True, False]
        assert [goes_layer_by_layer(plan, size) for size in (135_000_000, 3_800_000_000)] == [False, True]
        assert goes_layer_by_layer(msgspec.structs.replace(PLAN, quantizer="gptq-fast"), 1)
        auto_round = msgspec.structs.replace(PLAN, quantizer="auto-round")
        assert not goes_layer_by_layer(auto_round, 3_800_000_000)


def shape_of(name: str) -> ModelShape:
    """As :func:`packager.sources.shape.read_shape` finds it, without making gigabytes of weights."""
    config = config_of(name)
    sizes = {weight: math.prod(shape) for weight, shape in list_weights(config)}
    layer = sum(size for weight, size in sizes.items() if ".layers.0." in weight)
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    kv = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    return ModelShape(
        parameters=sum(sizes.values()),
        layer=layer,
        matrix=max(sizes.values()),
        table=0 if config["tie_word_embeddings"] else vocabulary * hidden,
        vocabulary=vocabulary,
        hidden=hidden,
        kv_token_bytes=kv,
        family=config["model_type"],
    )


def test_a_zero_point_of_zero_is_stored_as_the_largest_and_read_back() -> None:
    """A block without a negative weight has it; a real Qwen2.5 has two such blocks in its first layer."""
    weight = torch.arange(256, dtype=torch.float32).view(8, 32) / 256 + 0.5
    scale = (weight.amax(1, keepdim=True) / 15).unsqueeze(-1)
    levels = torch.round(weight / scale.squeeze(-1)).clamp(0, 15)
    grid = Grid(scale, torch.zeros_like(scale), low=0, pinned=None, block=32)
    stored = gptq_tensors("layer", Rounded(levels, grid))
    assert int(stored["layer.qzeros"][0, 0]) & 0xFF == 0xFF, "less one"
    read = dequantise(stored, "gptq", 4)["layer.weight"]
    assert torch.allclose(read, levels * scale.squeeze(-1))
