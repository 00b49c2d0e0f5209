"""The last step: scales and norms, tuned together until the rounded model says what the source says.

Rounding matrix by matrix leaves small errors that all point somewhere. Every block's scale and every vector of the
model (norms, biases) is stored in full precision anyway, so that changing them costs no byte; a few gradient steps on
the KL divergence from the source's own distribution, over the calibration text, take back a good part. The levels stay
as they were rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from packager.quantize.checkpoints import CalibrationCheckpoints
from packager.quantize.grid import BLOCK
from packager.quantize.layers import AT_ONCE, Rounded

BATCH = 8
STEPS = 16
"""Twenty steps of twice the batch took a sixth off the divergence on texts of other kinds; time goes with both."""

RATE = 1e-3
"""Of the change of a scale, relative to the scale, in one step of Adam."""

WARM_UP = 4
KEEP_EVERY = 4
"""Steps between two states that an interrupted build could go on from."""

CHUNK = 512
"""Positions whose logits exist at a time: ``[512, vocabulary]`` in fp32 is 100 MB for 49,152 tokens."""


def half_precision() -> bool:
    """Whether this processor multiplies bfloat16 faster than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


class Target:
    """What the source says over ``ids``: its last hidden states, and the table that makes logits of them."""

    def __init__(self, model: Any, ids: torch.Tensor, stages: CalibrationCheckpoints) -> None:
        base = model.base_model
        self.hidden = stages.once(
            "hidden",
            lambda: torch.cat([base(input_ids=rows, use_cache=False).last_hidden_state for rows in ids.split(AT_ONCE)]),
        )
        self.table = model.get_output_embeddings().weight.detach().clone()
        given = model(input_ids=ids[:1], use_cache=False).logits.float()
        made = self.hidden[:1].float() @ self.table.float().t()
        self.plain = bool(torch.allclose(given, made, rtol=1e-2, atol=1e-2))
        """Whether the logits are that product and nothing else; models that cap, scale or shift them are not tuned."""


def tune_scales(
    model: Any,
    rounded: dict[str, Rounded],
    ids: torch.Tensor,
    target: Target,
    *,
    stages: CalibrationCheckpoints,
    on_step: Callable[[int, int], None],
) -> None:
    """Tune the scales of ``rounded`` (modules of ``model`` by name, its lm_head too) and the vectors, all in place."""
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    head = model.get_output_embeddings()
    head_name = next(name for name, module in model.named_modules() if module is head)
    tied = head.weight is model.get_input_embeddings().weight
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    factors = {
        name: torch.ones(len(one.levels), one.levels.shape[1] // BLOCK, requires_grad=True)
        for name, one in rounded.items()
    }
    plain = {name: one.weight() for name, one in rounded.items()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    parameters = [*factors.values(), *vectors]
    adam = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.95), eps=1e-10)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).repeat(STEPS * BATCH // len(ids) + 1)
    batches = order.split(BATCH)[:STEPS]
    done = _go_on(stages.load("tuning"), parameters, adam)
    for step, chosen in enumerate(batches):
        if step < done:
            continue
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - 0.95 * step / len(batches))
        weights = {name: _scaled(plain[name], factors[name]) for name in factors}
        placed = {
            f"{name}.weight".removeprefix(prefix): weight for name, weight in weights.items() if name != head_name
        }
        if tied:
            placed[f"{embedding}.weight".removeprefix(prefix)] = weights[head_name]
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision()):
            output = torch.func.functional_call(base, placed, (), {"input_ids": ids[chosen], "use_cache": False})
        hidden = output.last_hidden_state.flatten(0, 1)
        down = _descend(hidden.detach(), weights[head_name].detach(), target.hidden[chosen].flatten(0, 1), target.table)
        adam.zero_grad()
        torch.autograd.backward([hidden, weights[head_name]], [down[0].to(hidden.dtype), down[1]])
        adam.step()
        if (step + 1) % KEEP_EVERY == 0:
            state = {"step": step + 1, "parameters": [one.detach() for one in parameters], "adam": adam.state_dict()}
            stages.keep("tuning", state)
        on_step(step + 1, len(batches))
    with torch.no_grad():
        for name, one in rounded.items():
            one.grid.scale *= factors[name][..., None]
            model.get_submodule(name).weight.copy_(one.weight())
    model.requires_grad_(requires_grad=False)


def _go_on(kept: dict[str, Any] | None, parameters: list[torch.Tensor], adam: torch.optim.Adam) -> int:
    """Put everything back as ``kept`` has it; the steps that were done."""
    if kept is None:
        return 0
    with torch.no_grad():
        for parameter, value in zip(parameters, kept["parameters"], strict=True):
            parameter.copy_(value)
    adam.load_state_dict(kept["adam"])
    return int(kept["step"])


def _scaled(weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[rows, columns]`` times ``factors`` ``[rows, blocks]``."""
    return (weight.view(*factors.shape, BLOCK) * factors[..., None]).view_as(weight)


def _descend(
    hidden: torch.Tensor, table: torch.Tensor, wanted: torch.Tensor, source_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the mean KL divergence in ``hidden`` and ``table``; in logits, it is the difference of chances."""
    kind = torch.bfloat16 if half_precision() else torch.float32
    hidden, table, source_table = hidden.to(kind), table.to(kind), source_table.to(kind)
    to_hidden, to_table = [], torch.zeros(table.shape)
    for start in range(0, len(hidden), CHUNK):
        rows = hidden[start : start + CHUNK]
        chances = torch.softmax((rows @ table.t()).float(), -1)
        chances -= torch.softmax((wanted[start : start + CHUNK].to(kind) @ source_table.t()).float(), -1)
        slope = (chances / len(hidden)).to(kind)
        to_hidden.append((slope @ table).float())
        to_table += (slope.t() @ rows).float()
    return torch.cat(to_hidden), to_table
