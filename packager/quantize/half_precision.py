"""Whether this processor has instructions for products in half precision: without them, fp32 is the quicker one."""

from __future__ import annotations

import re
from pathlib import Path

INSTRUCTIONS = {
    "bfloat16": frozenset({"amx_bf16", "avx512_bf16", "bf16"}),
    "float16": frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
"""What the kernel calls them, of x86-64 and aarch64, by the type that torch names."""


def has_products(dtype: str, cpuinfo: str | None = None) -> bool:
    """Whether numbers of ``dtype`` (a key of :data:`INSTRUCTIONS`) are multiplied as such; ``cpuinfo``: what
    ``/proc/cpuinfo`` says.
    """
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace") if cpuinfo is None else cpuinfo
    except OSError:
        return False
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    return found is not None and not INSTRUCTIONS[dtype].isdisjoint(found[1].split())
