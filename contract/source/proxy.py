"""Which proxy leads to a server: the one that is configured, or what ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and
``NO_PROXY`` say, in lower or upper case as curl, wget and Go read them.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

DIRECT = "direct"
"""As the setting of a source: no proxy, whatever the environment says."""

DEFAULT_PORT = 8080
"""Where the environment names a proxy without a port."""


class Proxy(NamedTuple):
    """An HTTP proxy; ``shown`` is what to call it in messages, never with credentials."""

    host: str
    port: int
    authorization: str | None = None

    @property
    def shown(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.shown})"


def parse_proxy(text: str) -> Proxy:
    """``http://[user:password@]HOST[:PORT]``, or just ``HOST:PORT``.

    Raises:
        ValueError: what it cannot be, in a sentence without credentials.
    """
    fault = ValueError("a proxy is given as http://HOST:PORT")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise fault
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise fault from None
    if parts.scheme != "http":
        raise ValueError(f"a proxy is given as http://HOST:PORT; {parts.scheme}:// proxies are not supported")
    if not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise fault
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, port or DEFAULT_PORT, authorization)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Proxies:
    """The way to each server. Servers on this machine are reached directly, unless a proxy is for ``always``."""

    def __init__(
        self, by_scheme: Mapping[str, str] | None = None, no_proxy: str = "", *, always: Proxy | None = None
    ) -> None:
        self._by_scheme = dict(by_scheme or {})
        self._excepted = [word for word in re.split(r"[,\s]+", no_proxy.lower()) if word]
        self._always = always
        self._authorization: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Proxies:
        """As the environment says."""
        given = os.environ if environment is None else environment

        def value(name: str) -> str:
            return given.get(name) or given.get(name.upper()) or ""

        found = {scheme: value(f"{scheme}_proxy") or value("all_proxy") for scheme in ("http", "https")}
        return cls({scheme: text for scheme, text in found.items() if text}, value("no_proxy"))

    def with_authorization(self, authorization: str | None) -> Proxies:
        """The same, presenting ``authorization`` to the proxy if there is one."""
        self._authorization = authorization or self._authorization
        return self

    def route(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy that leads to a server; None for the direct way.

        Raises:
            ValueError: the environment names something that cannot be used.
        """
        proxy = self._always
        if proxy is None:
            text = self._by_scheme.get(scheme)
            if text is None or is_loopback(host) or any(_matches(each, host, port) for each in self._excepted):
                return None
            try:
                proxy = parse_proxy(text)
            except ValueError as error:
                raise ValueError(f"the environment's {scheme}_proxy: {error}") from None
        return proxy if self._authorization is None else proxy._replace(authorization=self._authorization)


def _matches(exception: str, host: str, port: int) -> bool:
    """Whether one word of ``NO_PROXY`` means this server: ``*``, an address or network, or a domain and what is below
    it, each with a port or without.
    """
    host = host.lower().rstrip(".")
    if exception == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(exception.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, number = exception.rpartition(":")
    if colon and number.isdigit():
        return int(number) == port and _matches(name, host, port)
    domain = exception.removeprefix("*").lstrip(".").rstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))
