"""Adapter bundles: the base with an adapter beside it is the base with it merged, and without one it is the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contract.bundle.adapter_slots import find_slots
from contract.bundle.manifest import MANIFEST_FILE, Manifest, manifest_digest, parse_manifest
from contract.errors import BuildRefused, EdgeBundleError, UsageError
from contract.onnx.wire import read_graph_file
from packager.build.adapter_bundle import build_adapter_bundle
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan, check_plan
from packager.build.progress import SilentProgress
from packager.evaluate.check_process import Runtime
from packager.evaluate.conformance import compare
from packager.evaluate.verify import verify_bundle
from packager.graph.facts import read_back
from packager.graph.slots import assign_slots
from packager.sources.opening import SourceOptions
from tests.kept import CACHE
from tests.lora import make_lora


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def lora(tiny_checkpoint: Path, shelf: Path) -> Path:
    return make_lora(tiny_checkpoint, shelf / "lora", 7)


def plan_for(checkpoint: Path, adapter: Path, name: str = "tiny-other") -> BuildPlan:
    return BuildPlan(str(checkpoint), name, "1.0.0", origin=SourceOptions(adapter=adapter))


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path, shelf: Path) -> Path:
    plan = BuildPlan(str(tiny_checkpoint), "tiny-base", "1.0.0", precision="fp32", adapter_slots=True)
    return build_bundle(plan, shelf / "base", cache=CACHE).directory


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, shelf: Path, base: Path, lora: Path) -> Path:
    return build_adapter_bundle(plan_for(tiny_checkpoint, lora), base, shelf / "bundle", cache=CACHE).directory


def manifest_of(directory: Path) -> Manifest:
    return parse_manifest((directory / MANIFEST_FILE).read_bytes())


def logits(runtime: Runtime, ids: list[int]) -> np.ndarray:
    return np.concatenate([rows for _, rows in runtime.walk(ids, 1, 64)])


IDS = [1, *range(40, 90, 3), 7, 2]


class TestBase:
    def test_it_says_so_and_every_product_of_a_layer_has_a_place(self, base: Path) -> None:
        assert "adapters" in manifest_of(base).model.capabilities
        slots = find_slots(read_graph_file(base / "model.onnx"))
        assert len(slots) == 2 * 5
        assert slots["model.layers.1.attn.qkv_proj"].width_out == 256

    def test_without_an_adapter_it_computes_what_the_plain_int4_bundle_computes(
        self, tiny_bundle: Path, tiny_slots_bundle: Path
    ) -> None:
        assert np.array_equal(logits(Runtime(tiny_slots_bundle, 1), IDS), logits(Runtime(tiny_bundle, 1), IDS))

    def test_places_that_were_not_asked_for_or_are_missing_are_found(
        self, tiny_bundle: Path, tiny_slots_bundle: Path, tiny_checkpoint: Path
    ) -> None:
        source = json.loads((tiny_checkpoint / "config.json").read_text())
        plain, slotted = (BuildPlan("source", "x", "1.0.0", adapter_slots=asked) for asked in (False, True))
        assert compare(slotted, source, *read_back(tiny_slots_bundle)) == []
        assert "has a place for adapters" in compare(plain, source, *read_back(tiny_slots_bundle))[0]
        assert "has no place for adapters" in compare(slotted, source, *read_back(tiny_bundle))[0]

    def test_it_is_for_fp32_inputs_only(self) -> None:
        with pytest.raises(UsageError, match="--adapter-slots"):
            check_plan(BuildPlan("source", "x", "1.0.0", precision="fp16", ep="cuda", adapter_slots=True))


class TestBundle:
    def test_logits_are_those_of_the_merged_source(
        self, bundle: Path, base: Path, lora: Path, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
        deltas = load_file(lora / "adapter_model.safetensors")
        for name, parameter in model.named_parameters():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in deltas:
                change = 2.0 * deltas[f"{stem}.lora_B.weight"] @ deltas[f"{stem}.lora_A.weight"]
                parameter.data += change
        with torch.no_grad():
            wanted = model(torch.tensor([IDS])).logits[0, :-1].numpy()
        beside = logits(Runtime(base, 1, str(bundle / "adapter.onnx_adapter")), IDS)
        plain = logits(Runtime(base, 1), IDS)
        assert np.abs(beside - wanted).max() <= 1e-2
        assert np.abs(plain - wanted).max() > 1.0

    def test_the_manifest_names_the_base_and_what_was_measured_with_the_adapter(self, bundle: Path, base: Path) -> None:
        manifest = manifest_of(bundle)
        assert manifest.base is not None
        assert manifest.base.manifest_sha256 == manifest_digest((base / MANIFEST_FILE).read_bytes())
        assert (manifest.base.name, manifest.base.version) == ("tiny-base", "1.0.0")
        assert {entry.role for entry in manifest.files} == {"adapter", "evidence"}
        page = (bundle / "evidence" / "report.html").read_text("utf-8")
        assert "KL divergence by position" in page
        assert "Bytes of the base by layer and type" in page
        assert manifest.total_bytes < 0.5 * manifest_of(base).total_bytes
        assert manifest.quality["kl"] < 1e-4
        plain = {canary.prompt: canary for canary in manifest_of(base).canary}
        for canary in manifest.canary:
            # So small an adapter leaves some answers as they are, on some processors all of them, but none as likely.
            before = plain[canary.prompt]
            assert canary.expected_text != before.expected_text or canary.mean_nll > 10 * before.mean_nll

    def test_check_wants_its_base_and_no_other(
        self, bundle: Path, base: Path, tiny_slots_bundle: Path, tmp_path: Path
    ) -> None:
        log = tmp_path / "check.log"
        found = verify_bundle(bundle, log, SilentProgress(), base)
        assert len(found.checked.canaries) == len(manifest_of(bundle).canary)
        with pytest.raises(UsageError, match=r"tiny-base@1\.0\.0: name that bundle with --base"):
            verify_bundle(bundle, log, SilentProgress())
        with pytest.raises(UsageError, match=r"belongs to tiny-base@1\.0\.0"):
            verify_bundle(bundle, log, SilentProgress(), tiny_slots_bundle)
        with pytest.raises(UsageError, match="stands alone"):
            verify_bundle(base, log, SilentProgress(), tiny_slots_bundle)


class TestRefused:
    def refusal(self, checkpoint: Path, adapter: Path, base: Path, out: Path) -> str:
        with pytest.raises(EdgeBundleError) as caught:
            build_adapter_bundle(plan_for(checkpoint, adapter), base, out, cache=CACHE)
        assert not out.exists()
        return caught.value.message

    def test_a_base_without_places(self, tiny_checkpoint: Path, lora: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        assert "build it with --adapter-slots" in self.refusal(tiny_checkpoint, lora, tiny_bundle, tmp_path / "out")

    def test_an_adapter_as_the_base(self, tiny_checkpoint: Path, lora: Path, bundle: Path, tmp_path: Path) -> None:
        assert "an adapter itself" in self.refusal(tiny_checkpoint, lora, bundle, tmp_path / "out")

    def test_a_base_of_another_source(self, tiny_checkpoint: Path, lora: Path, base: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny_checkpoint, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
        assert "was not built from" in self.refusal(other, lora, base, tmp_path / "out")

    def test_a_lora_of_another_shape(self, tiny_checkpoint: Path, base: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        lora = make_lora(tiny_checkpoint, tmp_path / "lora", 1)
        tensors = load_file(lora / "adapter_model.safetensors")
        first = next(name for name in tensors if name.endswith("lora_B.weight"))
        save_file({**tensors, first: tensors[first][:-2].clone()}, lora / "adapter_model.safetensors")
        assert "belongs to another base" in self.refusal(tiny_checkpoint, lora, base, tmp_path / "out")

    def test_numbers_that_are_none(self, tiny_checkpoint: Path, base: Path, tmp_path: Path) -> None:
        lora = make_lora(tiny_checkpoint, tmp_path / "lora", 1, size=float("nan"))
        assert "not finite" in self.refusal(tiny_checkpoint, lora, base, tmp_path / "out")

    def test_options_that_were_decided_with_the_base(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        for field, value in (("precision", "fp32"), ("adapter_slots", True), ("block_size", 64)):
            plan = msgspec.structs.replace(plan_for(tiny_checkpoint, tmp_path), **{field: value})
            with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} was decided with the base"):
                build_adapter_bundle(plan, tmp_path, tmp_path / "out", cache=CACHE)

    def test_a_lora_of_what_has_no_place(self) -> None:
        with pytest.raises(BuildRefused, match="--merge-adapter"):
            assign_slots({"model.embed_tokens.weight": ("a", "b")}, {"model.embed_tokens.weight": 8}, {})


def test_joined_and_separate_products_meet_in_the_right_columns() -> None:
    from contract.bundle.adapter_slots import Slot

    stem = "model.layers.0"
    slots = {f"{stem}.mlp.{name}": Slot(f"{stem}.mlp.{name}", 4, 6) for name in ("gate_proj", "up_proj")}
    joined = f"{stem}.mlp.gate_up_proj.weight"
    placed = assign_slots({joined: ("A", "B")}, {joined: 12}, slots)
    assert [(block.start, block.end, block.at) for block in placed[f"{stem}.mlp.gate_proj"]] == [(0, 6, 0)]
    assert [(block.start, block.end, block.at) for block in placed[f"{stem}.mlp.up_proj"]] == [(6, 12, 0)]
    packed = {f"{stem}.attn.qkv_proj": Slot(f"{stem}.attn.qkv_proj", 4, 12)}
    widths = {f"{stem}.self_attn.{name}_proj.weight": width for name, width in (("q", 8), ("k", 2), ("v", 2))}
    placed = assign_slots({f"{stem}.self_attn.v_proj.weight": ("A", "B")}, widths, packed)
    assert [(block.start, block.end, block.at) for block in placed[f"{stem}.attn.qkv_proj"]] == [(0, 2, 10)]
