"""``edge-packager completion``: a script that completes commands and options on a shell's command line."""

from __future__ import annotations

import argparse

from contract.system.command_line import build_parser

EXAMPLES = """examples:
  edge-packager completion bash > ~/.local/share/bash-completion/completions/edge-packager
  edge-packager completion zsh > ~/.zfunc/_edge-packager          # a directory of $fpath
  edge-packager completion fish > ~/.config/fish/completions/edge-packager.fish

exit status: 0 done, 2 a shell that is not known
"""

SHELLS = ("bash", "fish", "tcsh", "zsh")
"""Those that shtab writes scripts for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    import shtab

    from packager.cli import COMMANDS, DESCRIPTION

    parser, _, _ = build_parser("edge-packager", DESCRIPTION, COMMANDS, COMMANDS)
    print(shtab.complete(parser, arguments.shell))
    return 0
