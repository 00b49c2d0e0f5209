"""The families that are built whole are the same in both tables, and do what is asked of each."""

from __future__ import annotations

from packager.sources.families import SEEING
from packager.vision.families import FAMILIES


def test_every_family_that_sees_has_its_graphs() -> None:
    assert FAMILIES.keys() == SEEING
