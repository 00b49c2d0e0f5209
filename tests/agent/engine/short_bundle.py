"""The real model with a small context, so that what happens at its end is quickly reached."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

CONTEXT = 512


@pytest.fixture(scope="session")
def short_bundle(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model, said to have a context of 512 tokens."""
    short = tmp_path_factory.mktemp("short")
    for file in filter(Path.is_file, smollm2_bundle.iterdir()):
        try:
            (short / file.name).hardlink_to(file.resolve())
        except OSError:  # another file system
            shutil.copyfile(file, short / file.name)
    config = json.loads((smollm2_bundle / "genai_config.json").read_bytes())
    config["model"]["context_length"] = CONTEXT
    config["search"]["max_length"] = CONTEXT
    (short / "genai_config.json").unlink()  # a link: writing through it would change the original
    (short / "genai_config.json").write_text(json.dumps(config))
    return short
