"""The process that runs the model builder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.bundle.genai_config import CONFIG_FILE
from packager.build.jobs import BUILDER, BuilderJob, BuilderReport, TurnEnd
from packager.build.workarounds import apply_workarounds
from packager.evaluate.ends import find_ends
from packager.graph.embedding import BITS, quantise_embedding
from packager.graph.shared_data import GRAPH_FILE, sharing_data
from packager.graph.slots import add_slots
from packager.sources.checkpoint import find_rowless_tokens
from packager.sources.text_only import MROPE
from packager.sources.vocabulary import leave_out
from packager.subprocess_job import Reporter, child_main

STEPS = 3


def build(job: BuilderJob, reporter: Reporter) -> BuilderReport:
    """Run ``parse_extra_options`` and ``create_model``, as the builder's command line does, mending what is known.

    Reports ``config``, the configuration with transformers' defaults filled in, as the proof compares it with the
    graph, ``workarounds``, the names of those that were needed, and ``ends``, what ends a turn and what says so.
    """
    from onnxruntime_genai.models import builder

    reporter.progress(1, STEPS)
    fixed = ("", job.checkpoint, job.out, job.precision, job.ep, job.scratch)
    options = builder.parse_extra_options(*fixed, list(job.options))
    config = options["hf_details"]["hf_config"]
    resolved = json.loads(config.to_json_string(use_diff=False))
    applied = apply_workarounds(config, options, job.skip)
    if job.embedding in BITS:
        quantise_embedding(builder.Model, BITS[job.embedding])
    reporter.progress(2, STEPS)
    shared = contextlib.nullcontext() if job.shared is None else sharing_data(Path(job.shared))
    with shared, _turning_by_axes(builder, config, options):
        builder.create_model(*fixed, **options)
    ends = _end_turns(Path(job.checkpoint), Path(job.out) / CONFIG_FILE)
    rows = config.get_text_config().vocab_size
    left_out = find_rowless_tokens(Path(job.out), rows)
    leave_out(Path(job.out), left_out)
    if left_out:
        _keep_padding_inside(Path(job.out) / CONFIG_FILE, rows)
    if job.adapter_slots:
        add_slots(Path(job.out) / GRAPH_FILE)
    reporter.progress(3, STEPS)
    return BuilderReport(resolved, applied, ends)


@contextlib.contextmanager
def _turning_by_axes(builder: Any, config: Any, options: dict[str, Any]) -> Iterator[None]:
    """Let a decoder that is given pictures turn each token by its places in time, height and width, where the text
    model of such a family says so: as the builder does for the family itself, whose text model it is.
    """
    parts = getattr(config, MROPE, None) if options.get("exclude_embeds") else None
    plain = builder.QwenModel
    if parts:
        config.rope_parameters = {**config.rope_parameters, MROPE: parts}
        builder.QwenModel = builder.Qwen25VLTextModel
    try:
        yield
    finally:
        builder.QwenModel = plain


def _end_turns(checkpoint: Path, file: Path) -> list[TurnEnd]:
    """Let everything that ends a turn end an answer; each such token, its text, and what names it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    document = json.loads(file.read_text("utf-8"))
    known = document["model"]["eos_token_id"]
    ends = list(known) if isinstance(known, list) else [known]
    rows = document["model"]["vocab_size"]
    found = {token: named for token, named in find_ends(checkpoint, tokenizer).items() if 0 <= token < rows}
    ends += [token for token in found if token not in ends]
    if len(ends) > 1:
        document["model"]["eos_token_id"] = ends
        file.write_text(json.dumps(document, indent=4), "utf-8")
    return [TurnEnd(token, str(tokenizer.convert_ids_to_tokens(token)), named) for token, named in found.items()]


def _keep_padding_inside(file: Path, rows: int) -> None:
    """A padding token that was left out is none of the model's: the end token pads, as where there never was one."""
    document = json.loads(file.read_text("utf-8"))
    model = document["model"]
    if model.get("pad_token_id", 0) >= rows:
        ends = model["eos_token_id"]
        model["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
        file.write_text(json.dumps(document, indent=4), "utf-8")


if __name__ == "__main__":
    child_main(BUILDER, build)
