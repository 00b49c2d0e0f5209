"""The process that measures what a key-value cache holds.

It does what onnxruntime-genai's calibration does, to the bit, on all threads and without keeping every value: the rare
percentile of a channel lies between two of its largest values, so that of all others only the number counts. Kept as
they are, 12,288 tokens of Phi-3.5-mini are 4.8 GB.
"""

from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import BuildRefused
from packager.build.jobs import SCALES, ScalesJob
from packager.evaluate.check import host_threads
from packager.subprocess_job import Reporter, child_main

Array = npt.NDArray[np.float32]

LEVELS = 128.0
"""Of each sign, in INT8."""

SMALLEST = 1e-6
"""Of a threshold: what is always zero needs a scale as well."""


class Largest:
    """The largest magnitudes of each channel so far, as many as the percentile ``percent`` of ``count`` rows needs."""

    def __init__(self, channels: int, count: int, percent: float) -> None:
        rank = percent / 100 * (count - 1)
        self._kept = count - floor(rank)
        self._part = rank - floor(rank)
        self._values = np.full((self._kept, channels), -1.0, np.float32)
        self._low = 0 if self._kept == 1 else 1
        self.most = np.zeros(channels, np.float32)

    def add(self, rows: Array) -> None:
        """``rows`` ``[tokens, channels]``; numbers that are not finite stay."""
        sizes = np.abs(rows)
        self.most = np.maximum(self.most, sizes.max(axis=0))
        # In the calibration's own precision.
        together = np.concatenate([self._values, sizes.astype(np.float16).astype(np.float32)])
        self._values = np.partition(together, len(together) - self._kept, axis=0)[-self._kept :]

    def percentile(self) -> Array:
        """By linear interpolation, as numpy's."""
        in_order = np.sort(self._values, axis=0)
        low, high = in_order[0], in_order[self._low]
        apart = high - low
        part = np.float64(self._part)
        found: Array = (low + apart * part if part < 0.5 else high - apart * (1 - part)).astype(np.float32)
        return found


def measure(job: ScalesJob, reporter: Reporter) -> None:
    """Run the model on text; the scales are for the model builder."""
    from onnxruntime_genai.models.quantization import kv_cache_calibration as own
    from transformers import AutoTokenizer

    texts = None if job.text is None else [job.text]
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    sequences = own._tokenize_corpus(tokenizer, job.sequences, job.length, texts)
    count, layers = sum(ids.shape[1] for ids in sequences), job.layers
    channels = job.heads * job.head_size
    found = [Largest(channels, count, job.percentile) for _ in range(2 * layers)]
    session = _open(job.model)
    for number, ids in enumerate(sequences):
        for index, made in enumerate(_keys_and_values(session, ids, job)):
            heads = made.astype(np.float32, copy=False)[0]
            rows = np.transpose(heads, (1, 0, 2)).reshape(ids.shape[1], channels)
            # A pair that rope rotates keeps its norm, at positions beyond those that are read as well.
            found[index].add(own._pair_envelope(rows, job.heads, job.head_size) if index < layers else rows)
        reporter.progress(number + 1, len(sequences))
    limits = [one.percentile() for one in found]
    if not all(np.isfinite(one.most).all() for one in found) or not np.isfinite(limits).all():
        raise BuildRefused("the key-value cache cannot be calibrated: the model's keys and values are not all finite")
    scales = [(np.maximum(limit, SMALLEST) / LEVELS).tolist() for limit in limits]
    document = {
        "scales": {"k_scales": scales[:layers], "v_scales": scales[layers:]},
        "qmax": LEVELS,
        "layer_ids": list(range(layers)),
    }
    Path(job.out).write_text(json.dumps(document, allow_nan=False), "utf-8")


def _open(model: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = host_threads()
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")  # other work may want the core
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _keys_and_values(session: Any, ids: npt.NDArray[Any], job: ScalesJob) -> list[npt.NDArray[Any]]:
    """The keys of all layers, then their values, ``[1, heads, tokens, head_size]`` each, of a text on its own.

    Raises:
        BuildRefused: the graph wants something else than a text, or keeps something else than keys and values.
    """
    layers, length = job.layers, ids.shape[1]
    wanted = [f"present.{layer}.{kind}" for kind in ("key", "value") for layer in range(layers)]
    if not set(wanted) <= {output.name for output in session.get_outputs()}:
        raise BuildRefused("the key-value cache cannot be calibrated: some layers keep something else")
    given: dict[str, npt.NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            given[value.name] = ids
        elif value.name == "attention_mask":
            given[value.name] = np.ones((1, length), np.int64)
        elif value.name == "position_ids":
            given[value.name] = np.arange(length, dtype=np.int64).reshape(1, length)
        elif value.name.startswith("past_key_values."):
            given[value.name] = np.zeros((1, job.heads, 0, job.head_size), np.float32)
        else:
            raise BuildRefused(f"the key-value cache cannot be calibrated: the graph has the input {value.name}")
    found: list[npt.NDArray[Any]] = session.run(wanted, given)
    return found


if __name__ == "__main__":
    child_main(SCALES, measure)
