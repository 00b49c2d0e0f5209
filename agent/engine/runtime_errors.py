"""Where the runtimes are called: whatever they raise becomes our error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agent.engine.memory import allocatable_bytes
from agent.host.memory import available_memory
from contract.bundle.device_plan import size_text
from contract.errors import EdgeBundleError, EngineFailed


@contextmanager
def runtime_errors(what: str) -> Iterator[None]:
    """Guard calls into a runtime.

    Raises:
        EngineFailed: ``what``, when the body raised anything that is not already an error of ours.
    """
    try:
        yield
    except (EdgeBundleError, Declined):
        raise
    except MemoryError as error:
        raise EngineFailed(f"{what}: {_describe_memory(error)}") from error
    except Exception as error:  # the bindings raise types of their own and RuntimeError
        raise EngineFailed(f"{what}: {str(error) or type(error).__name__}") from error


def _describe_memory(error: MemoryError) -> str:
    """That memory has ended, and what there is of it now."""
    found = f"no memory is left ({error})" if str(error) else "no memory is left"
    with suppress(MemoryError, OSError, EdgeBundleError):
        free, allowed = available_memory(), allocatable_bytes()
        more = f", and this worker may have {size_text(allowed)} more" if allowed < sys.maxsize else ""
        return f"{found}: {size_text(free)} are free{more}"
    return found


class Declined(Exception):
    """An engine cannot drive this model, or not on this processor; the message says why. Another engine may."""
