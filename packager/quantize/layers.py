"""Walking a model layer by layer: gather what goes into each matrix, round it, go on with the rounded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from contract.errors import BuildRefused
from packager.quantize.checkpoints import CalibrationCheckpoints
from packager.quantize.gptq import round_matrix
from packager.quantize.grid import BLOCK, Grid

AT_ONCE = 8
"""Sequences in one pass where nothing is gained by more."""


class Rounded:
    """One rounded matrix: ``levels`` as bytes, with its grid."""

    def __init__(self, levels: torch.Tensor, grid: Grid) -> None:
        self.levels = (levels - grid.low).to(torch.uint8)
        self.grid = grid

    def kept(self) -> dict[str, Any]:
        """All of it, for :mod:`packager.quantize.checkpoints`."""
        return {"levels": self.levels, "scale": self.grid.scale, "zero": self.grid.zero, "low": self.grid.low}

    @classmethod
    def from_kept(cls, kept: dict[str, Any]) -> Rounded:
        """What :meth:`kept` gave."""
        grid = Grid(scale=kept["scale"], zero=kept["zero"], low=kept["low"], pinned=None)
        return cls(kept["levels"].float() + grid.low, grid)

    def weight(self) -> torch.Tensor:
        """What the runtime multiplies with."""
        grid, columns = self.grid, self.levels.shape[1]
        zeros, scales = (grid.spread(values)[:, :columns] for values in (grid.zero, grid.scale))
        return (self.levels.float() + grid.low - zeros) * scales


def round_model(
    model: Any, ids: torch.Tensor, stages: CalibrationCheckpoints, on_layer: Callable[[int, int], None]
) -> dict[str, Rounded]:
    """Round every Linear of the decoder layers in place; all by name. Layers that ``stages`` has are not done again.

    Raises:
        BuildRefused: a matrix whose rows cannot be cut into blocks.
    """
    base, layers = find_decoder(model)
    names = {module: name for name, module in model.named_modules()}
    done: dict[str, Rounded] = {}

    def before(number: int) -> Callable[..., None]:
        def round_layer(layer: Any, arguments: Any, keywords: Any) -> None:
            if len(done_layers) > number:
                return  # the call that gathers the moments, from inside this one
            done_layers.append(number)
            kept = stages.load(f"layer-{number}")
            if kept is None:
                made = {}
                for linear, moments in _gather(layer, lambda: layer(*arguments, **keywords)).items():
                    if linear.weight.shape[1] % BLOCK:
                        wide = linear.weight.shape[1]
                        raise BuildRefused(f"{names[linear]} has rows of {wide}, no multiple of {BLOCK}")
                    rounded = Rounded(*round_matrix(linear.weight.detach(), moments, symmetric=False))
                    made[names[linear]] = rounded.kept()
                kept = stages.keep(f"layer-{number}", made)
            for name, one in kept.items():
                done[name] = Rounded.from_kept(one)
                model.get_submodule(name).weight.copy_(done[name].weight())
            on_layer(number + 1, len(layers))

        return round_layer

    done_layers: list[int] = []
    hooks = [layer.register_forward_pre_hook(before(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        base(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return done


def head_moments(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """``inputᵀ · input`` of what goes into the lm_head, ``[hidden, hidden]``."""
    size = int(model.get_output_embeddings().weight.shape[1])
    moments = torch.zeros(size, size)
    for rows in ids.split(AT_ONCE):
        hidden = model.base_model(input_ids=rows, use_cache=False).last_hidden_state.flatten(0, 1)
        moments += hidden.t() @ hidden
    return moments


def find_decoder(model: Any) -> tuple[Any, Any]:
    """The model below its lm_head, and its list of layers."""
    wanted = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted and name.endswith("layers"):
            return model.get_submodule(name.rpartition(".")[0]), module
    raise BuildRefused("the model's decoder layers were not found, so it cannot be calibrated; use --quantizer rtn")


def _gather(layer: Any, run: Callable[[], Any]) -> dict[Any, torch.Tensor]:
    """``inputᵀ · input`` of every Linear in ``layer``; those that share an input share the matrix."""
    found: dict[Any, torch.Tensor] = {}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(linear: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        for given, moments in seen:
            if given is arguments[0]:
                found[linear] = moments
                return
        rows = arguments[0].flatten(0, -2).float()
        found[linear] = rows.t() @ rows
        seen.append((arguments[0], found[linear]))

    linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
