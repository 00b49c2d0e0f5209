"""``edge-packager completion``: scripts that their shells accept and that know the commands and options."""

from __future__ import annotations

import subprocess

import pytest

from contract.system.command_line import main
from packager.cli import COMMANDS
from packager.commands.completion import SHELLS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("edge-packager", "", COMMANDS, ["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert name in script
    assert "quantizer" in script


def test_bash_completes_an_option_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("edge-packager", "", COMMANDS, ["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = (
        f"{script}\nCOMP_WORDS=(edge-packager build --quant); COMP_CWORD=2; "
        'function=$(complete -p edge-packager | sed -E "s/.*-F ([^ ]+).*/\\1/"); "$function"; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--quantizer"
