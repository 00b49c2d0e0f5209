"""How much memory this process may use, and what keys and values cost."""

from __future__ import annotations

from agent.host.memory import available_memory
from contract.bundle.genai_config import GenaiFacts

RESERVE = 0.5
"""Share of the available memory that stays free for everybody else."""

FLOAT_BYTES = 4
"""CPU graphs of INT4 and INT8 models keep keys and values in fp32."""


def kv_bytes_per_token(facts: GenaiFacts) -> int:
    """Bytes of keys and values of one token in all layers."""
    return 2 * facts.layers * facts.kv_heads * facts.head_size * FLOAT_BYTES


def usable_bytes(*, mapped: int = 0, leaving: int = 0) -> int:
    """What may be used for keys, values and scratch: half of what is available now, cgroup limit included.

    Not available for that is what this process has ``mapped`` of its weights, which the kernel takes for file cache;
    ``leaving`` is free soon, when the worker ends that this one takes the place of.
    """
    return int(max(0, available_memory() - mapped + leaving) * RESERVE)
