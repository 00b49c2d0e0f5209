"""The process that measures what a key-value cache holds."""

from __future__ import annotations

from typing import Any

from contract.errors import BuildRefused
from packager.subprocess_job import Reporter, child_main


def measure(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Run onnxruntime-genai's calibration on ``job["model"]``; the scales go to ``job["out"]``."""
    from onnxruntime_genai.models.quantization.kv_cache_calibration import calibrate_kv_scales

    try:
        calibrate_kv_scales(
            model_path=job["model"],
            tokenizer_path=job["tokenizer"],
            out_json=job["out"],
            quant_type=job["scheme"],
            method="percentile",
            percentile=job["percentile"],
            target_seq=job["length"],
            num_seqs=job["sequences"],
            num_layers=job["layers"],
            num_kv_heads=job["heads"],
            head_size=job["head_size"],
            corpus=None if job["text"] is None else [job["text"]],
        )
    except ValueError as error:
        raise BuildRefused(f"the key-value cache cannot be calibrated: {error}") from error
    reporter.progress(1, 1)
    return {}


if __name__ == "__main__":
    child_main(measure)
