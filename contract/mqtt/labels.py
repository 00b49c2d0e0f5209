"""Names and labels in payloads, with their bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MAX_LABEL = 512
"""Characters of what a client writes for itself: a user, a cache key, a value of ``metadata``."""

Identifier = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)", extra={"expected": "1 to 64 of A-Z a-z 0-9 _ . -"})
]
"""``$`` alone lets a line break follow, and brokers cut whoever publishes to a topic with one."""

Label = Annotated[str, Meta(max_length=MAX_LABEL)]

AdapterName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9._-]{1,64}(@[0-9A-Za-z.+-]{1,64})?$(?!\n)",
        max_length=129,
        extra={"expected": "NAME or NAME@VERSION, in small letters"},
    ),
]
"""The name of an adapter bundle, or NAME@VERSION."""
