"""Signing in with an OpenID provider: authorization code with PKCE, by Authlib.

The provider says who somebody is and which groups they are in; which roles these are is ours to say, and who has none
is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from contract.errors import RequestInvalid, SourceUnavailable
from fleet import administration
from fleet.access.roles import Role, check_name
from fleet.access.secrets import same
from fleet.operations import Actor
from fleet.store import accounts
from fleet.store.database import Database
from fleet.web.settings import OidcSettings

TIMEOUT_SECONDS = 10.0
METADATA_SECONDS = 3600.0
"""How long what the provider says of itself is kept; keys are fetched again when one is not known."""

LEEWAY_SECONDS = 60
"""That clocks may differ."""

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
"""Of signatures: none with a shared secret, and never none."""


class Handshake:
    """What one attempt remembers: everything is derived from one secret, which the browser keeps in a cookie."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def _derive(self, what: str) -> str:
        found = hmac.new(self._secret, f"edge-fleet oidc {what}".encode(), hashlib.sha256).digest()
        return urlsafe_b64encode(found).rstrip(b"=").decode()

    @property
    def state(self) -> str:
        return self._derive("state")

    @property
    def nonce(self) -> str:
        return self._derive("nonce")

    @property
    def verifier(self) -> str:
        return self._derive("verifier")


class Provider:
    """One OpenID provider. Its methods wait for it, so they are called in threads."""

    def __init__(self, settings: OidcSettings, transport: httpx2.BaseTransport | None = None) -> None:
        self._settings = settings
        self._transport = transport
        self._metadata: dict[str, Any] = {}
        self._fetched = 0.0

    def authorization_url(self, handshake: Handshake, redirect: str) -> str:
        """Where the browser is sent.

        Raises:
            SourceUnavailable: the provider does not say where that is.
        """
        with self._client(redirect) as client:
            url, _ = client.create_authorization_url(
                self._endpoint("authorization_endpoint"),
                state=handshake.state,
                nonce=handshake.nonce,
                code_verifier=handshake.verifier,
            )
        return str(url)

    def claims(self, handshake: Handshake, query: Mapping[str, str], redirect: str) -> dict[str, Any]:
        """Who came back, as the provider vouches for it.

        Raises:
            RequestInvalid: it is not an answer to this attempt, or the provider refused. SourceUnavailable.
        """
        if not same(query.get("state", ""), handshake.state):
            raise _refused("this sign-in was not begun here, or too long ago: begin again")
        if "error" in query:
            raise _refused(f"the provider refused: {query.get('error_description') or query['error']}"[:300])
        if (issuer := query.get("iss")) is not None and issuer != self._settings.issuer:
            raise _refused("the answer is of another provider")
        try:
            with self._client(redirect) as client:
                token = client.fetch_token(
                    self._endpoint("token_endpoint"), code=query.get("code", ""), code_verifier=handshake.verifier
                )
                claims = self._verify(str(token.get("id_token", "")), handshake.nonce)
                if self._settings.claim not in claims or self._settings.name_claim not in claims:
                    claims = self._userinfo(client, claims)
        except httpx2.HTTPError as error:
            raise self._away(error) from error
        except (AuthlibBaseError, JoseError, ValueError, KeyError) as error:
            raise _refused(f"what the provider answered cannot be relied on: {error}"[:300]) from error
        return claims

    def _verify(self, token: str, nonce: str) -> dict[str, Any]:
        decoded = jwt.decode(token, self._keys(), algorithms=ALGORITHMS)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
            },
            params={"nonce": nonce, "client_id": self._settings.client_id},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        return dict(claims)

    def _userinfo(self, client: OAuth2Client, claims: dict[str, Any]) -> dict[str, Any]:
        response = client.get(self._endpoint("userinfo_endpoint"))
        response.raise_for_status()
        more = response.json()
        if not isinstance(more, dict) or more.get("sub") != claims["sub"]:
            raise _refused("what the provider says of the person is of another one")
        return more | claims

    def _client(self, redirect: str) -> OAuth2Client:
        return OAuth2Client(
            self._settings.client_id,
            self._settings.client_secret,
            scope=self._settings.scope,
            redirect_uri=redirect,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic",  # noqa: S106
            timeout=TIMEOUT_SECONDS,
            transport=self._transport,
        )

    def _get(self, url: str) -> dict[str, Any]:
        try:
            with httpx2.Client(timeout=TIMEOUT_SECONDS, transport=self._transport) as client:
                response = client.get(url)
                response.raise_for_status()
                found = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise self._away(error) from error
        if not isinstance(found, dict):
            raise self._away(ValueError("not an object"))
        return found

    def _endpoint(self, name: str) -> str:
        if not self._metadata or time.monotonic() > self._fetched + METADATA_SECONDS:
            found = self._get(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self._settings.issuer:
                raise self._away(ValueError("it calls itself by another name than the configuration"))
            self._metadata, self._fetched = found, time.monotonic()
        url = self._metadata.get(name)
        if not isinstance(url, str) or urlsplit(url).scheme not in ("https", "http"):
            raise self._away(ValueError(f"it has no {name}"))
        return url

    def _keys(self) -> KeySet:
        return KeySet.import_key_set(self._get(self._endpoint("jwks_uri")))  # type: ignore[arg-type]

    def _away(self, error: Exception) -> SourceUnavailable:
        return SourceUnavailable(f"the OpenID provider {self._settings.issuer} cannot be used: {error}"[:300])


def _refused(message: str) -> RequestInvalid:
    return RequestInvalid(message, code=403, kind="forbidden")


def roles_of(settings: OidcSettings, claims: Mapping[str, Any]) -> tuple[Role, ...]:
    """Those that the person's groups are; none for none."""
    said = claims.get(settings.claim)
    groups = said if isinstance(said, list) else [said]
    found = {settings.roles[group] for group in groups if isinstance(group, str) and group in settings.roles}
    return tuple(role for role in Role if role in found)


def admit(database: Database, settings: OidcSettings, claims: Mapping[str, Any], now: float) -> str:
    """The account of whom the provider vouches for: made the first time, given its roles each time.

    Raises:
        RequestInvalid: no group of theirs is a role, the account is disabled, or the name is somebody else's.
    """
    name, subject = claims.get(settings.name_claim), claims.get("sub")
    if not isinstance(name, str) or not isinstance(subject, str):
        raise _refused(f"the provider does not say {settings.name_claim} and sub")
    check_name(name)
    roles = roles_of(settings, claims)
    if not roles:
        raise _refused(f"no group of {name} has a role here: {settings.claim} is mapped to none of them")
    actor = Actor("console", f"OpenID provider {settings.issuer}")
    with database.write() as connection:
        known = {each.name: each for each in accounts.every(connection)}
        found = known.get(name)
        if found is None:
            administration.create(
                connection, name, roles, actor, now, password=None, issuer=settings.issuer, subject=subject
            )
        elif (found.issuer, found.subject) != (settings.issuer, subject):
            raise _refused(f"the account {name} is somebody else's: an administrator has to rename or disable one")
        elif found.disabled:
            raise _refused(f"the account {name} is disabled")
        else:
            administration.set_roles(connection, name, roles, actor, now)
    return name
