"""A tokenizer made from JSON: like real ones, it has tokens that end a text and begin the next. And who speaks it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from agent.engine.grammar import Constraint, Grammars

END = 0
LONGEST = 24
"""Bytes of a token, at most."""

Choice = Callable[[np.ndarray, random.Random], int]


class JsonVocabulary:
    def __init__(self, directory: Path) -> None:
        draw = random.Random(1)
        made = {
            "names": [draw.choice(["ab", "cd", "x"]) * draw.randint(1, 9) for _ in range(300)],
            "rows": [{"a": number, "b": [number, [number]], "c": "d, e]"} for number in range(300)],
            "deep": json.loads("[" * 40 + "]" * 40),
        }
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<end>"],
            max_token_length=LONGEST,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = [json.dumps(made, separators=separators) for separators in ((",", ":"), (", ", ": "))]
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(directory / "tokenizer.json"))
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.grammars = Grammars(directory, self.size, (END,))
        texts = [tokenizer.decode([token], skip_special_tokens=False) for token in range(self.size)]
        self.ends = np.array([not set(text).isdisjoint('"]}') or text == "<end>" for text in texts])
        assert sum('","' in text or "},{" in text or "]]" in text for text in texts) > 5

    def hold(self, schema: Any) -> Constraint:
        return self.grammars.constraint(("json_schema", json.dumps(schema)))

    def say(self, constraint: Constraint, choose: Choice, seed: int = 0, most: int = 40_000) -> str:
        """The answer of a model that chooses so."""
        draw, tokens = random.Random(seed), list[int]()
        while not constraint.complete:
            token = choose(constraint.mask(), draw)
            if token == END:
                break
            tokens.append(token)
            constraint.accept(token)
            assert len(tokens) < most, "it goes on: " + self.tokenizer.decode(tokens)[-200:]
        return self.tokenizer.decode(tokens)

    def anything(self, allowed: np.ndarray, draw: random.Random) -> int:
        return int(draw.choice(np.flatnonzero(allowed)))

    def in_a_rut(self, allowed: np.ndarray, draw: random.Random) -> int:
        """Never ends anything while something else may follow; else the same, over and over."""
        left = np.flatnonzero(allowed & ~self.ends)
        if not len(left):
            left = np.flatnonzero(allowed)
            # One that goes on behind what it ends, rather.
            left = sorted(left, key=lambda token: bool(self.tokenizer.decode([int(token)])[-1:] in (*'"]}', "")))
        return int(left[0]) if draw.random() < 0.9 else int(draw.choice(left))
