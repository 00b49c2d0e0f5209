"""Writes a model's weights as this processor's kernels want them: ``python -m agent.worker.prepacking GRAPH DIR``.

A runtime that loads a plain model copies every weight into a layout of its own, in memory that nobody shares. Done
once and kept on disk, the pages are mapped instead: shared between workers, and given up under pressure. It is native
code reading foreign weights, so it runs in a process of its own that can write into ``DIR`` and nowhere else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agent.priority import WEAKEST, give_way, go_first
from agent.worker.isolation import isolate
from agent.worker.process import end_with_parent

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"


def prepack(graph: Path, target: Path) -> None:
    """Write :data:`GRAPH_FILE` and :data:`WEIGHTS_FILE` into ``target``; raises whatever onnxruntime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target / GRAPH_FILE)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS_FILE)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    graph, target = map(Path, arguments)
    end_with_parent()
    give_way(WEAKEST)  # somebody may be answering meanwhile
    go_first()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    isolate([graph.parent.resolve()], writable=[target.resolve()])
    prepack(graph, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
