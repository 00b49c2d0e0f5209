"""How one source is reached: by which proxy, trusting which authorities, and as whom.

Secrets stand in files of their own, are read when the source is opened, and appear in no message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from msgspec import Meta, Struct

from contract.errors import ConfigInvalid, SourceUnavailable
from contract.source.proxy import DIRECT, Proxies, is_loopback, parse_proxy

if TYPE_CHECKING:
    # Costs memory that a device reading from a stick has no use for.
    import ssl

MAX_SECRET_BYTES = 8192
"""Tokens of identity providers have up to some thousand characters; servers take header lines of 8 kB."""

FileName = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
_TOKEN = re.compile(r"[!-~]+")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]+")


class SourceSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``[sources.NAME]``: a repository behind HTTP(S), where more is to be said of it than its URL. Secrets go to other
    machines over TLS only, unless ``allow_plaintext`` is true.
    """

    url: Annotated[str, Meta(description="http(s) URL of the repository's folder")]
    proxy: Annotated[
        str | None,
        Meta(
            description="`http://HOST:PORT`, or `direct`; left out: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and "
            "`NO_PROXY` of the environment"
        ),
    ] = None
    ca: Annotated[FileName | None, Meta(description="authorities (PEM) to trust instead of the system's")] = None
    cert: Annotated[FileName | None, Meta(description="this device's certificate (PEM)")] = None
    key: Annotated[FileName | None, Meta(description="the key of `cert`, where it is not in the same file")] = None
    token_file: Annotated[FileName | None, Meta(description="file that holds a bearer token")] = None
    username: Annotated[str | None, Meta(description="for basic authentication, with `password_file`")] = None
    password_file: Annotated[FileName | None, Meta(description="file that holds the password")] = None
    proxy_username: Annotated[
        str | None, Meta(description="for basic authentication at the proxy, with `proxy_password_file`")
    ] = None
    proxy_password_file: Annotated[FileName | None, Meta(description="file that holds the proxy's password")] = None
    allow_plaintext: Annotated[bool, Meta(description="allow credentials over http:// to another machine")] = False


FILES = ("ca", "cert", "key", "token_file", "password_file", "proxy_password_file")
"""Fields that name files."""

Source = str | SourceSettings
"""Where a repository is: a directory, an ``.edgebundle`` file or a URL, or a URL with settings."""


def location_of(source: Source) -> str:
    """The path or URL; it may hold credentials, so it is not for messages."""
    return source if isinstance(source, str) else source.url


def source_faults(source: Source) -> Iterator[ConfigInvalid]:
    """What is wrong with it, as far as can be seen without asking anybody; ``field`` is the key, if there is one."""
    url = location_of(source)
    if not isinstance(source, SourceSettings):
        yield from _url_faults(url)
        return
    for fault in _url_faults(url) if "://" in url else [ConfigInvalid("a source with settings needs an http(s) URL")]:
        yield ConfigInvalid(fault.message, field="url")
    yield from _pairs(source)
    if source.proxy is not None and source.proxy != DIRECT:
        try:
            if parse_proxy(source.proxy).authorization is not None:
                yield ConfigInvalid(
                    "put the proxy's credentials into proxy_username and proxy_password_file", field="proxy"
                )
        except ValueError as error:
            yield ConfigInvalid(str(error), field="proxy")
    for read in (Access.of, own_tls):
        try:
            read(source)
        except ConfigInvalid as error:
            yield error
            return


def _pairs(source: SourceSettings) -> Iterator[ConfigInvalid]:
    for one, other in (("cert", "key"), ("username", "password_file"), ("proxy_username", "proxy_password_file")):
        for given, missing in ((one, other), (other, one)):
            if getattr(source, given) is not None and getattr(source, missing) is None and missing != "key":
                yield ConfigInvalid(f"{given} needs {missing}", field=missing)
    named = "@" in urlsplit(source.url).netloc if "://" in source.url else False
    if (source.token_file is not None) + (source.username is not None) + named > 1:
        yield ConfigInvalid("give credentials one way: token_file, or username and password_file", field="token_file")
    secret = source.token_file is not None or source.username is not None
    if secret and source.url.startswith("http:") and not source.allow_plaintext and not _is_loopback(source.url):
        yield ConfigInvalid(
            "without TLS everybody on the way can read the credentials: give an https URL, or allow_plaintext = true",
            field="url",
        )


def _is_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _url_faults(url: str) -> Iterator[ConfigInvalid]:
    if "://" not in url:
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        yield ConfigInvalid("this is not a URL: give http(s)://HOST/PATH, a directory or an .edgebundle file")
        return
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield ConfigInvalid(
            f"{parts.scheme}:// is not a kind of source: give an http(s) URL, a directory or an .edgebundle file"
        )
    elif parts.query:
        yield ConfigInvalid(
            "a URL with a query, such as a presigned one, opens a single file, and a repository is many files: give "
            "the URL of the folder with a token_file or username, or download an .edgebundle file with it"
        )


class Access:
    """The secrets of one source, read.

    Raises:
        ConfigInvalid: ``field`` names the setting; never with what is in a file.
    """

    def __init__(self, authorization: str | None, proxies: Proxies) -> None:
        self.authorization = authorization
        self.proxies = proxies

    @classmethod
    def of(cls, source: Source) -> Access:
        """What ``source`` says, and the environment where it says nothing."""
        if isinstance(source, str):
            return cls(_userinfo(source), Proxies.from_environment())
        authorization = _userinfo(source.url)
        if source.token_file is not None:
            authorization = "Bearer " + read_secret(source.token_file, "token_file", _TOKEN)
        elif source.username is not None and source.password_file is not None:
            authorization = _basic(source.username, read_secret(source.password_file, "password_file", _TEXT))
        own = None
        if source.proxy_username is not None and source.proxy_password_file is not None:
            secret = read_secret(source.proxy_password_file, "proxy_password_file", _TEXT)
            own = _basic(source.proxy_username, secret)
        if source.proxy is None:
            return cls(authorization, Proxies.from_environment().with_authorization(own))
        if source.proxy == DIRECT:
            return cls(authorization, Proxies())
        try:
            proxy = parse_proxy(source.proxy)
        except ValueError as error:
            raise ConfigInvalid(str(error), field="proxy") from None
        return cls(authorization, Proxies(always=proxy).with_authorization(own))


def read_secret(path: str, key: str, shape: re.Pattern[str]) -> str:
    """The secret in a file, without the end of its line.

    Raises:
        ConfigInvalid: ``field`` is ``key``; never with what is in the file.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 2)
    except OSError as error:
        raise ConfigInvalid(f"{key} {path} cannot be read: {error.strerror}", field=key) from error
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{key} {path} is not UTF-8 text", field=key) from None
    if len(data) > MAX_SECRET_BYTES or shape.fullmatch(text) is None:
        what = "of visible ASCII characters" if shape is _TOKEN else "without control characters"
        raise ConfigInvalid(f"{key} {path} holds no secret {what}, of 1 to {MAX_SECRET_BYTES} bytes", field=key)
    return text


def own_tls(source: SourceSettings) -> ssl.SSLContext:
    """For the source's own server: its authorities, and who we are.

    Raises:
        ConfigInvalid: a file cannot be read or is not what it should be.
    """
    import ssl

    context = _ssl_context(source.ca, only=True)
    if source.cert is not None:
        try:
            # Never asks on a terminal for the passphrase of an encrypted key.
            context.load_cert_chain(source.cert, source.key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(
                f"cert {source.cert} and its key cannot be used: {_why(error)}", field="cert"
            ) from error
    return context


def other_tls(source: Source) -> ssl.SSLContext:
    """For servers that it redirects to: they learn nothing of who we are, and may have a certificate of anybody's."""
    return _ssl_context(None if isinstance(source, str) else source.ca, only=False)


def _ssl_context(ca: str | None, *, only: bool) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca if only else None)
        if ca is not None and not only:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"ca {ca} cannot be used: {_why(error)}", field="ca") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _why(error: OSError) -> str:
    # Of an SSLError, which is an OSError, the reason.
    if hasattr(error, "reason"):
        return str(error.reason or "not a PEM file of that kind")
    return error.strerror or "it cannot be read"


def _userinfo(url: str) -> str | None:
    if "://" not in url:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SourceUnavailable("the address of the source is not a URL") from None
    if parts.username is None:
        return None
    return _basic(unquote(parts.username), unquote(parts.password or ""))


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
