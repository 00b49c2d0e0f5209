"""Builds of a tiny real model: complete, deterministic, proved, and nothing left of those that fail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from contract.bundle.device_plan import least_ram
from contract.bundle.footprint import measure_footprint
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.bundle.manifest import MANIFEST_FILE, MAX_CHUNK_BYTES, Manifest, parse_manifest
from contract.errors import BuildRefused, BundleRefused, EdgeBundleError, UsageError
from contract.onnx.wire import read_graph_file
from contract.reasons import Reason
from packager.build.pack import pack_bundle
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan
from packager.build.progress import SilentProgress
from packager.evaluate.verify import read_bundle_manifest, verify_bundle, verify_files
from packager.subprocess_job import Job, Task, run_child


def manifest_of(directory: Path) -> Manifest:
    return parse_manifest((directory / MANIFEST_FILE).read_bytes())


def leftovers(directory: Path) -> list[str]:
    """Everything below ``directory`` but logs."""
    return sorted(path.name for path in directory.iterdir() if path.name != "cache")


@pytest.fixture(scope="module")
def again(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, built a second time."""
    root = tmp_path_factory.mktemp("again")
    return build_bundle(
        BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", quantizer="rtn"), root / "bundle", cache=root / "cache"
    ).directory


class TestManifest:
    def test_files_are_listed_with_their_real_digests(self, tiny_bundle: Path) -> None:
        manifest = manifest_of(tiny_bundle)
        present = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
        assert {entry.path for entry in manifest.files} == present - {MANIFEST_FILE}
        for entry in manifest.files:
            data = (tiny_bundle / entry.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)

    def test_weights_are_cut_at_tensor_boundaries(self, tiny_bundle: Path) -> None:
        manifest = manifest_of(tiny_bundle)
        [weights] = [entry for entry in manifest.files if entry.path == "model.onnx.data"]
        cuts, at = {0}, 0
        for chunk in weights.chunks:
            assert chunk.size <= MAX_CHUNK_BYTES
            at += chunk.size
            cuts.add(at)
        starts = {
            tensor.external.offset
            for tensor in read_graph_file(tiny_bundle / "model.onnx").walk_tensors()
            if tensor.external is not None
        }
        assert len(starts) > 10
        assert starts <= cuts

    def test_roles(self, tiny_bundle: Path) -> None:
        roles = {entry.path: entry.role for entry in manifest_of(tiny_bundle).files}
        assert roles["model.onnx"] == roles["model.onnx.data"] == "model"
        assert roles["genai_config.json"] == "config"
        assert roles["tokenizer.json"] == roles["chat_template.jinja"] == "tokenizer"
        assert roles["LICENSE"] == roles["evidence/provenance.json"] == "evidence"

    def test_it_says_what_was_measured(self, tiny_bundle: Path) -> None:
        manifest = manifest_of(tiny_bundle)
        assert manifest.model.precision == "int4"
        assert (manifest.model.block_size, manifest.model.accuracy_level) == (32, 4)
        assert manifest.model.context_length == 512
        assert manifest.license.spdx == "Apache-2.0"
        assert manifest.budget.peak_rss_bytes > manifest.total_bytes
        assert manifest.requires.min_ram_bytes > manifest.budget.peak_rss_bytes
        footprint = measure_footprint(
            read_genai_config((tiny_bundle / CONFIG_FILE).read_bytes()),
            lambda name: read_graph_file(tiny_bundle / name),
        )
        assert manifest.requires.min_ram_bytes == least_ram(footprint)
        assert manifest.requires.min_disk_bytes == 2 * manifest.total_bytes
        assert manifest.quality["perplexity"]["tokens"] > 100

    def test_canaries_hold_the_rendered_prompt_and_a_real_answer(self, tiny_bundle: Path) -> None:
        canaries = manifest_of(tiny_bundle).canary
        assert canaries[0].prompt.endswith("<|im_start|>assistant\n")
        assert canaries[0].expected_text == "The capital of France is Paris."
        assert all(canary.mean_nll < 0.5 for canary in canaries)

    def test_nothing_of_this_host_but_its_kind(self, tiny_bundle: Path) -> None:
        written = (tiny_bundle / MANIFEST_FILE).read_text() + (tiny_bundle / "evidence/provenance.json").read_text()
        assert os.uname().nodename not in written
        assert str(tiny_bundle.parent) not in written


def test_the_same_inputs_give_the_same_files(tiny_bundle: Path, again: Path) -> None:
    first, second = manifest_of(tiny_bundle), manifest_of(again)
    assert [(entry.path, entry.sha256) for entry in first.files] == [
        (entry.path, entry.sha256) for entry in second.files
    ]


def test_manifests_of_the_same_inputs_differ_in_measurements_of_the_host_alone(tiny_bundle: Path, again: Path) -> None:
    def compared(directory: Path) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((directory / MANIFEST_FILE).read_text())
        for measured in ("peak_rss_bytes", "load_seconds", "tokens_per_second"):
            del document["budget"][measured]
        del document["created"]
        return document

    assert compared(tiny_bundle) == compared(again)


def test_another_quantizer_is_a_different_build(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    built = build_bundle(
        BuildPlan(str(tiny_checkpoint), "tiny", "1.1.0", epoch=3, quantizer="k-quant", block_size=16, kv="int8"),
        tmp_path / "out",
        cache=tmp_path / "cache",
    )
    assert built.manifest.security_epoch == 3
    assert (built.manifest.model.quantizer, built.manifest.model.block_size) == ("k-quant", 16)
    first = {entry.path: entry.sha256 for entry in manifest_of(tiny_bundle).files}
    second = {entry.path: entry.sha256 for entry in built.manifest.files}
    assert first["model.onnx.data"] != second["model.onnx.data"]
    assert first["tokenizer.json"] == second["tokenizer.json"]
    assert leftovers(tmp_path) == ["out"]
    # The cache in INT8: read back from the graph, run, and no further from the source than the weights alone bring it.
    assert (built.manifest.quality["kv"], manifest_of(tiny_bundle).quality["kv"]) == ("int8", "fp32")
    assert built.manifest.quality["kl"] < manifest_of(tiny_bundle).quality["kl"] + 0.05
    assert built.manifest.canary[0].expected_text == "The capital of France is Paris."
    said = json.loads((tmp_path / "out" / "evidence" / "provenance.json").read_text())["options"]["kv"]
    assert (said["scheme"], said["sequences"]) == ("int8_per_channel", 24)


def test_a_bundle_for_another_provider_says_that_it_was_not_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", ep="cuda")
    built = build_bundle(plan, tmp_path / "out", cache=tmp_path / "cache")
    manifest = built.manifest
    assert (manifest.model.ep, manifest.model.precision, manifest.canary) == ("cuda", "int4", [])
    assert manifest.budget.host == manifest.quality["check"] == "not run on this host"
    assert json.loads((tmp_path / "out" / "evidence" / "quality.json").read_text())["check"] == "not run on this host"
    assert verify_bundle(tmp_path / "out", tmp_path / "log", SilentProgress()).bundle.digest == built.digest
    assert list((tmp_path / "cache" / "graphs").iterdir()) == []


class TestRefusedSources:
    """Each in one sentence, nothing left half-written."""

    @pytest.fixture
    def broken(self, tiny_checkpoint: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_checkpoint, tmp_path / "cache" / "broken"))

    def refused(self, source: Path, tmp_path: Path) -> str:
        with pytest.raises(BuildRefused) as caught:
            build_bundle(BuildPlan(str(source), "tiny", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")
        assert leftovers(tmp_path) == []
        return caught.value.message

    def test_no_such_source(self, tmp_path: Path) -> None:
        assert "neither" in self.refused(tmp_path / "nowhere", tmp_path)

    def test_no_config(self, broken: Path, tmp_path: Path) -> None:
        (broken / "config.json").unlink()
        assert "no config.json" in self.refused(broken, tmp_path)

    def test_no_tokenizer(self, broken: Path, tmp_path: Path) -> None:
        (broken / "tokenizer.json").unlink()
        assert "no tokenizer" in self.refused(broken, tmp_path)

    @pytest.mark.parametrize("architectures", [["OtherForCausalLM"], ["PhiMoEForCausalLM"], [], "Llama", None])
    def test_unknown_architecture(self, broken: Path, tmp_path: Path, architectures: Any) -> None:
        config = json.loads((broken / "config.json").read_text())
        config["architectures"] = architectures
        (broken / "config.json").write_text(json.dumps(config))
        assert "architecture" in self.refused(broken, tmp_path)

    def test_config_that_is_not_json(self, broken: Path, tmp_path: Path) -> None:
        (broken / "config.json").write_text('{"a": 1, "a": 2}')
        assert "twice" in self.refused(broken, tmp_path)

    def test_no_weights(self, broken: Path, tmp_path: Path) -> None:
        (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
        assert "safetensors" in self.refused(broken, tmp_path)

    def test_missing_shard(self, broken: Path, tmp_path: Path) -> None:
        index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "lacks 1 of 2" in self.refused(broken, tmp_path)

    @pytest.mark.parametrize("size", [0, 4, 9, 1000, -1])
    def test_truncated_weights(self, broken: Path, tmp_path: Path, size: int) -> None:
        weights = broken / "model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(size if size >= 0 else weights.stat().st_size - 1)
        assert "fetch it again" in self.refused(broken, tmp_path)

    def test_a_file_that_is_no_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "model.gguf").write_bytes(b"GGML....")
        assert "not a GGUF" in self.refused(tmp_path / "cache" / "model.gguf", tmp_path)

    def test_a_damaged_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 64)
        assert "model.gguf" in self.refused(tmp_path / "cache" / "model.gguf", tmp_path)
        assert list((tmp_path / "cache").glob("checkpoints/*")) == []


def test_an_existing_target_is_never_touched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="already there"):
        build_bundle(BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    cache = tmp_path / "cache"
    command = ["build", str(tiny_checkpoint), "--name", "tiny", "--version", "1.0.0", "--quantizer", "rtn"]
    with subprocess.Popen(
        [sys.executable, "-m", "packager.cli", *command, "--out", str(tmp_path / "out"), "--cache", str(cache)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        log = cache / "logs" / "tiny-1.0.0.log"
        while not (log.is_file() and "builder_process" in log.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []


def test_a_child_that_crashes_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match=r"the test failed: .*JSONDecodeError|No module"):
        run_child(Task("packager.no_such_module", Job, type(None), "the test"), Job(), tmp_path / "log")


class TestCheck:
    @pytest.fixture
    def copy(self, tiny_bundle: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))

    def refused(self, directory: Path) -> tuple[Reason, str]:
        found = read_bundle_manifest(directory)
        with pytest.raises(BundleRefused) as caught:
            verify_files(directory, found, SilentProgress())
        return caught.value.reason, caught.value.message

    def test_a_whole_bundle_passes_and_its_canaries_hold(self, tiny_bundle: Path, tmp_path: Path) -> None:
        found = verify_bundle(tiny_bundle, tmp_path / "log", SilentProgress())
        assert found.bundle.manifest.reference == "tiny@1.0.0"
        for canary, result in zip(found.bundle.manifest.canary, found.checked.canaries, strict=True):
            assert abs(canary.mean_nll - result.mean_nll) <= canary.tolerance

    def test_missing_file(self, copy: Path) -> None:
        (copy / "tokenizer.json").unlink()
        assert self.refused(copy)[0] is Reason.FILE_MISSING

    def test_extra_file(self, copy: Path) -> None:
        (copy / "evidence" / "note.txt").write_text("hello")
        assert self.refused(copy)[0] is Reason.FILE_EXTRA

    def test_renamed_file(self, copy: Path) -> None:
        (copy / "tokenizer.json").rename(copy / "tokenizer2.json")
        reason, message = self.refused(copy)
        assert reason is Reason.FILE_MISSING
        assert "tokenizer2.json" in message

    def test_changed_byte(self, copy: Path) -> None:
        path = copy / "model.onnx.data"
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        assert self.refused(copy)[0] is Reason.DIGEST_MISMATCH

    def test_shortened_file(self, copy: Path) -> None:
        path = copy / "tokenizer.json"
        path.write_bytes(path.read_bytes()[:-1])
        assert self.refused(copy)[0] is Reason.SIZE_MISMATCH

    def test_a_link_in_place_of_a_file(self, copy: Path, tiny_bundle: Path) -> None:
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer.json").symlink_to(tiny_bundle / "tokenizer.json")
        assert self.refused(copy)[0] is Reason.UNSAFE_PATH

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not a bundle"):
            read_bundle_manifest(tmp_path)


class TestPack:
    @pytest.fixture
    def folder(self, tiny_bundle: Path, tmp_path: Path) -> Path:
        return Path(
            shutil.copytree(
                tiny_bundle,
                tmp_path / "cache" / "folder",
                ignore=shutil.ignore_patterns(MANIFEST_FILE, "evidence", "LICENSE"),
            )
        )

    def pack(self, folder: Path, tmp_path: Path) -> Manifest:
        plan = BuildPlan(str(folder), "packed", "2.0.0", license="MIT")
        return pack_bundle(plan, tmp_path / "out", cache=tmp_path / "cache").manifest

    def test_a_finished_folder_becomes_the_same_model(self, folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        (folder / ".hidden").write_text("not shipped")
        packed, built = self.pack(folder, tmp_path), manifest_of(tiny_bundle)
        assert leftovers(tmp_path) == ["out"]
        shared = {entry.path: entry.sha256 for entry in built.files if entry.role != "evidence"}
        assert {entry.path: entry.sha256 for entry in packed.files if entry.role != "evidence"} == shared
        assert packed.canary == built.canary
        assert packed.license.spdx == "MIT"
        assert packed.model.precision == "int4"

    def test_incomplete_or_hostile_folders_are_refused(self, folder: Path, tmp_path: Path) -> None:
        def refused() -> EdgeBundleError:
            with pytest.raises(EdgeBundleError) as caught:
                self.pack(folder, tmp_path)
            assert leftovers(tmp_path) == []
            return caught.value

        config = json.loads((folder / "genai_config.json").read_text())
        options = config["model"]["decoder"]["session_options"]
        options["custom_ops_library"] = "evil.so"
        (folder / "genai_config.json").write_text(json.dumps(config))
        assert refused().reason is Reason.CONFIG_NOT_ALLOWED
        (folder / "genai_config.json").unlink()
        assert "genai_config.json" in refused().message
        (folder / "tokenizer.json").unlink()
        assert "no tokenizer" in refused().message


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "packager.cli", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


class TestCommands:
    def test_check_prints_json(self, tiny_bundle: Path, tmp_path: Path) -> None:
        done = command("check", str(tiny_bundle), "--json", "--cache", str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bundle"] == "tiny@1.0.0"

    def test_refusals_have_their_status_and_one_sentence(self, tmp_path: Path) -> None:
        done = command("build", str(tmp_path), "--name", "x", "--version", "1.0.0", "--cache", str(tmp_path), "--json")
        assert done.returncode == 3
        assert "config.json" in json.loads(done.stdout)["error"]["message"]
        assert done.stderr.count("\n") == 1

    def test_wrong_options_are_the_command_lines_fault(self, tmp_path: Path) -> None:
        done = command("build", str(tmp_path), "--name", "x", "--version", "1.0.0", "--precision", "fp16")
        assert done.returncode == 2
        assert "int4, int8, fp32" in done.stderr

    @pytest.mark.parametrize("name", ["build", "pack", "check"])
    def test_help_has_examples(self, name: str) -> None:
        done = command(name, "--help")
        assert done.returncode == 0
        assert "examples:" in done.stdout
