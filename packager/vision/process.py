"""The process that writes the graphs of the part that sees beside a decoder that reads embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.bundle.genai_config import CONFIG_FILE
from packager.subprocess_job import Reporter, child_main
from packager.vision.embedding import write_embedding
from packager.vision.encoder import write_encoder
from packager.vision.jobs import VISION, VisionJob, VisionWritten
from packager.vision.stored import StoredWeights

EMBEDDING_FILE = "embedding.onnx"
ENCODER_FILE = "vision.onnx"
PROCESSOR_FILE = "processor_config.json"

TRANSFORMS: tuple[dict[str, Any], ...] = (
    {
        "name": "decode_image",
        "domain": "com.microsoft.extensions",
        "type": "DecodeImage",
        "attrs": {"color_space": "RGB"},
    },
    {"name": "phi3_image_transform", "domain": "com.microsoft.extensions", "type": "Phi3ImageTransform"},
)
"""Without ConvertRGB, which takes what it is given for BGR: red would be blue."""


def add_vision(job: VisionJob, reporter: Reporter) -> VisionWritten:
    """Write both graphs and the processor's configuration into ``job.out``, and say so in the runtime's own."""
    out, weights = Path(job.out), StoredWeights(Path(job.checkpoint))
    write_encoder(out / ENCODER_FILE, weights, job.shape, lambda done, total: reporter.progress(done, total + 1))
    write_embedding(out / EMBEDDING_FILE, weights, job.embedding)
    steps = [{"operation": step} for step in TRANSFORMS]
    processor = {"processor": {"name": "phi3v_image_processor", "transforms": steps}}
    (out / PROCESSOR_FILE).write_text(json.dumps(processor, indent=4), "utf-8")
    file = out / CONFIG_FILE
    document = json.loads(file.read_text("utf-8"))
    document["model"] |= _sections()
    file.write_text(json.dumps(document, indent=4), "utf-8")
    reporter.progress(1, 1)
    return VisionWritten([ENCODER_FILE, EMBEDDING_FILE, PROCESSOR_FILE])


def _sections() -> dict[str, Any]:
    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    return {
        "type": "phi3v",
        "embedding": {
            "filename": EMBEDDING_FILE,
            "inputs": same("input_ids", "image_features"),
            "outputs": same("inputs_embeds"),
        },
        "vision": {
            "filename": ENCODER_FILE,
            "config_filename": PROCESSOR_FILE,
            "inputs": same("pixel_values", "image_sizes"),
            "outputs": same("image_features"),
        },
    }


if __name__ == "__main__":
    child_main(VISION, add_vision)
