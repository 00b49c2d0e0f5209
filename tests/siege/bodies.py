"""Requests, control messages and desired documents: right ones, and wrong ones next to them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from random import Random
from typing import Any

from contract.mqtt.pictures import picture_digest
from tests.siege import formats
from tests.siege.values import (
    DAMAGE,
    LONG_PROMPTS,
    NUMBERS,
    PROMPTS,
    READABLE,
    REGEXES,
    STRINGS,
    WRONG,
    Pairs,
    Raw,
    bytes_of,
    deep,
    schemas,
    write,
)

PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
        "0000000049454e44ae426082"
    )
).decode()

PICTURES = tuple(base64.b64decode(PNG) + bytes([number]) * 3000 * number for number in range(3))
DIGESTS = tuple(map(picture_digest, PICTURES))
"""Which come in parts, and are named by their digest."""

PARTS = 3

NEAR = (
    "max_token", "maxTokens", "max-tokens", "Prompt", "promt", "ID", "Id", "id ", "temprature", "top_P", "stops",
    "response_fromat", "N", "model_id", "users", "tool", "frequency-penalty", "max_new_tokens", "__class__", "",
    "priority\0", "\ud83d", "x" * 500,
)  # fmt: skip
"""Names of no field, near to one or known from elsewhere."""

RANGES: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 2, 8, 64, 1 << 20, 0, (1 << 20) + 1, -5, 3.0, 2.5, "8"),
    "min_tokens": (0, 1, 5, 600, 1 << 20, -1, (1 << 20) + 1),
    "temperature": (0, 0.7, 1, 2, 2.0001, -0.1, "hot", 1e-320),
    "top_p": (1, 0.5, 1e-9, 0, 1.1, -1, 5e-324),
    "top_k": (0, 1, 40, 1 << 20, (1 << 20) + 1, -1),
    "min_p": (0, 0.1, 1, 1.5, -0.5),
    "seed": (0, 42, 2**53, 2**53 + 1, -1, 2**63 - 1, 2**63),
    "stop": ("a", ["a", "b"], [], "", [""], ["x"] * 16, ["x"] * 17, "s" * 256, "s" * 257, ["\ud83d"], [None], " ",
    ["\n"] * 3),
    "logprobs": (True, False, 1, "true"),
    "top_logprobs": (0, 5, 20, 21, -1),
    "logit_bias": (
        {"5": 100}, {"0": -100, "1": -100, "2": -100}, {str(n): -100 for n in range(448)}, {"999999": 1}, {"-1": 1},
        {"5": 101}, {"x": 1}, {"05": 1}, {"١": 1}, {"99999999": 1}, {"123456789": 1}, {str(n): 1 for n in range(1025)},
        {"5": None}, {"": 0}, {"1e1": 1},
    ),
    "stream": (True, False, "yes", 0),
    "num_beams": (1, 2, 8, 9, 0),
    "repetition_penalty": (1, 0.1, 10, 0, 11, 1.3),
    "no_repeat_ngram_size": (0, 1, 2, 64, 65, -1),
    "adapter": (None, "none", "none@1.0.0", "No", "a" * 65, "", "a@", "../x", "tiny"),
    "priority": (0, 4, 9, 10, -1),
    "deadline_ms": (1, 50, 86_400_000, 86_400_001, 0, -1),
    "supersede_key": ("k", "", "k" * 65, "ä", "k/k"),
    "model": ("tiny", "gpt-4o-mini", "", "m" * 256, "m" * 257, 7, None, "\ud83d"),
    "n": (1, 2, 16, 17, 0, -1, "2", None),
    "max_completion_tokens": (1, 8, 0, 1 << 20, (1 << 20) + 1, None, "8"),
    "presence_penalty": (0, -2, 2, 1.5, 2.1, "high"),
    "frequency_penalty": (0, -2, 2, 0.1, -2.5, [1]),
    "reasoning_effort": ("none", "low", "max", "lots", None, 3),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": None}, {"more": 1}, "usage", []),
    "user": ("u", "u" * 512, "u" * 513, 5, None),
    "metadata": ({}, {"a": "b"}, {"a": 1}, {str(n): "" for n in range(17)}, {"k" * 65: ""}, {"": "v" * 513}, []),
    "safety_identifier": ("s", "s" * 513, None),
    "prompt_cache_key": ("k", "", 1),
    "prompt_cache_retention": ("24h", "in_memory", None, 24),
    "prompt_cache_options": ({}, {"mode": "explicit", "ttl": "30m"}, "implicit"),
    "prediction": ({"type": "content", "content": "x"}, {}, None, "x"),
    "service_tier": ("auto", "flex", "gold", None),
    "store": (False, True, None, "no"),
    "modalities": (["text"], ["text", "audio"], [], ["smell"], "text", None),
    "verbosity": ("medium", "low", "lots", None),
    "audio": (None, {"voice": "alloy", "format": "wav"}, {}, 1),
    "moderation": (None, {"model": "m"}, True),
    "web_search_options": (None, {}, {"search_context_size": "low"}),
    "functions": ([], [{"name": "f"}], None, {}),
    "function_call": ("none", "auto", {"name": "f"}, None, 1),
    "tools": ([], None, [{"type": "function", "function": {"name": "f"}}], [1], {}),
    "tool_choice": ("auto", "none", "required", {"type": "function", "function": {"name": "f"}}, None, 1),
    "parallel_tool_calls": (True, False, None, "yes"),
}  # fmt: skip
"""Every documented field beside id, prompt and messages: values in and out of range."""


@dataclass(frozen=True)
class Body:
    """``findable``: a reader who looks for the id finds it, whatever else is wrong."""

    data: bytes
    findable: bool
    what: str


def hostile(random: Random) -> Any:
    """A value of any kind."""
    return random.choice((random.choice(NUMBERS), random.choice(STRINGS), random.choice(WRONG)))


def prompt(random: Random) -> str:
    return random.choice(PROMPTS if random.random() < 0.95 else LONG_PROMPTS)


def message(random: Random) -> Any:
    """One turn of a chat, mostly right."""
    if random.random() < 0.04:
        return hostile(random)
    content: Any = prompt(random)
    if random.random() < 0.08:
        url = random.choice((
            f"data:image/png;base64,{PNG}", f"data:image/png;base64,{PNG[:-9]}", "data:image/png;base64,",
            "http://127.0.0.1/x.png", "file:///etc/passwd", "data:image/gif;base64,AAAA", "\ud83d",
            *(f"sha256:{digest}" for digest in DIGESTS), "sha256:", f"sha256:{'0' * 64}",
        ))  # fmt: skip
        picture = {"type": "image_url", "image_url": {"url": url}}
        content = random.choice((
            [{"type": "text", "text": content}, picture], [picture] * random.choice((1, 8, 9, 65)), [],
            [{"type": "text", "text": ""}], [{"type": "text"}], [{"type": "sound"}], [{"text": content}], [content],
        ))  # fmt: skip
    role = (
        "user"
        if random.random() < 0.9
        else random.choice(("system", "developer", "assistant", "tool", "boss", "", None, 7, "User"))
    )
    turn = {"role": role, "content": content}
    if random.random() < 0.05:
        turn[random.choice(NEAR)] = hostile(random)
    return turn


def response_format(random: Random) -> Any:
    kinds = (
        "text",
        "json_object",
        "json_schema",
        "json_schema",
        "json_schema",
        "regex",
        "regex",
        "xml",
        hostile(random),
    )
    kind = random.choice(kinds)
    form: dict[str, Any] = {"type": kind}
    if kind == "json_schema" or random.random() < 0.1:
        form["json_schema"] = {"schema": random.choice((random.choice(schemas()), formats.schema(random)))}
    if kind == "regex" or random.random() < 0.1:
        form["regex"] = random.choice((random.choice(REGEXES), formats.regex(random)[:4096]))
    return form


def fields(request_id: str, random: Random) -> Pairs:
    """A request that is mostly right: one to three of its parts may be anything."""
    pairs = Pairs([("id", request_id)])
    if random.random() < 0.5:
        pairs.append(("prompt", prompt(random)))
    else:
        pairs.append(("messages", [message(random) for _ in range(random.choice((1, 1, 1, 2, 3)))]))
    pairs.append(("max_tokens", random.choice((1, 2, 4, 8, 8, 16))))
    for name in random.sample(sorted(RANGES), random.choice((0, 0, 0, 0, 1, 1, 2, 3))):
        value = random.choice(RANGES[name]) if random.random() < 0.9 else hostile(random)
        _put(pairs, name, value)
    if random.random() < 0.15:
        _put(pairs, "response_format", response_format(random))
    return pairs


def _put(pairs: Pairs, name: str, value: Any) -> None:
    pairs[:] = Pairs([*(pair for pair in pairs if pair[0] != name), (name, value)])


def request(request_id: str, random: Random) -> Body:
    """A body that names ``request_id``: right, wrong in a field, or damaged."""
    pairs = fields(request_id, random)
    kind = random.choices(
        ("plain", "unknown field", "key twice", "hostile field", "deep", "readable damage", "damage", "huge", "id"),
        (400, 60, 60, 140, 30, 120, 120, 3, 50),
    )[0]
    what = kind
    findable = True
    if kind == "unknown field":
        pairs.append((random.choice(NEAR), hostile(random)))
    elif kind == "key twice":
        name, value = random.choice(pairs[1:])
        pairs.append((name, value if random.random() < 0.5 else hostile(random)))
    elif kind == "hostile field":
        name = random.choice(("prompt", "messages", "response_format", *RANGES))
        _put(pairs, name, hostile(random))
    elif kind == "deep":
        pairs.append((random.choice(("prompt", "messages", "note")), deep(random.choice((31, 33, 100, 3000, 30_000)))))
    elif kind == "id":
        # Another value where the id should be, or two of them: who is answered is up to the device.
        findable = False
        odd = random.choice((hostile(random), "i" * 65, "ä", "a/b", "+", "#", "a\n", "-", "", request_id + "\n", 7))
        if random.random() < 0.3:
            pairs.append(("id", odd))
        else:
            pairs[0] = ("id", odd)
            if random.random() < 0.3:
                del pairs[0]
    elif kind == "huge":
        size = random.choice(((1 << 20) - 300, (1 << 20) - 40, 1 << 20, (1 << 20) + 1, 3 << 20))
        _put(pairs, "prompt", "y" * size)
    # Of what is too large the beginning is read.
    if kind != "huge" and random.random() < 0.1:
        head, rest = pairs[0], pairs[1:]
        random.shuffle(rest)
        pairs = Pairs([*rest, head])
    data = bytes_of(write(pairs))
    if kind == "readable damage":
        what = random.choice(sorted(READABLE))
        data = READABLE[what](data, random)
    elif kind == "damage":
        what = random.choice(sorted(DAMAGE))
        data = DAMAGE[what](data, random)
        findable = False
    return Body(data, findable, what)


def picture_part(random: Random) -> tuple[str, bytes]:
    """The last levels of a part's topic, and the part: mostly one of :data:`PICTURES`."""
    which, number = random.randrange(len(PICTURES)), random.randrange(PARTS)
    digest, level = DIGESTS[which], f"{number + 1}-{PARTS}"
    size = -(-len(PICTURES[which]) // PARTS)
    piece = PICTURES[which][number * size : (number + 1) * size]
    kind = random.choices(("right", "digest", "part", "piece"), (80, 7, 7, 6))[0]
    if kind == "digest":
        digest = random.choice(("0" * 64, digest[:-1], digest.upper(), digest + "0", "-", "ä"))
    elif kind == "part":
        level = random.choice(("0-1", "2-1", "1-33", "1-1", "99-99", "1", "1-2-3", "٣-٣", "x"))
    elif kind == "piece":
        piece = random.choice((b"", b"x", piece[:-1], piece * 2, bytes(70_000), b'{"id": "q"}'))
    return f"{digest}/{level}", piece


def control(request_id: str, random: Random) -> bytes:
    """A control message, mostly for ``request_id``."""
    target: Any = request_id if random.random() < 0.8 else random.choice(("nobody", "-", hostile(random), "x" * 65))
    pairs = Pairs(
        [("id", target), ("op", random.choice(("cancel", "update", "resume", "resume", "explode", "", None)))]
    )
    if random.random() < 0.5:
        names = random.sample(sorted(RANGES), random.choice((0, 1, 1, 2)))
        pairs.append(("set", {name: random.choice(RANGES[name]) for name in names}))
    if random.random() < 0.1:
        pairs.append((random.choice(("set", "id", "op", *NEAR)), hostile(random)))
    data = bytes_of(write(pairs))
    if random.random() < 0.2:
        data = random.choice(list({**READABLE, **DAMAGE}.values()))(data, random)
    return data


def desired(versions: tuple[str, ...], number: int, random: Random) -> bytes:
    """A desired document for one of ``versions``: right, impossible, or no document at all."""
    if random.random() < 0.08:
        return b""
    reference: Any = {"name": "tiny", "version": random.choice(versions)}
    pairs = Pairs([("revision", f"storm-{number}"), ("bundle", reference)])
    kind = random.choice(("right", "right", "revision", "bundle", "policy", "source", "unknown", "huge", "hostile"))
    if kind == "revision":
        pairs[0] = ("revision", random.choice((hostile(random), "r\ud83d", "r" * 128, "r" * 129, "\0", "/+#")))
    elif kind == "bundle":
        pairs[1] = ("bundle", random.choice((
            {"name": "tiny", "version": "9.9.9"}, {"name": "nobody", "version": "1.0.0"}, {"name": "../..",
            "version": "/"},
            {"name": "tiny"}, {"name": "tiny", "version": "1"}, {"name": "tiny", "version": hostile(random)},
            {"name": hostile(random), "version": "1.0.0"}, hostile(random), {**reference, "digest": "0" * 64},
        )))  # fmt: skip
    elif kind == "policy":
        pairs.append(("policy", random.choice((
            {"probation_seconds": 604800}, {"probation_seconds": 0}, {"probation_requests": 1_000_000},
            {"min_tokens_per_second": 1e6}, {"min_tokens_per_second": Raw("1e400")}, {"swap": "drain"},
            {"swap": "jump"},
            {"on_revoked": "replace"}, {"probation_seconds": 604801}, {"speed": 1}, hostile(random), {},
        ))))  # fmt: skip
    elif kind == "source":
        pairs.append(("source", random.choice(("web", "nowhere", "http://127.0.0.1:9/", hostile(random)))))
    elif kind == "unknown":
        pairs.append((random.choice(NEAR), hostile(random)))
    elif kind == "huge":
        pairs.append(("note", "n" * random.choice((17_000, 300_000, 2_000_000))))
    elif kind == "hostile":
        pairs.append((random.choice(("revision", "bundle", "policy", "source")), hostile(random)))
    data = bytes_of(write(pairs))
    if random.random() < 0.2:
        data = random.choice(list({**READABLE, **DAMAGE}.values()))(data, random)
    return data
