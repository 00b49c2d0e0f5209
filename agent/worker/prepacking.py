"""Writes a model's weights as this processor's kernels want them: ``python -m agent.worker.prepacking BUNDLE DIR``.

A runtime that loads a plain model copies every weight into a layout of its own, in memory that nobody shares. Done
once and kept on disk, the pages are mapped instead: shared between workers, and given up under pressure. It is native
code reading foreign weights, so it runs in a process of its own that can write into ``DIR`` and nowhere else.

The batched engine alone maps them, and whether it serves is decided by its self-test on this processor. So that is run
first: where it declines nothing is written, and the process says why and ends with :data:`DECLINED`. What it found is
written beside the weights, or alone where these are not wanted, and no load after has to measure it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent.engine.config import read_config
from agent.engine.interface import Engine
from agent.engine.kernels import AS_IT_COMES, Kernels, open_chosen
from agent.engine.kernels import FILE as KERNELS_FILE
from agent.engine.load_options import Mode, ModelFiles, Resources
from agent.engine.memory import release_freed_memory
from agent.engine.runtime_errors import Declined
from agent.host.process_priority import MAX_NICE, set_nice, set_oom_score_adj
from agent.worker.isolation import isolate
from contract.errors import EdgeBundleError
from contract.system.parent_death import end_with_parent

if TYPE_CHECKING:
    # It needs numpy, which the agent itself, who starts this, does without.
    from agent.engine.batched.verdict import Verdict

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

DECLINED = 10
"""Exit status: no worker would use them; the reason is on standard error."""


def prove(bundle: Path, threads: int, reproducible: bool) -> tuple[Kernels, Verdict]:
    """Load the bundle as a worker would, and give everything back but the kernels that it was loaded with, and what the
    self-test found.

    Raises:
        Declined: the batched engine does not serve it here. EngineFailed: it does not load.
    """
    from agent.engine.batched.engine import BatchedEngine
    from agent.engine.batched.opening import open_model

    used: list[tuple[Kernels, Verdict]] = []

    def load(kernels: Kernels) -> Engine:
        resources = Resources(threads, kernels=kernels)
        engine = BatchedEngine(open_model(ModelFiles(bundle), resources, mode=Mode(reproducible), trial=True))
        used.append((kernels, engine.verdict))
        return engine

    engine = open_chosen(load, bundle)
    kernels, verdict = replace(used[-1][0], why=engine.facts.kernels), used[-1][1]
    engine.release()
    del engine
    gc.collect()
    release_freed_memory()
    return kernels, verdict


def prepack(graph: Path, target: Path, kernels: Kernels = AS_IT_COMES, *, logits: str = "logits") -> None:
    """Write :data:`GRAPH_FILE` and :data:`WEIGHTS_FILE` into ``target``, laid out for ``kernels``; raises whatever
    onnxruntime raises. ``logits`` names the graph's output: as where a worker loads the graph, whoever runs it may say
    for which tokens they are computed.
    """
    import onnxruntime

    from agent.engine.batched.runner import graph_with_start

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target / GRAPH_FILE)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS_FILE)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    for name, value in kernels.entries.items():
        options.add_session_config_entry(name, value)
    source = graph_with_start(graph, logits, options)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def keep(target: Path, kernels: Kernels, verdict: Verdict) -> None:
    """Write what was measured into ``target``: the self-test's verdict, and the kernels where there was a choice."""
    from agent.engine.batched.verdict import FILE as VERDICT_FILE

    (target / VERDICT_FILE).write_bytes(msgspec.json.encode(verdict))
    if kernels.why:
        (target / KERNELS_FILE).write_bytes(msgspec.json.encode(kernels))


def main(arguments: list[str]) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="agent.worker.prepacking", description="prepacked weights of one model")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="as a worker gets them")
    parser.add_argument("--reproducible", action="store_true", help="as a worker is asked to be")
    parser.add_argument("--verdict-only", action="store_true", help="write what the self-test found, and no weights")
    given = parser.parse_args(arguments)
    end_with_parent(sys.stderr.fileno())
    set_nice(MAX_NICE)  # somebody may be answering meanwhile
    set_oom_score_adj()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    isolate([given.bundle.resolve()], writable=[given.target.resolve()])
    try:
        kernels, verdict = prove(given.bundle, given.threads, given.reproducible)
        keep(given.target, kernels, verdict)
        if not given.verdict_only:
            prepack(given.bundle / read_config(given.bundle).filename, given.target, kernels)
    except Declined as declined:
        print(declined, file=sys.stderr)
        return DECLINED
    except EdgeBundleError as error:
        print(error.message, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
