"""The process that lets peft merge an adapter into its base, and holds what is saved against what peft computes."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import BuildRefused
from packager.sources.jobs import MERGE, MergeJob
from packager.subprocess_job import Reporter, child_main

STEPS = 4
TOKENS = 48
"""Positions compared."""

BOUND = 1e-3
"""Of the logits' spread, between the base with the adapter beside it and merged; both in fp32."""

WEIGHTS = "adapter_model.safetensors"
ROUNDED = 0.2
"""The same for what is saved in 16 bits: rounding changes the logits by some hundredths of their spread."""

Logits = npt.NDArray[np.float32]
FAILURES = (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, NotImplementedError)
"""What peft raises at an adapter that it cannot load or merge."""


def merge(job: MergeJob, reporter: Reporter) -> None:
    """Save the base with the adapter merged in, in the base's own type."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out = Path(job.out)
    reporter.progress(0, STEPS)
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32, trust_remote_code=False)
    own = AutoModelForCausalLM.from_pretrained(job.base, device_map="meta", dtype="auto").dtype
    reporter.progress(1, STEPS)
    try:
        adapted = PeftModel.from_pretrained(model, job.adapter).eval()
        taken = set(get_peft_model_state_dict(adapted))
        wanted = _compute(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
    except FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"peft cannot merge the adapter into this base: {reason}") from error
    stored = set(load_file(Path(job.adapter) / WEIGHTS))
    if taken != stored:
        odd = sorted(taken ^ stored)
        raise BuildRefused(
            f"the adapter's adapter_config.json and its weights do not belong together: {len(odd)} of its tensors "
            f"differ from those that peft takes, first {odd[0]!r}"
        )
    _refuse("merged, the adapter", _compute(merged), wanted, BOUND)
    reporter.progress(2, STEPS)
    settings = (out / "config.json").read_bytes()
    kept = {path.name: path.read_bytes() for path in out.glob("generation_config.json")}
    merged.to(own).save_pretrained(out)
    # As they were published: saving again writes other keys.
    (out / "config.json").write_bytes(settings)
    (out / "generation_config.json").unlink(missing_ok=True)
    for name, data in kept.items():
        (out / name).write_bytes(data)
    for name in ("adapter_config.json", WEIGHTS):
        (out / name).unlink(missing_ok=True)
    del model, adapted, merged
    gc.collect()
    reporter.progress(3, STEPS)
    saved = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=False)
    _refuse("what was saved", _compute(saved), wanted, BOUND if own == torch.float32 else ROUNDED)
    shutil.rmtree(out / ".cache", ignore_errors=True)
    reporter.progress(4, STEPS)


def _compute(model: Any) -> Logits:
    import torch

    size = int(model.config.get_text_config().vocab_size)
    ids = np.random.default_rng(7).integers(0, size, (1, TOKENS))
    with torch.inference_mode():
        logits: Logits = model.eval()(torch.tensor(ids)).logits[0].float().numpy()
    return logits


def _refuse(what: str, found: Logits, wanted: Logits, bound: float) -> None:
    furthest, spread = float(np.abs(found - wanted).max()), float(wanted.std())
    # Not >: what is no number must not pass.
    if not furthest <= bound * spread:
        raise BuildRefused(
            f"{what} gives logits that are off by {furthest:.3g} of a spread of {spread:.3g} from what peft computes "
            "with the adapter beside its base; merge it in peft, and name what it saves"
        )


if __name__ == "__main__":
    child_main(MERGE, merge)
