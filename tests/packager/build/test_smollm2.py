"""The real model: a GGUF file becomes a bundle that answers."""

from __future__ import annotations

import json
from pathlib import Path

from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.onnx.rules import check_graph
from contract.onnx.wire import read_graph_file


def test_a_real_gguf_becomes_a_bundle_that_knows_paris(smollm2_bundle: Path) -> None:
    manifest = parse_manifest((smollm2_bundle / MANIFEST_FILE).read_bytes())
    assert "Paris" in manifest.canary[0].expected_text
    assert manifest.model.architecture == "LlamaForCausalLM"
    assert 130e6 < manifest.model.parameters < 140e6
    assert 80e6 < manifest.total_bytes < 100e6
    assert manifest.model.chat_template_sha256 is not None
    assert manifest.quality["perplexity"]["value"] < 40
    assert manifest.provenance["source"]["name"].endswith(".gguf")


def test_template_and_special_tokens_are_carried_over(smollm2_bundle: Path) -> None:
    template = (smollm2_bundle / "chat_template.jinja").read_text("utf-8")
    assert "<|im_start|>assistant" in template
    tokenizer = json.loads((smollm2_bundle / "tokenizer_config.json").read_text("utf-8"))
    assert tokenizer["eos_token"] == "<|im_end|>"


def test_the_graph_passes_the_devices_rules(smollm2_bundle: Path) -> None:
    files = {path.name: path.stat().st_size for path in smollm2_bundle.iterdir()}
    check_graph(read_graph_file(smollm2_bundle / "model.onnx"), "model.onnx", files)
