"""What is in a weight file beside its header: numbers that are none, and places that were never written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from contract.errors import BuildRefused
from packager.sources.weights import count_parameters, refuse_broken_numbers


def whole() -> dict[str, npt.NDArray[np.float32]]:
    numbers = np.random.default_rng(7)
    shapes = {"a.weight": (256, 512), "b.weight": (512, 256), "c.weight": (256, 256)}
    return {name: numbers.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def look(file: Path) -> None:
    refuse_broken_numbers([file], lambda done, total: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(whole(), tmp_path / "model-00001-of-00002.safetensors")
    return tmp_path / "model-00001-of-00002.safetensors"


def test_a_whole_file_passes(file: Path) -> None:
    look(file)


@pytest.mark.parametrize("left_out", [2**17, 2**19, 900_000])
def test_a_hole_at_the_end_is_a_download_that_was_interrupted(file: Path, left_out: int) -> None:
    """Also where the last matrix alone, or a part of it, is missing."""
    size = file.stat().st_size
    os.truncate(file, size - left_out)
    os.truncate(file, size)
    with pytest.raises(BuildRefused) as caught:
        look(file)
    assert caught.value.message == (
        "the weights 'c.weight' in model-00001-of-00002.safetensors are zeros that were never written, as an "
        "interrupted download leaves them; fetch the file again"
    )


def test_a_matrix_of_zeros_in_the_middle_is_one_too(file: Path) -> None:
    """Files that are fetched in several parts at once have them anywhere, and some file systems know no holes."""
    save_file({**whole(), "b.weight": np.zeros((512, 256), np.float32)}, file)
    with pytest.raises(BuildRefused, match=r"'b\.weight' in .* are zeros that were never written"):
        look(file)


@pytest.mark.parametrize("shape", [(4096,), (1, 4096), (4096, 1), (8, 8)])
def test_vectors_and_what_is_small_may_be_zero(file: Path, shape: tuple[int, ...]) -> None:
    save_file({**whole(), "d.bias": np.zeros(shape, np.float32)}, file)
    look(file)


def test_rows_of_zeros_that_were_written_are_weights(file: Path) -> None:
    """As in a vocabulary that was made longer."""
    padded = whole()
    padded["c.weight"][100:] = 0
    save_file(padded, file)
    look(file)


ONE, TWO = ({"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for at in (0, 8))
HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "a word for a length": ({"shape": ["two"]}, "has a damaged header; fetch it again"),
    "a length in quotation marks": ({"shape": ["2"]}, "has a damaged header; fetch it again"),
    "lengths below zero": ({"shape": [-2, -1]}, "has a damaged header; fetch it again"),
    "half a length": ({"shape": [2.5]}, "has a damaged header; fetch it again"),
    "a place in quotation marks": ({"data_offsets": ["8", "16"]}, "has a damaged header; fetch it again"),
    "a number for a type": ({"dtype": 32}, "has a damaged header; fetch it again"),
    "a type that is none": (
        {"dtype": "F33"},
        "the weights 'b' in model.safetensors are of the type 'F33', which is no",
    ),
    "more numbers than bytes": ({"shape": [4]}, "the weights 'b' take 16 bytes by type and shape, and lie at 8 to 16"),
    "another type": ({"dtype": "BF16"}, "the weights 'b' take 4 bytes by type and shape, and lie at 8 to 16"),
    "over another": ({"data_offsets": [4, 12]}, "take 8 bytes by type and shape, and lie at 4 to 12, behind 8"),
    "backwards": ({"data_offsets": [16, 8]}, "take 8 bytes by type and shape, and lie at 16 to 8, behind 8"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_the_library_does_not_read_is_refused_in_our_words(fault: str, tmp_path: Path) -> None:
    changes, words = HEADERS[fault]
    file = tmp_path / "model.safetensors"
    entries = {"__metadata__": {"format": "pt"}, "a": ONE, "b": {**TWO, **changes}}
    end = max(offset for entry in (ONE, entries["b"]) for offset in entry["data_offsets"] if isinstance(offset, int))
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\x3c" * end)
    with pytest.raises(SafetensorError), safe_open(file, "numpy"):
        pass
    with pytest.raises(BuildRefused) as caught:
        count_parameters(file)
    assert words in caught.value.message
