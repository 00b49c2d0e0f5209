"""The angles of rotary position embeddings, from transformers' own code for the model of a configuration.

Every family has its own way to them (scaling by parts, per layer type, two sets by length, a share of each head), and
whoever writes them down again gets one wrong. So the graph's tables are made from these, and held against these.
"""

from __future__ import annotations

import copy
from typing import Any

from msgspec import Struct

SINGLE = "all"
"""The role of tables that all layers and lengths use; others are named after their layer type, or these two."""
SHORT, LONG = "short", "long"


class RopeRows(Struct, frozen=True):
    """Rows of one role's tables at some ``positions``: cosines and sines of each pair, scaled as attention takes them.

    ``length`` is how many positions it is for.
    """

    role: str
    length: int
    positions: list[int]
    cos: list[list[float]]
    sin: list[list[float]]


class RopeFacts(Struct, frozen=True):
    """``layers`` names the role that each layer uses, ``none`` where it does not rotate."""

    tables: list[RopeRows]
    layers: list[str]


class Rotary:
    """transformers' rotary embedding of the model that ``config`` describes, on the CPU.

    Raises:
        LookupError: the model has none.
    """

    def __init__(self, config: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        own = copy.deepcopy(config)
        if getattr(own, "quantization_config", None) is not None:
            del own.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(own)
        found = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
        if not found:
            raise LookupError("the model has no rotary embedding")
        self._rotary = type(found[0])(config=own.get_text_config())
        self._config = own.get_text_config()

    @property
    def lengths(self) -> dict[str, int]:
        """How many positions each role's tables are for."""
        context = int(self._config.max_position_embeddings)
        parameters = self._config.rope_parameters
        if isinstance(getattr(self._rotary, "rope_type", None), dict):
            return {role: context for role in self._rotary.layer_types if parameters[role] is not None}
        if self._rotary.rope_type == "longrope":
            return {LONG: context, SHORT: min(context, int(parameters["original_max_position_embeddings"]))}
        return {SINGLE: context}

    def tables(self, role: str, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines ``[positions, pairs]`` in fp32 of a tensor of positions."""
        import torch

        asked = positions
        if role == LONG:
            # The longest position chooses the set of factors for all of them.
            last = torch.tensor([int(self._config.rope_parameters["original_max_position_embeddings"])])
            asked = torch.cat([positions, last])
        more = () if role in (SINGLE, SHORT, LONG) else (role,)
        cos, sin = self._rotary(torch.zeros(1, dtype=torch.float32), asked[None], *more)
        frequencies = getattr(self._rotary, f"{role}_inv_freq" if more else "inv_freq")
        pairs = int(frequencies.shape[-1])
        return cos[0, : len(positions), :pairs], sin[0, : len(positions), :pairs]

    def facts(self) -> RopeFacts:
        """What a graph is held against: rows all over the length of each table."""
        import torch

        tables = []
        for role, length in self.lengths.items():
            positions = sample_positions(length)
            cos, sin = self.tables(role, torch.tensor(positions))
            tables.append(RopeRows(role, length, positions, cos.tolist(), sin.tolist()))
        return RopeFacts(tables, self._layers([table.role for table in tables]))

    def _layers(self, roles: list[str]) -> list[str]:
        config = self._config
        count = int(config.num_hidden_layers)
        kinds = list(getattr(config, "layer_types", None) or [SINGLE] * count)
        attending = [number for number, kind in enumerate(kinds) if kind == SINGLE or "attention" in kind]
        still = getattr(config, "no_rope_layers", None) or [1] * count
        single = "+".join(sorted(roles)) if set(roles) <= {SHORT, LONG} else SINGLE
        return [
            "none" if not still[number] else kinds[number] if kinds[number] in roles else single for number in attending
        ]


def sample_positions(length: int) -> list[int]:
    """The first few, some all over, the last few."""
    spread = {number * length // 24 for number in range(24)}
    powers = {2**power for power in range(length.bit_length()) if 2**power < length}
    return sorted({*range(min(4, length)), *spread, *powers, *range(max(0, length - 2), length)})
