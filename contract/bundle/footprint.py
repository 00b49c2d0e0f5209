"""What a model takes in memory while it serves, from the headers of its graphs: weights as kernels lay them out, and
keys and values by the token. Nothing is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import MappingProxyType

from msgspec import Struct

from contract.bundle.genai_config import GenaiFacts
from contract.bundle.picture_families import LOW_SIDE, MAX_DRAWN, PICTURE_FAMILIES, Attributes, Look, Size
from contract.onnx.graph import ELEMENT_BITS, Node, OnnxModel, Tensor

FLOAT_BYTES = 4

PRODUCT = "MatMulNBits"

BLOCK_FLOATS = 2
"""Beside its levels, kernels keep a scale and a sum for each block of a quantised product, in fp32."""

PLANE = 2
"""Dimensions of a product's weights where they are not quantised."""

PRIVATE_OPERANDS = 4
"""A product's levels, scales and zero points, behind its first input: what is laid out anew is read in that layout."""


SCRATCH_WIDTHS = 3.5
"""Floats that an encoder of pictures holds of a patch while it looks, in widths of its widest product: 2.8 to 3.3 were
measured of CLIP ViT-L in fp32, 3.4 in INT8 (benchmarks/RESULTS.md).
"""

MASK_BYTES = 11
"""Of the masks by which tokens of a picture see each other: for each of them and each token that it may see."""

FEATURES_SHARE = 0.25
"""Of the memory for remembered prompts: what pictures take of it that nobody asks about now."""

QUESTION_TOKENS = 256
"""What is remembered with a picture: the beginning of a conversation and a question."""

READ_BEHIND = 4096
"""Tokens of context behind which a picture that is read in one piece is reckoned with."""


class Footprint(Struct, frozen=True):
    """Bytes. ``packed`` is what kernels lay out anew, of ``originals`` in the files; ``rest`` is read as it lies there.
    ``kv_token``: keys and values of one token in all layers, of type ``kv_type``. ``scratch`` is what the model takes
    while it looks at a picture and reads it, at least. ``picture`` has to be there for remembered prompts, if one with
    the largest picture is to be among them.
    """

    packed: int
    originals: int
    rest: int
    kv_token: int
    kv_type: str
    context_length: int
    least_cache: int = 0
    scratch: int = 0
    picture: int = 0

    @property
    def weights(self) -> int:
        """All that is read for a token: packed on the heap or mapped from prepacked files, it is as much."""
        return self.packed + self.rest

    @property
    def prepacked(self) -> int:
        """Disk for prepacked weights: the runtime wants the originals beside what it makes of them."""
        return self.packed + self.originals + self.rest


def measure_footprint(facts: GenaiFacts, read_graph: Callable[[str], OnnxModel]) -> Footprint:
    """The footprint of the model that ``facts`` describe; ``read_graph`` reads one of its graphs by name."""
    decoder = read_graph(facts.filename)
    others = (read_graph(name) for name in facts.graphs if name != facts.filename)
    packed = originals = rest = 0
    seeing = None if facts.vision is None else read_graph(facts.vision.filename)
    for model in (decoder, *others):
        tensors = {tensor.name: tensor for tensor in model.walk_tensors()}
        products, shared = _products(model)
        packed += sum(packed_bytes(node) for node in products)
        private = {name for node in products for name in node.inputs[1:PRIVATE_OPERANDS]}
        originals += _bytes(tensors[name] for name in private & tensors.keys())
        rest += _bytes(tensor for name, tensor in tensors.items() if name not in private or name in shared)
    kind = kv_element(facts, decoder)
    kv_token = kv_token_bytes(facts, kind)
    return Footprint(
        packed=packed,
        originals=originals,
        rest=rest,
        kv_token=kv_token,
        kv_type=KV_NAMES.get(kind, f"{_bits(kind)} bits"),
        context_length=facts.context_length,
        least_cache=facts.least_cache,
        scratch=0 if seeing is None else least_scratch(facts, seeing),
        picture=0 if seeing is None else remembered_picture(_look(facts, seeing), kv_token, facts.hidden_size),
    )


def picture_scratch(patches: int, encoder: OnnxModel) -> int:
    """Bytes that ``encoder`` takes while it looks at so many ``patches``."""
    outputs = [product.integer("N") for product in _products(encoder)[0]]
    planes = [max(tensor.dims) for tensor in encoder.walk_tensors() if len(tensor.dims) == PLANE]
    return int(patches * SCRATCH_WIDTHS * max(0, *outputs, *planes)) * FLOAT_BYTES


def least_scratch(facts: GenaiFacts, encoder: OnnxModel, resize: Attributes = MappingProxyType({})) -> int:
    """Bytes for a picture of ``detail`` low: what ``encoder`` takes while it looks, and what the decoder takes while it
    reads, where that is in one piece. 0 for kinds of which that is not known. ``resize``: see
    :class:`~contract.bundle.picture_families.PictureFamily`.
    """
    family, look = PICTURE_FAMILIES.get(facts.model_type), _look(facts, encoder, resize)
    if family is None or look is None:
        return 0
    cost = look(Size(LOW_SIDE, LOW_SIDE, low=True))
    reading = pair_bytes(facts) * cost.tokens * min(READ_BEHIND, facts.context_length) if family.together else 0
    return picture_scratch(cost.patches, encoder) + reading


def remembered_picture(look: Look | None, kv_token: int, hidden: int) -> int:
    """Bytes for remembered prompts of which one with the largest picture that is drawn, and a question, fits: its keys
    and values, and its features (fp32) in their share. 0 where it is not known what pictures become.
    """
    if look is None:
        return 0
    side = math.isqrt(MAX_DRAWN)
    tokens = look(Size(side, side)).tokens
    cache, features = (tokens + QUESTION_TOKENS) * kv_token, tokens * hidden * FLOAT_BYTES
    return int(max(cache / (1 - FEATURES_SHARE), features / FEATURES_SHARE)) + 1


def _look(facts: GenaiFacts, encoder: OnnxModel, resize: Attributes = MappingProxyType({})) -> Look | None:
    family = PICTURE_FAMILIES.get(facts.model_type)
    return None if family is None else family.plan(encoder, resize)


def pair_bytes(facts: GenaiFacts) -> int:
    """Bytes that a decoder takes for a token of a piece and one that it may see, where it goes by masks."""
    return facts.attention_heads * FLOAT_BYTES + MASK_BYTES


KV_NAMES = {1: "fp32", 3: "int8", 10: "fp16", 16: "bf16"}


def kv_element(facts: GenaiFacts, decoder: OnnxModel) -> int:
    """The type of keys and values (TensorProto.DataType); fp32 where the graph has none of the usual names."""
    pattern = facts.inputs.get("past_key_names", "past_key_values.%d.key")
    kinds = {value.name: value.elem_type for value in decoder.graph.inputs}
    return kinds.get(pattern.replace("%d", "0"), 1)


def kv_token_bytes(facts: GenaiFacts, kind: int = 1) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * _bits(kind) // 8


def packed_bytes(product: Node) -> int:
    """What kernels make of one quantised product: its levels in another order, a scale and a sum for each block."""
    rows, columns = product.integer("N"), product.integer("K")
    blocks = rows * -(-columns // max(1, product.integer("block_size", 32)))
    return rows * columns * product.integer("bits", 4) // 8 + blocks * BLOCK_FLOATS * FLOAT_BYTES


def _products(model: OnnxModel) -> tuple[list[Node], set[str]]:
    """The quantised products, and what other operators read too (a table that embedding and lm_head share)."""
    products: list[Node] = []
    shared: set[str] = set()
    for node in model.walk_nodes():
        if node.op_type == PRODUCT:
            products.append(node)
        else:
            shared.update(node.inputs)
    return products, shared


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.needed_bytes or 0 for tensor in tensors)


def _bits(kind: int) -> int:
    return ELEMENT_BITS.get(kind, 8 * FLOAT_BYTES)
