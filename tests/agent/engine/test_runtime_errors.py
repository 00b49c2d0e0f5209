"""What an error of a runtime becomes: a sentence that says something, whatever the runtime said."""

from __future__ import annotations

import pytest

from agent.engine.runtime_errors import Declined, runtime_errors
from contract.errors import EngineFailed, RequestInvalid


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such operator"), "no such operator"),
        (MemoryError(), r"no memory is left: [\d.]+ [KMG]iB are free"),
        (MemoryError("std::bad_alloc"), r"no memory is left \(std::bad_alloc\): [\d.]+ [KMG]iB are free"),
        (OSError(), "OSError"),
    ],
)
def test_an_error_that_says_nothing_is_named(error: Exception, said: str) -> None:
    with (
        pytest.raises(EngineFailed, match=f"^the model cannot be loaded: {said}$"),
        runtime_errors("the model cannot be loaded"),
    ):
        raise error


def test_a_worker_without_memory_says_how_much_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.engine.runtime_errors.allocatable_bytes", lambda: 3 << 30)
    with pytest.raises(EngineFailed, match=r"are free, and this worker may have 3\.0 GiB more$"), runtime_errors("x"):
        raise MemoryError


@pytest.mark.parametrize("error", [RequestInvalid("the prompt is too long"), Declined("windows of three sizes")])
def test_what_is_ours_already_stays(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, runtime_errors("the model cannot be loaded"):
        raise error
    assert raised.value is error
