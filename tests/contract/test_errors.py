"""What stands in an error's message, wherever it came from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigInvalid, EdgeBundleError, RequestInvalid


@pytest.mark.parametrize("error", [ConfigInvalid, RequestInvalid])
@given(text=st.text())
def test_a_message_is_one_line_that_draws_nothing(error: type[EdgeBundleError], text: str) -> None:
    assert error(f"{text} is not here").message.isprintable()


def test_letters_of_any_script_stay_and_control_characters_are_shown() -> None:
    assert ConfigInvalid("/srv/\x1b[2Jmodèle\n模型 is missing").message == "/srv/\\x1b[2Jmodèle\\n模型 is missing"
