"""From a picture's file to its features: drawn again, prepared by the runtime's processor, and through the encoder.

The encoder is a session of our own, so that it can run beside the decoder, and what it made be kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.runner import open_session
from agent.engine.image_decode import decode_image
from agent.engine.load_options import Resources
from agent.engine.pictures.features import Encoded, Grid
from agent.engine.pictures.processor import open_processor, resize_attributes
from agent.engine.tokenizing import Tokenizing
from agent.engine.vision import PHI3V_WHOLE, cannot_take
from contract.bundle.footprint import least_scratch, picture_scratch
from contract.bundle.genai_config import GenaiFacts
from contract.bundle.picture_families import PHI3V_CROP, PICTURE_FAMILIES
from contract.errors import RequestInvalid
from contract.onnx.wire import read_graph_file

SHRINK = "memory.enable_memory_arena_shrinkage"
"""A run's entry for what the runtime gives back after it: pictures come seldom, and their scratch is large."""


class PictureEncoder:
    """The eyes of the model that ``facts`` describe. ``runs`` counts how often the encoder ran; meanwhile it takes
    ``patch_bytes`` of memory for a patch. ``look`` says what becomes of a picture, where that is known, and
    ``least_scratch`` what there must be room for (:func:`contract.bundle.footprint.least_scratch`).

    Every method but :meth:`encode` is for the thread that drives the engine; it runs in another one.
    """

    def __init__(self, bundle_dir: Path, facts: GenaiFacts, resources: Resources, tokenizing: Tokenizing) -> None:
        import onnxruntime_genai as og

        assert facts.vision is not None
        self._og = og
        self._family = PICTURE_FAMILIES[facts.model_type]
        self._image_token = facts.image_token_id
        self._tokenizing = tokenizing
        self._processor = open_processor(og, bundle_dir, facts)
        graph = bundle_dir / facts.vision.filename
        self._session = open_session(graph, resources.threads, resources.kernels)
        self._output = facts.vision.outputs.get("image_features", "image_features")
        known = {graph: tensor for tensor, graph in facts.vision.inputs.items()}
        self._inputs = {value.name: known.get(value.name, value.name) for value in self._session.get_inputs()}
        self._running: Any = None
        self._lock = threading.Lock()
        self.runs = 0
        model = read_graph_file(graph)
        self.patch_bytes = picture_scratch(1, model)
        resize = resize_attributes(bundle_dir, facts)
        self.look = self._family.plan(model, resize)
        self.least_scratch = least_scratch(facts, model, resize)

    def encode(self, data: bytes, *, low: bool, most_pixels: int, wanted: threading.Event) -> Encoded:
        """The picture in ``data``; ``low``: with the ``detail`` that is called so, in the family's way. Nothing is done
        any more once ``wanted`` is cleared.

        Raises:
            RequestInvalid: it cannot be read, or the model's graphs cannot do with it.
            MemoryError: there is none left.
        """
        whole, side = low and self._family.low == "whole", self._family.low_side if low else 0
        drawn, _ = decode_image(data, most_pixels, side=side, square=whole)
        if not wanted.is_set():
            return Encoded([], np.zeros((0, 1), np.float32))
        try:
            tensors = self._processor(self._family.placeholder.format(1), images=self._og.Images.open_bytes(drawn))
            feed = {name: tensors[tensor].as_numpy() for name, tensor in self._inputs.items()}
            ids = [int(token) for token in tensors["input_ids"].as_numpy().reshape(-1)]
            ids = self._tokenizing.without_beginning(ids)
            if whole:
                feed, ids = _as_a_whole(feed), [-1] * PHI3V_WHOLE
            cut = None if self._family.grid is None else tensors[self._family.grid].as_numpy().reshape(-1)
            rows = self._run(feed, wanted)
        except Exception as error:
            raise cannot_take(error) from error
        return Encoded(self._mark(ids, len(rows)), rows, None if cut is None else _grid(cut[-2:], len(rows)))

    def stop(self) -> None:
        """End the run that is in progress, if there is one."""
        with self._lock:
            if self._running is not None:
                self._running.terminate = True

    def _run(self, feed: dict[str, Any], wanted: threading.Event) -> NDArray[np.float32]:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry(SHRINK, "cpu:0")
        with self._lock:
            options.terminate = not wanted.is_set()
            self._running = options
        try:
            self.runs += 1
            [found] = self._session.run([self._output], feed, options)
        finally:
            with self._lock:
                self._running = None
        rows: NDArray[np.float32] = found.reshape(-1, found.shape[-1]).astype(np.float32, copy=False)
        return rows

    def _mark(self, ids: Sequence[int], rows: int) -> list[int]:
        """``ids``, where whatever stands for a row is below zero.

        Raises:
            RequestInvalid: there are more or fewer of those than rows.
        """
        marked = [-1 if token < 0 or token == self._image_token else token for token in ids]
        positions = sum(token < 0 for token in marked)
        if positions != rows:
            raise RequestInvalid(
                f"the model cannot take this picture: it makes {rows} features for {positions} positions",
                field="messages",
            )
        return marked


def _grid(patches: NDArray[np.int64], positions: int) -> Grid:
    """How the ``positions`` lie that were made of so many rows and columns of ``patches``.

    Raises:
        RequestInvalid: they do not.
    """
    along = max(1, round((int(patches.prod()) / max(1, positions)) ** 0.5))
    grid = Grid(*(int(side) // along for side in patches))
    if grid.rows * grid.columns != positions:
        raise RequestInvalid(
            f"the model cannot take this picture: it makes {positions} features of {patches[0]} x {patches[1]} patches",
            field="messages",
        )
    return grid


def _as_a_whole(feed: dict[str, Any]) -> dict[str, Any]:
    """What Phi-3-vision reads of a square picture that is one crop, which is then the same as the whole."""
    crops = {name: np.ascontiguousarray(each[:, [0, 0]]) for name, each in feed.items() if each.ndim == 5}
    return crops | {name: np.full_like(each, PHI3V_CROP) for name, each in feed.items() if each.ndim != 5}
