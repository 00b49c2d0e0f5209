"""The process that runs the model builder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.child import Reporter, child_main
from packager.slots import add_slots
from packager.workarounds import mend

STEPS = 3
GRAPH_FILE = "model.onnx"


def build(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Run ``parse_extra_options`` and ``create_model``, as the builder's command line does, mending what is known.

    Reports ``config``, the configuration with transformers' defaults filled in, as the proof compares it with the
    graph, and ``workarounds``, the names of those that were needed.
    """
    from onnxruntime_genai.models import builder

    reporter.progress(1, STEPS)
    fixed = ("", job["checkpoint"], job["out"], job["precision"], job["ep"], job["scratch"])
    options = builder.parse_extra_options(*fixed, list(job["options"]))
    config = options["hf_details"]["hf_config"]
    resolved = json.loads(config.to_json_string(use_diff=False))
    applied = mend(config, options, job.get("skip", ""))
    reporter.progress(2, STEPS)
    builder.create_model(*fixed, **options)
    if job.get("adapter_slots"):
        add_slots(Path(job["out"]) / GRAPH_FILE)
    reporter.progress(3, STEPS)
    return {"config": resolved, "workarounds": applied}


if __name__ == "__main__":
    child_main(build)
