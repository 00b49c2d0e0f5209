"""The process that writes the graphs of the part that sees beside a decoder that reads embeddings."""

from __future__ import annotations

import json
from pathlib import Path

from contract.bundle.genai_config import CONFIG_FILE
from packager.subprocess_job import Reporter, child_main
from packager.vision.families import vision_family
from packager.vision.family import EMBEDDING_FILE, ENCODER_FILE, PROCESSOR_FILE, GraphTypes
from packager.vision.jobs import VISION, VisionJob, VisionWritten


def add_vision(job: VisionJob, reporter: Reporter) -> VisionWritten:
    """Write both graphs and the processor's configuration into ``job.out``, and say so in the runtime's own."""
    out, path = Path(job.out), Path(job.checkpoint)
    written = vision_family(path).write(path, out, GraphTypes(job.encoder, job.embedding), reporter.progress)
    (out / PROCESSOR_FILE).write_text(json.dumps(written.processor, indent=4), "utf-8")
    file = out / CONFIG_FILE
    document = json.loads(file.read_text("utf-8"))
    document["model"] |= written.sections
    file.write_text(json.dumps(document, indent=4), "utf-8")
    return VisionWritten([ENCODER_FILE, EMBEDDING_FILE, PROCESSOR_FILE])


if __name__ == "__main__":
    child_main(VISION, add_vision)
