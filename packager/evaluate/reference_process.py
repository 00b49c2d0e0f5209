"""The process that reads a checkpoint's small files as transformers does; no weight is loaded.

Models are made on the ``meta`` device, where tensors have shapes and no numbers.
"""

from __future__ import annotations

import datetime
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from contract.chat.limits import Allowance, LimitExceeded, run_bounded
from contract.errors import BuildRefused
from packager.evaluate.conversations import CONVERSATIONS, DAY, Rendering
from packager.evaluate.corpus import MAX_SPECIAL, TEXTS
from packager.evaluate.jobs import REFERENCE, LoadFaults, Reference, ReferenceJob, Spelling, Templates
from packager.graph.rope import RopeFacts, Rotary
from packager.sources.headers import Entry, read_headers
from packager.subprocess_job import Reporter, child_main

RENDER_BYTES = 256 << 20
"""More than on a device, since transformers loads parts of itself when it first renders."""

FAILURES = (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError, RuntimeError, ArithmeticError)
"""What transformers raises at files that it cannot make sense of."""


def look(job: ReferenceJob, reporter: Reporter) -> Reference:
    """What transformers makes of the checkpoint."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    reporter.progress(0, 1)
    try:
        if job.config is None:
            config = AutoConfig.from_pretrained(job.checkpoint, trust_remote_code=False)
        else:
            config = CONFIG_MAPPING[job.config["model_type"]].from_dict(job.config)
        weights = find_weights(job.weights or read_headers(Path(job.checkpoint)).entries(), config)
        rope = find_rope(config)
        rows = int(config.get_text_config().vocab_size)
    except (*FAILURES, StrictDataclassError) as error:
        raise BuildRefused(f"transformers cannot make a model of this config.json: {_reason(error)}") from error
    try:
        spellings = spell(job.checkpoint, rows)
    except FAILURES as error:
        raise BuildRefused(f"transformers cannot read the tokenizer: {_reason(error)}") from error
    reporter.progress(1, 1)
    return Reference(
        config=json.loads(config.to_json_string(use_diff=False)),
        weights=weights.shapes,
        tied=weights.tied,
        faults=weights.faults,
        rope=rope,
        spellings=spellings,
        templates=render(job.checkpoint, job.template),
    )


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())[:300]
    return words if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: {words}"


def spell(checkpoint: str, rows: int) -> list[Spelling]:
    """The texts of :mod:`packager.evaluate.corpus` and the tokenizer's own special tokens, with their tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    special = [token.content for number, token in tokenizer.added_tokens_decoder.items() if number < rows]
    texts = [*TEXTS, *(f"a {text} b" for text in special[:MAX_SPECIAL])]
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [(text, ids, tokenizer(text)["input_ids"]) for text, ids in zip(texts, plain, strict=True)]


def render(checkpoint: str, template: str | None = None) -> Templates:
    """What transformers makes of the conversations of :mod:`packager.evaluate.conversations`, and the special tokens
    that it gives the template, which is the tokenizer's own unless ``template`` is given.

    Raises:
        BuildRefused: it cannot make sense of the tokenizer.
    """
    import transformers.utils.chat_template_utils as templates
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except FAILURES as error:
        raise BuildRefused(f"transformers cannot read the tokenizer: {_reason(error)}") from error
    if template is not None:
        tokenizer.chat_template = template
    templates.datetime = _OneDay
    found: list[Rendering] = []
    for name, given in CONVERSATIONS.items() if tokenizer.chat_template else ():
        for asks in (True, False):
            call = partial(
                tokenizer.apply_chat_template, given.messages, given.tools, tokenize=False, add_generation_prompt=asks
            )
            try:
                text = str(run_bounded(partial(call, **given.variables), Allowance(memory=RENDER_BYTES)))
            except LimitExceeded as exceeded:
                raise BuildRefused(
                    f"the chat template takes {exceeded.what} for {name}; give another with --chat-template"
                ) from exceeded
            except Exception:  # templates raise at conversations that they do not take
                text = None
            found.append((name, asks, text))
    return Templates(found, dict(tokenizer.special_tokens_map))


class _OneDay(datetime.datetime):
    """What ``strftime_now`` of transformers looks at."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _OneDay:
        return cls.fromtimestamp(DAY.timestamp(), tz)


def find_rope(config: Any) -> RopeFacts | None:
    """None for a model that does not rotate."""
    try:
        return Rotary(config).facts()
    except LookupError:
        return None


class _Weights(NamedTuple):
    shapes: dict[str, list[int]]
    tied: dict[str, str]
    faults: LoadFaults | None


def find_weights(entries: list[Entry], config: Any) -> _Weights:
    """Names and shapes of the model's weights, which are tied, and what a load of the files would lack or leave out.

    transformers maps the files' names to the model's itself, since that is what will be loaded; weights that are
    quantised already are not its to read, and come without ``faults``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quantised = getattr(config, "quantization_config", None) is not None
    if quantised:
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = None
    if not quantised:
        # Weights that a class allows to be missing would be random all the same.
        type(model)._keys_to_ignore_on_load_missing = None
        # Given the files, it would read all of them to find out.
        _, info = type(model).from_pretrained(
            None,
            config=config,
            state_dict=_as_stored(entries),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
        faults = LoadFaults(
            missing=sorted(info["missing_keys"]),
            unexpected=sorted(info["unexpected_keys"]),
            mismatched=sorted((name, list(stored), list(wanted)) for name, stored, wanted in info["mismatched_keys"]),
        )
    return _Weights(shapes, dict(tied), faults)


def _as_stored(entries: list[Entry]) -> dict[str, Any]:
    """The weights by the names and shapes of the files' headers, without numbers."""
    import torch

    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return {
        name: torch.empty(shape, dtype=types.get(dtype, torch.float32), device="meta") for name, dtype, shape in entries
    }


if __name__ == "__main__":
    child_main(REFERENCE, look)
