"""The process that calibrates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from contract.errors import BuildRefused
from packager.calibration.compensation import round_matrix
from packager.calibration.export import write_checkpoint
from packager.calibration.layers import Rounded, round_model
from packager.calibration.samples import LENGTH, sample_self, tokens_of_text
from packager.child import Reporter, child_main

SAMPLING = 3
"""Steps that the sampling counts as on the display; each layer is one."""


def calibrate(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Round ``job["checkpoint"]`` on its own or somebody's text into a GPTQ checkpoint at ``job["out"]``."""
    from packager.quality.source_process import load_source

    model, tokenizer = load_source(job["checkpoint"])
    layers = int(model.config.num_hidden_layers)
    steps = SAMPLING + layers + 2
    with torch.no_grad():
        if job["text"] is None:
            context = int(getattr(model.config, "max_position_embeddings", LENGTH))
            ids = sample_self(model, tokenizer, context)
        else:
            ids = tokens_of_text(tokenizer, job["text"])
        reporter.progress(SAMPLING, steps)
        model = model.float()
        rounded, moments = round_model(model, ids, lambda done, _: reporter.progress(SAMPLING + done, steps))
        if not bool(torch.isfinite(moments).all()):
            raise BuildRefused("the source model gives numbers that are not finite; its weights are damaged")
        head = model.get_output_embeddings()
        # The builder quantises the lm_head itself, by largest magnitudes: a symmetric grid comes through unchanged.
        head.weight.copy_(Rounded(*round_matrix(head.weight.detach(), moments, symmetric=True)).weight())
        reporter.progress(steps - 1, steps)
        write_checkpoint(model, rounded, Path(job["checkpoint"]), Path(job["out"]))
    return {"tokens": ids.numel(), "matrices": len(rounded) + 1}


if __name__ == "__main__":
    child_main(calibrate)
