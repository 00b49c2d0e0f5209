"""How an OpenID provider is configured, and which roles its people get (signing in: browser/oidc.test.mjs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigInvalid, RequestInvalid
from fleet.access.roles import Role
from fleet.store import accounts, audit
from fleet.store.database import Database
from fleet.web.oidc import Handshake, admit, roles_of
from fleet.web.oidc_file import read_oidc
from fleet.web.settings import OidcSettings

GOOD = """
issuer = "https://id.example.org"
client_id = "edge-fleet"
client_secret_file = "secret"
[roles]
ops = "operator"
leads = "approver"
"""


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "secret").write_text("for tests\n")
    path = tmp_path / "oidc.toml"
    path.write_text(text)
    return path


@pytest.fixture
def provider(tmp_path: Path) -> OidcSettings:
    return read_oidc(written(tmp_path, GOOD))


def test_the_file_names_the_provider_and_its_secret(provider: OidcSettings) -> None:
    assert (provider.client_secret, provider.claim, provider.roles["ops"]) == ("for tests", "groups", Role.OPERATOR)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("https://", "http://", "over https://"),
        ('"operator"', '"operater"', "is not valid at roles"),
        ('"secret"', '"none"', "none cannot be read"),
        ("client_id", "client", "client"),
        ("[roles]", "[rolls]", "rolls"),
        ("issuer =", "issuer", "is not TOML"),
    ],
)
def test_a_file_that_says_something_wrong_is_refused(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(ConfigInvalid, match=text):
        read_oidc(written(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("groups", "roles"),
    [
        (["ops", "staff"], (Role.OPERATOR,)),
        (["leads", "ops"], (Role.OPERATOR, Role.APPROVER)),
        ("ops", (Role.OPERATOR,)),
        (["staff"], ()),
        (None, ()),
        ([["ops"], 3], ()),
        ({"ops": True}, ()),
    ],
)
def test_groups_are_roles_or_nothing(provider: OidcSettings, groups: Any, roles: tuple[Role, ...]) -> None:
    assert roles_of(provider, {"groups": groups}) == roles


def test_roles_follow_the_provider_and_names_do_not_move(small: Database, provider: OidcSettings) -> None:
    person = {"sub": "1", "preferred_username": "olga", "groups": ["ops"]}
    assert admit(small, provider, person, 5.0) == "olga"
    admit(small, provider, person | {"groups": ["leads"]}, 6.0)
    with small.read() as connection:
        assert accounts.find(connection, "olga").roles == (Role.APPROVER,)
        assert accounts.password_of(connection, "olga") is None
        actions = [each.action for each in audit.entries(connection, subject="olga")]
    assert actions == ["account.create", "account.roles"]
    for other in (person | {"sub": "2"}, person | {"preferred_username": "admin"}):
        with pytest.raises(RequestInvalid, match="is somebody else's"):
            admit(small, provider, other, 7.0)
    with pytest.raises(RequestInvalid, match="has a role here"):
        admit(small, provider, person | {"groups": []}, 8.0)
    with pytest.raises(RequestInvalid, match="does not say"):
        admit(small, provider, {"groups": ["ops"]}, 8.0)


def test_every_attempt_has_its_own_values() -> None:
    one, other = Handshake("a"), Handshake("b")
    values = [one.state, one.nonce, one.verifier, other.state, other.nonce, other.verifier]
    assert len(set(values)) == 6
    assert all(43 <= len(value) <= 128 for value in values)
