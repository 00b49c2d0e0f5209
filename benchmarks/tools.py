"""How often the right function is called, by a bundle and by the source that it was made of, and how often validly.

    python benchmarks/tools.py BUNDLE [--source CHECKPOINT] [--schemas N] [--engine NAME]

BUNDLE answers as devices do: greedily, held to the functions' schemas, ``tool_choice: required``. CHECKPOINT (a Hugging
Face directory; the build cache keeps the one of a GGUF file) answers in fp32 with transformers, from the same prompt,
held to nothing, after the text with which every call of its family begins. ``--schemas`` has so many functions
called at temperature 1 and says how many of the arguments are valid.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

ARGUMENT_TOKENS = 120
NAME_TOKENS = 12


def _function(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT = {"type": "string", "maxLength": 40}

TOOLS = [
    _function("get_weather", "Tells the weather of a city.", city=TEXT),
    _function("set_light", "Turns the light of a room on or off.", room=TEXT, on={"type": "boolean"}),
    _function("read_sensor", "Reads the temperature of a room.", room=TEXT),
    _function("set_timer", "Starts a timer.", minutes={"type": "integer", "minimum": 1, "maximum": 600}),
    _function("send_message", "Sends a message to a person.", to=TEXT, message=TEXT),
    _function("play_music", "Plays music of an artist.", artist=TEXT),
]

CASES = [
    ("What is the weather in Lisbon?", "get_weather"),
    ("Will I need an umbrella in Bergen today?", "get_weather"),
    ("Is it snowing in Oslo?", "get_weather"),
    ("Tell me the weather for Madrid, please.", "get_weather"),
    ("Switch on the lamp in the kitchen.", "set_light"),
    ("Turn off the lights in the bedroom.", "set_light"),
    ("Make it dark in the hall.", "set_light"),
    ("Please light up the garage.", "set_light"),
    ("How warm is it in the cellar?", "read_sensor"),
    ("What is the temperature in the attic?", "read_sensor"),
    ("Is the bathroom cold?", "read_sensor"),
    ("Read the thermometer of the living room.", "read_sensor"),
    ("Remind me in ten minutes.", "set_timer"),
    ("Set a timer for half an hour.", "set_timer"),
    ("Count down 5 minutes for my eggs.", "set_timer"),
    ("Start a timer of 90 minutes.", "set_timer"),
    ("Tell Anna that I am late.", "send_message"),
    ("Send Bob a message: dinner is ready.", "send_message"),
    ("Write to my mother that I arrived.", "send_message"),
    ("Let Carla know that the meeting moved to three.", "send_message"),
    ("Play something by Miles Davis.", "play_music"),
    ("I want to hear the Beatles.", "play_music"),
    ("Put on some Mozart.", "play_music"),
    ("Play a song by Nina Simone.", "play_music"),
]


def ask_bundle(
    engine: Any, tools: list[dict[str, Any]], question: str, tokens: int, **more: Any
) -> tuple[str, str, str]:
    """Name, arguments and reason of the one call."""
    from agent.engine.interface import Generation, Tools

    messages = [{"role": "user", "content": question}]
    held = Tools(tools, "required", parallel=False)
    engine.admit(Generation(1, "bench", messages=messages, tools=held, max_tokens=tokens, **more))
    events: list[Any] = []
    while engine.busy:
        events.extend(engine.step())
    deltas = [delta for event in events for delta in getattr(event, "calls", [])]
    reason = getattr(events[-1], "reason", getattr(events[-1], "message", ""))
    return "".join(delta.name for delta in deltas), "".join(delta.arguments for delta in deltas), reason


def source_names(checkpoint: Path) -> list[str]:
    """What the source calls in every case, in fp32. All prompts have their beginning in common, which is read once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agent.engine.tools.forms import find_form

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    form = find_form(tokenizer.chat_template)
    begin = form.begin + form.lead + form.before_name
    prompts = [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tools=TOOLS, tokenize=False, add_generation_prompt=True
            )
            + begin,
            return_tensors="pt",
            add_special_tokens=False,
        )["input_ids"]
        for question, _ in CASES
    ]
    columns = zip(*(prompt[0].tolist() for prompt in prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    names = []
    with torch.inference_mode():
        cache = model(prompts[0][:, :shared], use_cache=True).past_key_values
        for prompt in prompts:
            state, ids, text = copy.deepcopy(cache), prompt[:, shared:], ""
            for _ in range(NAME_TOKENS):
                found = model(ids, past_key_values=state, use_cache=True)
                state, ids = found.past_key_values, found.logits[:, -1:].argmax(-1)
                text += tokenizer.decode(ids[0])
                if form.after_name[0] in text:
                    break
            names.append(text.partition(form.after_name[0])[0])
    return names


def _count(label: str, names: list[str]) -> int:
    right = sum(name == expected for name, (_, expected) in zip(names, CASES, strict=True))
    print(f"{label}: {right} of {len(CASES)} right")
    for name, (question, expected) in zip(names, CASES, strict=True):
        if name != expected:
            print(f"    {question!r}: {name or 'nothing'}, not {expected}")
    return right


def _measure_schemas(engine: Any, count: int, make: Callable[[int], tuple[dict[str, Any], Any]]) -> None:
    valid = cut = 0
    for seed in range(count):
        tool, judge = make(seed)
        _, arguments, reason = ask_bundle(engine, [tool], "Call it.", ARGUMENT_TOKENS * 4, temperature=1.0, seed=seed)
        if reason == "length":
            cut += 1
        elif reason == "tool_calls" and judge(json.loads(arguments)):
            valid += 1
        else:
            print(f"    schema {seed}: {reason}: {arguments!r}")
    print(f"generated schemas: {valid} of {count - cut} calls valid, {cut} cut off by the token limit")


def main() -> None:
    """Print the figures."""
    from agent.engine.engine_selection import open_engine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--schemas", type=int, default=0)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    engine = open_engine(arguments.bundle, engine=arguments.engine, threads=arguments.threads)
    started = time.monotonic()
    answers = [ask_bundle(engine, TOOLS, question, ARGUMENT_TOKENS) for question, _ in CASES]
    whole = [json.loads(made) for _, made, reason in answers if reason == "tool_calls"]
    seconds = time.monotonic() - started
    print(f"{len(whole)} of {len(answers)} calls whole and valid JSON, {seconds / len(answers):.1f} s each")
    right = _count("the bundle", [name for name, _, _ in answers])
    if arguments.schemas:
        from tests.agent.engine.tools.generated import make_function

        _measure_schemas(engine, arguments.schemas, make_function)
    engine.release()
    if arguments.source is not None:
        of_source = _count("the source", source_names(arguments.source))
        print(f"as often as the source: {right} / {of_source} = {right / max(1, of_source):.2f}")


if __name__ == "__main__":
    main()
