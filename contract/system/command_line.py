"""How both commands end: exit statuses, errors in one sentence, ``--json`` errors for scripts.

Exit statuses: 0 done · 1 our fault · 2 the command line or a request · 3 refused (bundle, source or build) ·
4 source or broker unavailable, worth a retry · 5 disk full or broken · 6 the runtime failed · 78 configuration ·
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.metadata
import json
import os
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, cast

from contract.errors import ConfigInvalid, EdgeBundleError

EXIT_INTERRUPTED = 130

EXIT_STATUSES = """exit status: 0 done, 2 the command line, 3 refused, 4 source or broker unavailable (worth a retry),
5 disk full or broken, 6 the runtime failed, 78 the configuration, 130 interrupted
"""
"""Ends the help of every command that does not say it for itself."""


class Command(Protocol):
    """A module that is one sub-command."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add arguments, description and an epilog with examples."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; the exit status."""


def main(program: str, description: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run one of ``commands`` (name -> module, one-line help); only the chosen module is imported.

    Returns the exit status; never lets a traceback out for an :class:`EdgeBundleError`.
    """
    # Importing every command for --help of one would load runtimes that the command does not need.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        parser, subparsers, modules = build_parser(
            program, description, commands, [name for name in commands if name == chosen]
        )
    except ModuleNotFoundError as error:
        return report(program, missing_package(program, error), as_json="--json" in argv)
    try:
        arguments, unknown = parser.parse_known_args(list(argv))
        if unknown:
            subparsers.choices[arguments.command].error(
                _unknown_argument(unknown[0], subparsers.choices[arguments.command])
            )
        status = modules[arguments.command].run(arguments)
        sys.stdout.flush()
        return status
    except EdgeBundleError as error:
        return report(program, error, as_json=getattr(arguments, "json", False))
    except ModuleNotFoundError as error:
        return report(program, missing_package(program, error), as_json=getattr(arguments, "json", False))
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; nobody is there to be told.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_EXTRAS = {"edge-agent": ("agent",), "edge-fleet": ("fleet",), "edge-packager": ("client", "publish", "packager")}
"""What brings a command's packages, the smallest first."""

_DISTRIBUTIONS = {"PIL": "pillow", "google": "protobuf", "paho": "paho-mqtt"}
"""Of modules that are not called like their package."""


def missing_package(program: str, error: ModuleNotFoundError) -> ConfigInvalid:
    """Which extra of this distribution brings the package that ``error`` says is missing.

    Raises:
        ModuleNotFoundError: ``error`` itself, where a module of ours is missing.
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in ("agent", "contract", "edge_bundle", "fleet", "packager"):
        raise error
    package = _DISTRIBUTIONS.get(module, module.replace("_", "-").lower())
    extras = _EXTRAS[program]
    extra = next((each for each in extras if package in _brought_by(each)), extras[-1])
    return ConfigInvalid(
        f"the Python package {package} is missing, which this command needs: pip install 'edge-bundle[{extra}]'"
    )


def _brought_by(extra: str) -> set[str]:
    """Names of the packages that ``extra`` asks for itself."""
    found = set()
    for requirement in importlib.metadata.requires("edge-bundle") or ():
        needed, _, condition = requirement.partition(";")
        if f'extra == "{extra}"' in condition.replace("'", '"'):
            found.add(re.split(r"[\s\[<>=!~(]", needed.strip(), maxsplit=1)[0].replace("_", "-").lower())
    return found


def build_parser(
    program: str, description: str, commands: Mapping[str, tuple[str, str]], configured: Collection[str]
) -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser], dict[str, Command]]:
    """The parser of ``program``, its sub-commands, and the modules of those in ``configured``, which alone have their
    arguments: the others are only named.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    version = importlib.metadata.version("edge-bundle")
    parser.add_argument("--version", action="version", version=f"{program} {version}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules: dict[str, Command] = {}
    for name, (module_name, help_line) in commands.items():
        subparser = subparsers.add_parser(
            name, help=help_line, description=help_line, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in configured:
            modules[name] = cast(Command, importlib.import_module(module_name))
            modules[name].configure(subparser)
            if "exit status" not in (subparser.epilog or "").lower():
                subparser.epilog = f"{subparser.epilog or ''}\n\n{EXIT_STATUSES}".lstrip()
    return parser, subparsers, modules


def _unknown_argument(argument: str, parser: argparse.ArgumentParser) -> str:
    """What is wrong with ``argument``, with the nearest option that there is."""
    if not argument.startswith("-"):
        return f"{argument!r} is one argument too many"
    options = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(argument.partition("=")[0], options, 1, 0.5)
    return f"there is no option {argument.partition('=')[0]}" + (f"; did you mean {near[0]}?" if near else "")


def report(program: str, error: EdgeBundleError, *, as_json: bool) -> int:
    """Print ``error`` as one sentence (and as JSON on stdout when asked for); its exit status."""
    if as_json:
        body = {"message": error.message, "reason": error.reason, "field": error.field}
        print(json.dumps({"error": {key: value for key, value in body.items() if value is not None}}))
    reason = f" [{error.reason}]" if error.reason else ""
    print(f"{program}: {error.message}{reason}", file=sys.stderr)
    if os.environ.get("EDGE_BUNDLE_TRACEBACK") == "1":
        traceback.print_exception(error)
    return error.exit_status
