"""Where the runtimes are called: whatever they raise becomes our error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    except Exception as error:  # the bindings raise types of their own and RuntimeError
        raise EngineFailed(f"{what}: {str(error) or type(error).__name__}") from error  # a MemoryError is silent


class Declined(Exception):
    """An engine cannot drive this model, or not on this processor; the message says why. Another engine may."""
