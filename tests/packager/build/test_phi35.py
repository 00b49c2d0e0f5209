"""``edge-packager build microsoft/Phi-3.5-mini-instruct`` with no other option: a model of exactly that configuration,
made small in width and depth only, under that id in a filled hub cache.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.system.command_line import main
from packager.cli import COMMANDS
from tests.packager.families import make_random
from tests.tiny import VOCABULARY

COMMIT = "3145e03a9fd4cdd7cd953c34d9bbf7ad606122ca"
PAIRS = 48
"""Rope pairs of a head of 96, as in the real model."""

PUBLISHED: dict[str, Any] = {
    "_name_or_path": "Phi-3.5-mini-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 2,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.08 + 1.3 * pair for pair in range(PAIRS)],
        "short_factor": [1.0 + 0.04 * pair for pair in range(PAIRS)],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "attention_bias": False,
    "vocab_size": VOCABULARY,
}
"""Key for key what the model's config.json says; only sizes differ."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with the small model in bfloat16, its card and its licence."""
    import torch
    from transformers import Phi3Config

    root = tmp_path_factory.mktemp("hub")
    model_dir = root / "models--microsoft--Phi-3.5-mini-instruct"
    snapshot = model_dir / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model_dir / "refs").mkdir()
    (model_dir / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED))
    model = make_random(snapshot, Phi3Config.from_pretrained(snapshot))
    model.to(torch.bfloat16).save_pretrained(snapshot)
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED))
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    (snapshot / "LICENSE").write_text("MIT License\n")
    return root


def test_one_line_makes_the_int4_cpu_bundle(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["build", "microsoft/Phi-3.5-mini-instruct", "--name", "phi-3.5-mini", "--version", "1.0.0"]
    environment = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "EDGE_CACHE": str(tmp_path / "cache")}
    for name, value in {**environment, "PYTHONPATH": str(Path(__file__).parents[3])}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    status = main("edge-packager", "", COMMANDS, line)
    err = capsys.readouterr().err
    assert status == 0, err
    directory = tmp_path / "phi-3.5-mini-1.0.0"
    manifest = parse_manifest((directory / MANIFEST_FILE).read_bytes())
    assert (manifest.model.precision, manifest.model.ep, manifest.model.family) == ("int4", "cpu", "phi3")
    assert manifest.model.context_length == 131072
    assert manifest.provenance["source"]["name"] == "microsoft/Phi-3.5-mini-instruct"
    assert manifest.provenance["source"]["revision"] == COMMIT
    assert manifest.license.spdx == "MIT"
    assert (directory / "LICENSE").read_text() == "MIT License\n"
    assert (directory / "evidence" / "README.md").is_file()
    assert re.search(r"needs about [\d.]+ [GM]iB of memory", err)
    assert list((tmp_path / "cache" / "graphs").iterdir()) == []
    # Rounded into a plain checkpoint again: two layers of one were compared already.
    log = (tmp_path / "cache" / "logs" / "phi-3.5-mini-1.0.0.log").read_text("utf-8", "replace")
    assert log.count("==== packager.evaluate.logits_process") == 1
