"""What graphs that see are made of: weights by their published names, products with them, norms."""

from __future__ import annotations

import numpy as np

from packager.graph.embedding import BITS, choose_block, quantise_rows
from packager.vision.family import EncoderType
from packager.vision.graph_writer import MICROSOFT, Array, GraphWriter, Nodes
from packager.vision.stored import StoredWeights

EPSILON = 1e-5

ACCURACY_LEVEL = 4
"""Quantised products are computed in int8, as the decoder's are."""


class Parts:
    """Nodes of ``body``, which may be a graph within ``graph``; the weights are the whole graph's, those of products
    stored as ``kind`` says.
    """

    def __init__(
        self,
        graph: GraphWriter,
        body: Nodes,
        weights: StoredWeights,
        kind: EncoderType = "float",
        epsilon: float = EPSILON,
    ) -> None:
        self._graph, self.body, self._weights, self._kind, self._epsilon = graph, body, weights, kind, epsilon

    def constant(self, name: str, values: list[int] | int) -> str:
        """Integers that nodes read."""
        return self._graph.constant(name, values)

    def table(self, name: str, values: Array) -> str:
        """Numbers that nodes read, and that are no weight of the checkpoint."""
        return self._graph.weight(name, np.ascontiguousarray(values, np.float32))

    def weight(self, name: str, shape: tuple[int, ...] | None = None) -> str:
        """A weight by its published name."""
        read = self._weights.read(name)
        return self._graph.weight(name, read if shape is None else read.reshape(shape))

    def read(self, name: str) -> Array:
        """A weight as it is stored, by its published name."""
        return self._weights.read(name)

    def linear(self, x: str, stem: str, name: str) -> str:
        """``x`` times the weight of ``stem``, plus its bias where it has one."""
        weight, bias = f"{stem}.weight", f"{stem}.bias"
        biased = bias in self._weights
        product = self.product(x, weight, self._weights.read(weight), f"{name}_product" if biased else name)
        return self.body.node("Add", product, self.weight(bias), name=name) if biased else product

    def product(self, x: str, weight: str, rows: Array, name: str) -> str:
        """``x`` times the transpose of ``rows``, which are stored under the name ``weight``."""
        bits = BITS.get(self._kind)
        block = None if bits is None else choose_block(bits, rows.shape[1])
        if bits is not None and block is not None:
            return self._quantised(x, weight, rows, name, bits=bits, block=block)
        if self._kind == "float":
            return self.body.node("MatMul", x, self._graph.weight(weight, rows.T), name=name)
        with np.errstate(over="ignore"):  # what becomes infinite shows in the features
            stored = self._graph.weight(f"{weight}_fp16", rows.T.astype(np.float16))
        return self.body.node("MatMul", x, self.body.cast(stored, "FLOAT", name=f"{name}_weight"), name=name)

    def _quantised(self, x: str, weight: str, rows: Array, name: str, *, bits: int, block: int) -> str:
        count, width = rows.shape
        levels, scales = quantise_rows(np.ascontiguousarray(rows, np.float32), bits, block)
        return self.body.node(
            "MatMulNBits",
            x,
            self._graph.weight(f"{weight}_Q{bits}", levels.reshape(count, width // block, block * bits // 8)),
            self._graph.weight(f"{weight}_scales", scales.reshape(-1)),
            name=name,
            domain=MICROSOFT,
            K=width,
            N=count,
            bits=bits,
            block_size=block,
            accuracy_level=ACCURACY_LEVEL,
        )

    def norm(self, x: str, stem: str, name: str) -> str:
        """``x`` normalised by mean and deviation."""
        scale, bias = self.weight(f"{stem}.weight"), self.weight(f"{stem}.bias")
        return self.body.node("LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=self._epsilon)

    def root_norm(self, x: str, stem: str, name: str, *, offset: float = 0.0) -> str:
        """``x`` divided by the root of its mean square, times the weight plus ``offset``."""
        weight = f"{stem}.weight"
        scale = self._graph.weight(weight, self._weights.read(weight) + np.float32(offset))
        return self.body.node("SimplifiedLayerNormalization", x, scale, name=name, axis=-1, epsilon=self._epsilon)
