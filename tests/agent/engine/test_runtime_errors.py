"""What an error of a runtime becomes: a sentence that says something, whatever the runtime said."""

from __future__ import annotations

import pytest

from agent.engine.runtime_errors import Declined, runtime_errors
from contract.errors import EngineFailed, RequestInvalid


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("no such operator"), "no such operator"), (MemoryError(), "MemoryError"), (OSError(), "OSError")],
)
def test_an_error_that_says_nothing_is_named(error: Exception, said: str) -> None:
    with (
        pytest.raises(EngineFailed, match=f"^the model cannot be loaded: {said}$"),
        runtime_errors("the model cannot be loaded"),
    ):
        raise error


@pytest.mark.parametrize("error", [RequestInvalid("the prompt is too long"), Declined("windows of three sizes")])
def test_what_is_ours_already_stays(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, runtime_errors("the model cannot be loaded"):
        raise error
    assert raised.value is error
