"""A bundle's signed defaults: they hold where the request says nothing, and only there."""

from __future__ import annotations

import pytest

from agent.engine.interface import Generation
from agent.serving.requests import to_generation
from contract.bundle.manifest import Behaviour, GenerationDefaults
from contract.mqtt.reading import parse_request

SIGNED = Behaviour(
    system_prompt="Answer in one sentence.",
    generation=GenerationDefaults(
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        min_p=0.05,
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        max_tokens=64,
        stop=["END"],
    ),
)


def generation(body: str, behaviour: Behaviour | None = SIGNED) -> Generation:
    _, request = parse_request(body.encode())
    return to_generation(1, "client", request, None, behaviour)


def test_what_a_request_leaves_open_is_the_bundles() -> None:
    made = generation('{"id":"a","messages":[{"role":"user","content":"Hi"}]}')
    assert made.messages == [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "Hi"},
    ]
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.7, 0.8, 20, 0.05)
    assert (made.repetition_penalty, made.no_repeat_ngram_size, made.max_tokens, made.stops) == (1.1, 3, 64, ("END",))


@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("temperature", "0", "temperature", 0),
        ("top_p", "1", "top_p", 1),
        ("top_k", "0", "top_k", 0),
        ("min_p", "0", "min_p", 0),
        ("repetition_penalty", "1", "repetition_penalty", 1),
        ("no_repeat_ngram_size", "0", "no_repeat_ngram_size", 0),
        ("max_tokens", "500", "max_tokens", 500),
        ("stop", "[]", "stops", ()),
        ("stop", '"x"', "stops", ("x",)),
    ],
)
def test_what_a_request_says_wins_also_when_it_is_the_usual_default(
    field: str, value: str, name: str, expected: object
) -> None:
    made = generation(f'{{"id":"a","prompt":"Hi","{field}":{value}}}')
    assert getattr(made, name) == expected


def test_a_system_message_of_the_request_takes_the_place_of_the_bundles() -> None:
    made = generation('{"id":"a","messages":[{"role":"system","content":"Rhyme."},{"role":"user","content":"Hi"}]}')
    assert made.messages is not None
    assert [turn["content"] for turn in made.messages] == ["Rhyme.", "Hi"]


def test_a_prompt_is_taken_as_it_is() -> None:
    made = generation('{"id":"a","prompt":"Hi"}')
    assert (made.messages, made.prompt) == (None, "Hi")


def test_beam_search_stays_greedy() -> None:
    assert generation('{"id":"a","prompt":"Hi","num_beams":2}').temperature == 0.0


def test_without_a_behaviour_everything_is_off() -> None:
    made = generation('{"id":"a","messages":[{"role":"user","content":"Hi"}]}', None)
    plain = Generation(request=1, client="client", messages=[{"role": "user", "content": "Hi"}])
    assert made == plain
