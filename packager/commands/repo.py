"""``edge-packager repo``: keys and the signed repository."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from contract.bundle.layout import ROLES
from contract.errors import UsageError
from contract.identifiers import parse_reference
from contract.source.access import Source, SourceSettings, source_faults
from contract.source.opening import open_source
from contract.trust.signing import SigningKey
from packager.publish import Outcome, Repository, report
from packager.publish.keyring import KeyRing, read_public_key

PASSPHRASE_VARIABLE = "EDGE_REPO_PASSPHRASE"  # noqa: S105 - the name of a variable, not a passphrase

_SOURCE_OPTIONS = ("proxy", "ca", "cert", "key", "token_file", "username", "password_file")

_EXAMPLES = """\
examples:
  edge-packager repo init --repo repository --keys keys
  edge-packager repo publish build/assistant-1.0.0 --repo repository --keys keys
  edge-packager repo export assistant@1.0.0 --repo repository --out assistant.edgebundle
  edge-packager repo show --repo repository
  edge-packager repo refresh --repo repository --keys online-keys      # every day, from cron

two people must agree (each keeps a key; the second signs in turn):
  edge-packager repo keygen targets --keys bob-keys                     # on Bob's machine; send the .pub
  edge-packager repo init --targets-threshold 2 --public-key targets=bob.pub --repo repository --keys keys
  edge-packager repo sign --repo repository --keys bob-keys             # on Bob's machine

The passphrase of the keys is taken from --passphrase-file, else from EDGE_REPO_PASSPHRASE, else asked for.
Exit status: 0 done · 2 usage · 3 refused · 4 source unavailable · 5 disk full, broken, or another publisher at work."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The sub-commands and their options."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(
        name: str, run: Callable[[argparse.Namespace], int], help_line: str, *, keys: bool
    ) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help_line, description=help_line)
        sub.set_defaults(run=run)
        sub.add_argument("--repo", type=Path, default=Path("repository"), metavar="DIR", help="default: ./repository")
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        if keys:
            sub.add_argument("--keys", type=Path, default=Path("keys"), metavar="DIR", help="default: ./keys")
            sub.add_argument("--passphrase-file", type=Path, metavar="FILE")
            sub.add_argument(
                "--clock-is-right", action="store_true", help="sign although this machine's clock looks wrong"
            )
            sub.add_argument("--unencrypted", action="store_true", help="write new keys unencrypted (tests, demos)")
        return sub

    made = action("init", _init, "make keys and an empty, signed repository", keys=True)
    for role in ("root", "targets"):
        made.add_argument(f"--{role}-keys", type=int, default=1, metavar="N", help=f"{role} keys to make here (1)")
        made.add_argument(f"--{role}-threshold", type=int, default=1, metavar="M", help="how many must sign (1)")
    made.add_argument(
        "--public-key", action="append", default=[], metavar="ROLE=FILE", help="a key that lies elsewhere; repeatable"
    )
    made = action("keygen", _keygen, "make a key on the machine where it will stay", keys=True)
    made.add_argument("role", choices=ROLES)
    made = action("publish", _publish, "publish a bundle directory", keys=True)
    made.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    made = action("revoke", _revoke, "take a bundle off the list for ever", keys=True)
    made.add_argument("reference", metavar="NAME@VERSION")
    made = action("rotate", _rotate, "replace the keys of a role", keys=True)
    made.add_argument("role", choices=ROLES)
    made.add_argument("--new-keys", type=int, metavar="N", help="keys to make here (as many as before)")
    made.add_argument("--threshold", type=int, metavar="M", help="how many must sign (as before)")
    made.add_argument("--public-key", action="append", default=[], type=Path, metavar="FILE", help="repeatable")
    made = action("renew", _renew, "sign root or targets again with a later expiry", keys=True)
    made.add_argument("role", choices=("root", "targets"))
    action("sign", _sign, "add the signatures of the keys at hand to a waiting change", keys=True)
    action("discard", _discard, "throw a waiting change away", keys=False)
    action("refresh", _refresh, "sign snapshot and timestamp again, for a cron job", keys=True)
    made = action("export", _export, "write one bundle to an .edgebundle file", keys=False)
    made.add_argument("reference", metavar="NAME@VERSION")
    made.add_argument("--out", type=Path, metavar="FILE", help="default: NAME-VERSION.edgebundle")
    made = action("import", _import, "take an .edgebundle file or another repository into this mirror", keys=False)
    made.add_argument("source", metavar="FILE|DIR|URL")
    made.add_argument("--root", type=Path, metavar="ROOT_JSON", help="what an empty mirror shall trust")
    made.add_argument("--proxy", metavar="URL", help="http://HOST:PORT, or direct (default: the environment's)")
    made.add_argument("--ca", metavar="PEM", help="authorities that may sign the server's certificate")
    made.add_argument("--cert", metavar="PEM", help="our own certificate")
    made.add_argument("--key", metavar="PEM", help="the key of --cert")
    made.add_argument("--token-file", metavar="FILE", help="a bearer token for the server")
    made.add_argument("--username", metavar="U", help="for the server, with --password-file")
    made.add_argument("--password-file", metavar="FILE")
    action("show", _show, "who signed what, and what expires when", keys=False)
    action("verify", _verify, "check everything that a device would check", keys=False)


def run(arguments: argparse.Namespace) -> int:
    """Do it; the exit status."""
    return int(arguments.run(arguments))


def _passphrase(arguments: argparse.Namespace, *, new: bool = False) -> Callable[[], str] | None:
    if arguments.unencrypted:
        return None

    def ask() -> str:
        if arguments.passphrase_file is not None:
            try:
                return str(arguments.passphrase_file.read_text("utf-8").rstrip("\r\n"))
            except (OSError, ValueError) as error:
                raise UsageError(f"{arguments.passphrase_file} cannot be read: {error}") from error
        if PASSPHRASE_VARIABLE in os.environ:
            return os.environ[PASSPHRASE_VARIABLE]
        if not sys.stdin.isatty():
            raise UsageError(
                f"the keys need a passphrase: set {PASSPHRASE_VARIABLE}, give --passphrase-file, or --unencrypted"
            )
        first = getpass.getpass("Passphrase of the keys: ")
        if new and getpass.getpass("Once more: ") != first:
            raise UsageError("the two passphrases differ")
        return first

    return ask


def _open(arguments: argparse.Namespace, *, new: bool = False) -> Repository:
    ring = KeyRing(arguments.keys, _passphrase(arguments, new=new))
    return Repository(arguments.repo, ring, clock_is_right=arguments.clock_is_right)


def _without_keys(arguments: argparse.Namespace) -> Repository:
    return Repository(arguments.repo, KeyRing(arguments.repo / "no-keys", None))


@contextmanager
def _counted(arguments: argparse.Namespace, doing: str) -> Iterator[Callable[[int], None]]:
    """What to tell of bytes that are done: a count that goes on, where somebody looks at a terminal."""
    if arguments.json or not sys.stderr.isatty():
        yield lambda count: None
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn(),
        console=Console(file=sys.stderr), transient=True,
    ) as bars:  # fmt: skip
        task = bars.add_task(doing, total=None)
        yield lambda count: bars.advance(task, count)


def _print_sentence(arguments: argparse.Namespace, sentence: str, **fields: object) -> int:
    print(msgspec.json.encode(fields).decode() if arguments.json else sentence)
    return 0


def _print_outcome(arguments: argparse.Namespace, outcome: Outcome, done: str) -> int:
    waiting = f"waiting for {', '.join(outcome.pending)}; run `edge-packager repo sign` where those keys are"
    return _print_sentence(
        arguments, done if outcome.published else waiting, published=outcome.published, pending=outcome.pending
    )


def _init(arguments: argparse.Namespace) -> int:
    others: dict[str, list[str]] = {}
    for text in arguments.public_key:
        role, equals, file = text.partition("=")
        if not equals or role not in ROLES:
            raise UsageError(f"{text!r} is not ROLE=FILE with one of the roles {', '.join(ROLES)}")
        others.setdefault(role, []).append(read_public_key(Path(file)))
    outcome = _open(arguments, new=True).create(
        {"root": arguments.root_keys, "targets": arguments.targets_keys, "snapshot": 1, "timestamp": 1},
        {"root": arguments.root_threshold, "targets": arguments.targets_threshold, "snapshot": 1, "timestamp": 1},
        others,
    )
    root = arguments.repo / "metadata" / "1.root.json"
    return _print_outcome(
        arguments, outcome, f"made {arguments.repo}; provision devices with {root}, keep {arguments.keys} safe"
    )


def _keygen(arguments: argparse.Namespace) -> int:
    key: SigningKey = KeyRing(arguments.keys, _passphrase(arguments, new=True)).generate(arguments.role)
    return _print_sentence(
        arguments, f"made a {arguments.role} key in {arguments.keys}; its .pub goes to whoever runs `repo init`",
        keyid=key.keyid, public=key.public,
    )  # fmt: skip


def _publish(arguments: argparse.Namespace) -> int:
    with _counted(arguments, "publishing") as on_bytes:
        outcome = _open(arguments).publish(arguments.bundle, on_bytes)
    return _print_outcome(arguments, outcome, f"published {arguments.bundle} in {arguments.repo}")


def _revoke(arguments: argparse.Namespace) -> int:
    parse_reference(arguments.reference)
    return _print_outcome(arguments, _open(arguments).revoke(arguments.reference), f"revoked {arguments.reference}")


def _rotate(arguments: argparse.Namespace) -> int:
    outcome = _open(arguments, new=True).rotate(
        arguments.role,
        keys=arguments.new_keys,
        threshold=arguments.threshold,
        others=[read_public_key(path) for path in arguments.public_key],
    )
    return _print_outcome(arguments, outcome, f"{arguments.role} has new keys; the old ones count for nothing any more")


def _renew(arguments: argparse.Namespace) -> int:
    repository = _open(arguments)
    outcome = repository.renew_root() if arguments.role == "root" else repository.renew_targets()
    return _print_outcome(arguments, outcome, f"{arguments.role} is signed again")


def _sign(arguments: argparse.Namespace) -> int:
    return _print_outcome(arguments, _open(arguments).sign(), "signed and published")


def _discard(arguments: argparse.Namespace) -> int:
    _without_keys(arguments).discard()
    return _print_sentence(arguments, "nothing waits any more", discarded=True)


def _refresh(arguments: argparse.Namespace) -> int:
    return _print_outcome(arguments, _open(arguments).refresh(), "snapshot and timestamp are signed again")


def _export(arguments: argparse.Namespace) -> int:
    name, version = parse_reference(arguments.reference)
    out = arguments.out or Path(f"{name}-{version}.edgebundle")
    with _counted(arguments, "writing") as on_bytes:
        manifest = _without_keys(arguments).export(name, version, out, on_bytes)
    return _print_sentence(arguments, f"wrote {out} ({manifest.total_bytes / 1e6:.1f} MB of files)", file=str(out))


def _import(arguments: argparse.Namespace) -> int:
    root = arguments.root.read_bytes() if arguments.root is not None and arguments.root.is_file() else None
    if arguments.root is not None and root is None:
        raise UsageError(f"{arguments.root} is not a file")
    source = open_source(_source(arguments))
    try:
        with _counted(arguments, "receiving") as on_bytes:
            received = _without_keys(arguments).receive(source, root, on_bytes)
    finally:
        source.close()
    return _print_sentence(
        arguments, f"received {', '.join(received) or 'no bundle, only metadata'}", received=received
    )


def _source(arguments: argparse.Namespace) -> Source:
    """Where to receive from, and as whom.

    Raises:
        UsageError: the options do not go together, or a file cannot be read.
    """
    given = {name: getattr(arguments, name) for name in _SOURCE_OPTIONS if getattr(arguments, name) is not None}
    source = SourceSettings(arguments.source, **given) if given else arguments.source
    for fault in source_faults(source):
        raise UsageError(fault.message)
    return source


def _show(arguments: argparse.Namespace) -> int:
    found = report.show(arguments.repo)
    if arguments.json:
        print(msgspec.json.encode(found).decode())
        return 0
    now = datetime.now(UTC)
    print(f"{'role':<10} {'version':>7}  {'expires':<17} {'left':>9}  signed by")
    for role in found.roles:
        signers = ", ".join(keyid[:12] for keyid in role.signed_by if keyid in role.keys)
        needed = f"{signers} ({role.threshold} of {len(role.keys)} must sign)"
        left = f"{(role.expires - now).days:>4} days"
        print(f"{role.role:<10} {role.version:>7}  {role.expires:%Y-%m-%d %H:%M}  {left}  {needed}")
    for bundle in found.bundles:
        print(f"bundle     {bundle.reference}  {bundle.digest}")
    for reference in found.revoked:
        print(f"revoked    {reference}")
    for name, count in found.waiting.items():
        print(f"waiting    {name} needs {count} more signature(s)")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    with _counted(arguments, "verifying") as on_bytes:
        count = report.verify(arguments.repo, lambda: datetime.now(UTC), on_bytes)
    return _print_sentence(
        arguments, f"{arguments.repo} holds: {count} bundle(s), every signature and every byte", bundles=count
    )
