"""The file that names an OpenID provider."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from contract.errors import ConfigInvalid
from contract.schema_faults import schema_faults
from fleet.access.roles import Role
from fleet.web.settings import OidcSettings

MAX_BYTES = 64 << 10

Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class OidcDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """As it is written. The secret stands in a file of its own, so that this one may be read by others."""

    issuer: Text
    client_id: Text
    client_secret_file: Text
    roles: dict[Text, Role]
    title: Text = "OpenID"
    claim: Text = "groups"
    name_claim: Text = "preferred_username"
    scope: Text = "openid profile email"


def read_oidc(path: Path) -> OidcSettings:
    """The provider that ``path`` names; ``client_secret_file`` is beside it, unless its path is absolute.

    Raises:
        ConfigInvalid: the file, or that of the secret, cannot be read, or says something wrong.
    """
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}", field="oidc") from error
    for fault in schema_faults(document, OidcDocument):
        at = f" at {fault.field}" if fault.field else ""
        raise ConfigInvalid(f"{path} is not valid{at}: {fault.message}", field=fault.field)
    found = msgspec.convert(document, OidcDocument)
    parts = urlsplit(found.issuer)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ConfigInvalid(f"{path}: the issuer is reached over https://", field="issuer")
    if not found.roles:
        raise ConfigInvalid(f"{path}: no group has a role, so nobody could sign in", field="roles")
    if "openid" not in found.scope.split():
        raise ConfigInvalid(f"{path}: the scope has to have openid in it", field="scope")
    return OidcSettings(
        issuer=found.issuer,
        title=found.title,
        client_id=found.client_id,
        client_secret=_read(path.parent / found.client_secret_file).strip(),
        claim=found.claim,
        name_claim=found.name_claim,
        scope=found.scope,
        roles=found.roles,
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode()
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}", field="oidc") from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8", field="oidc") from error
