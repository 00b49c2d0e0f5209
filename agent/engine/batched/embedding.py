"""Embeddings for decoders that read no tokens: words by the model's own graph, those of pictures by their features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.runner import open_session
from agent.engine.load_options import Resources
from agent.engine.pictures.features import FeatureCache
from contract.bundle.genai_config import GenaiFacts
from contract.bundle.picture_families import PICTURE_FAMILIES

MARK = -1
"""Of a position of a picture, for graphs that know it by a token below zero."""

KINDS = {
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class Embedding:
    """The embedding graph of the model that ``facts`` describe; ``cache`` knows the rows of pictures' positions.

    May raise whatever onnxruntime raises.
    """

    def __init__(self, bundle_dir: Path, facts: GenaiFacts, resources: Resources, cache: FeatureCache) -> None:
        assert facts.embedding is not None
        graph = facts.embedding
        self._session = open_session(bundle_dir / graph.filename, resources.threads, resources.kernels)
        self._cache = cache
        self._width = facts.hidden_size
        family = PICTURE_FAMILIES[facts.model_type]
        self._mark = MARK if family.below_zero or facts.image_token_id is None else facts.image_token_id
        self._ids = graph.inputs.get("input_ids", "input_ids")
        self._features = graph.inputs.get("image_features", "image_features")
        self._output = graph.outputs.get("inputs_embeds", "inputs_embeds")
        self._kinds = {value.name: KINDS.get(value.type, np.float32) for value in self._session.get_inputs()}

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """``[rows, tokens, hidden]`` of ``[rows, tokens]``."""
        positions = ids < 0
        features = self._cache.rows(ids[positions], self._width)
        feed = {
            self._ids: self.number(ids).astype(self._kinds[self._ids]),
            self._features: features.astype(self._kinds[self._features], copy=False),
        }
        [found] = self._session.run([self._output], feed)
        return np.ascontiguousarray(found, dtype=np.float32)

    def number(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """``ids`` as the model's own graphs know them."""
        return np.where(ids < 0, self._mark, ids)
