"""Secrets under systemd: files that only root can read, handed to the service as credentials (systemd.exec(5)).

The configuration names the file (``password_file = "credentials/password"``). Outside the service, root reads it; the
service itself gets a copy in ``$CREDENTIALS_DIRECTORY``, under the prefix that its unit gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = "credentials"
"""Beside the configuration file."""

PREFIX = "edge_"
"""``LoadCredential=edge:DIRECTORY`` names each file of the directory ``edge_NAME``."""


def find_credential(path: Path, base: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Where the secret named ``path`` can be read by this process; ``base`` is the configuration's directory."""
    handed = (os.environ if environment is None else environment).get("CREDENTIALS_DIRECTORY")
    if handed and path.parent == base / DIRECTORY:
        return Path(handed) / f"{PREFIX}{path.name}"
    return path
