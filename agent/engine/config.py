"""Reads ``genai_config.json`` for the engines."""

from __future__ import annotations

from pathlib import Path

from contract.bundle.genai_config import CONFIG_FILE, GenaiFacts, read_genai_config
from contract.errors import BundleRefused, EngineFailed


def read_config(bundle_dir: Path) -> GenaiFacts:
    """The facts of a bundle's model. The list of allowed keys is held to here too: some would load code.

    Raises:
        EngineFailed: missing, or not acceptable.
    """
    path = bundle_dir / CONFIG_FILE
    try:
        return read_genai_config(path.read_bytes())
    except OSError as error:
        raise EngineFailed(f"{path} cannot be read: {error.strerror}") from error
    except BundleRefused as refused:
        raise EngineFailed(f"{path} is not acceptable: {refused.message}") from refused
