"""Whatever a model says, the arguments of its calls are valid. A model that chooses at random tries hardest.

``benchmarks.tools`` does the same with a real one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from agent.engine.grammar import Constraint
from agent.engine.interface import Tools
from agent.engine.tools.answer_reader import AnswerReader
from agent.engine.tools.forms import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_ARGUMENTS, PHI, CallForm
from tests.agent.engine.tools.generated import make_function
from tests.agent.engine.tools.test_call_grammar import Speaker

SCHEMAS = 300
MOST_TOKENS = 4000


@pytest.fixture(scope="module")
def speaker(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    return Speaker(tmp_path_factory.mktemp("random"), tokenizer, marked=True)


def babble(constraint: Constraint, speaker: Speaker, draw: random.Random) -> str:
    """An answer of a model that knows nothing: any token that may follow; the end as soon as it may come."""
    tokens: list[int] = []
    while len(tokens) < MOST_TOKENS:
        allowed = constraint.mask()
        if constraint.complete or allowed[2]:
            return speaker.tokenizer.decode(tokens, skip_special_tokens=False)
        token = int(draw.choice(np.flatnonzero(allowed)))
        constraint.accept(token)
        tokens.append(token)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("form", [HERMES, MISTRAL, MISTRAL_ARGUMENTS, LLAMA, PHI, GENERIC], ids=lambda form: form.name)
def test_arguments_are_always_valid(speaker: Speaker, form: CallForm) -> None:
    for seed in range(0, SCHEMAS, 2):
        made = [make_function(seed), make_function(seed + 1)]
        judges = {tool["function"]["name"]: judge for tool, judge in made}
        tools = Tools([tool for tool, _ in made], "required")
        draw = random.Random(seed)
        text = babble(speaker.begin(form, tools), speaker, draw)
        reader = AnswerReader(None, form, names=judges)
        parts = [*(reader.feed(char) for char in text), reader.finish()]
        names = [delta.name for part in parts for delta in part.calls if delta.name]
        arguments = "".join(delta.arguments for part in parts for delta in part.calls if not delta.index)
        assert len(names) == reader.calls >= 1, text
        assert judges[names[0]](json.loads(arguments)), text
        assert not any(part.text for part in parts), text
