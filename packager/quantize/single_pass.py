"""GPTQ in one pass over a short text: what ``--quantizer gptq-fast``, the default, does.

The text goes through the model once. A layer is held in fp32 only while it is passed, and each of its matrices is
rounded on the inputs that arrive at it, so that everything behind it sees the rounded model. Each layer is a file of
the result, from which an interrupted calibration goes on.

The result is a GPTQ checkpoint with zero points where the model builder is known to read one of that family
(:func:`fits_gptq`). For all others it is a plain checkpoint whose weights lie on the very grid that the builder finds
again by largest magnitudes: graph, operators and bytes are then those of plain rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from contract.errors import BuildRefused
from packager.build.build_cache import put
from packager.build.plan import GPTQ_FAMILIES
from packager.graph.dequantised import dequantise
from packager.quantize.export import gptq_tensors, quantization_config
from packager.quantize.gptq import TABLE_DAMPING, Compensation, plan_compensation, round_rows
from packager.quantize.layers import Rounded, find_decoder

SPAN = 1024
"""Columns that make up for each other: keeps the time linear in the parameters of models wider than this."""

PER_ZERO_POINTS = 8
"""Rows whose zero points share a word."""

PIECE_ELEMENTS = 2**23
"""Weights of one matrix that are rounded at a time: 32 MiB in fp32, and a few copies of them."""

RANGES = (1.0, 0.94, 0.88, 0.81, 0.74)
"""Parts of a block's range that are tried: half of what ``gptq`` tries."""

REST = "model-rest.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Shards:
    """The files of the result; those of layers that were finished before an interruption are there already."""

    def __init__(self, directory: Path, dtype: torch.dtype, *, symmetric: bool = True) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.symmetric = symmetric
        self.dtype = dtype if symmetric else torch.float32

    def take_back(self, out: Path) -> None:
        """Have again what an interrupted :func:`finish_checkpoint` had moved into ``out``."""
        for path in out.glob("*.safetensors"):
            path.rename(self.directory / path.name)

    def has(self, name: str) -> bool:
        """Whether that file is finished."""
        return (self.directory / name).is_file()

    def load(self, name: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a finished file."""
        from safetensors.torch import load_file

        return load_file(self.directory / name) if self.has(name) else None

    def keep(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write ``tensors`` in the type of the checkpoint.

        Raises:
            BuildRefused: a weight is too large for it.
        """
        from safetensors.torch import save_file

        stored = {
            key: (tensor.detach().to(self.dtype) if tensor.is_floating_point() else tensor).contiguous()
            for key, tensor in tensors.items()
        }
        for key, tensor in stored.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise BuildRefused(f"{key} has numbers that are not finite in {self.dtype}; use --quantizer rtn")
        partial = self.directory / f"{name}.partial"
        save_file(stored, partial, metadata={"format": "pt"})
        put(partial, self.directory / name)


def round_in_one_pass(
    model: Any, ids: torch.Tensor, shards: Shards, *, block: int, on_layer: Callable[[int, int], None]
) -> int:
    """Write ``model``, its decoder's matrices and its table rounded on ``ids``, to ``shards``; how many were rounded.

    Raises:
        BuildRefused: the model has no decoder layers that are known, or gives numbers that are not finite.
    """
    base, layers = find_decoder(model)
    names = {module: name for name, module in model.named_modules()}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    walks = [
        LayerWalk(layer, names[layer], shards, f"model-layer-{number:04}.safetensors", block)
        for number, layer in enumerate(layers)
    ]
    _hold_in_fp32(model, {*_tensors(layers), table.weight, head.weight})
    hooks = [table.register_forward_hook(lambda _module, _inputs, output: output.float())]
    for number, walk in enumerate(walks):
        hooks += walk.attach(functools.partial(on_layer, number + 1, len(walks)))
    try:
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, -2)
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(torch.isfinite(hidden).all()):
        raise BuildRefused("the source model gives numbers that are not finite; its weights are damaged")
    layered = tuple(f"{names[layer]}." for layer in layers)
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(layered)}
    tied = head.weight is table.weight
    if tied:
        del rest[f"{names[head]}.weight"]
    rest[f"{names[table if tied else head]}.weight"] = _round_table(head.weight, hidden, block, tied=tied)
    shards.keep(REST, rest)
    return sum(walk.matrices for walk in walks) + 1


def fits_gptq(model: Any, block: int) -> bool:
    """Whether the model builder reads a GPTQ checkpoint of this model, with ``block`` inputs a scale."""
    if model.config.get_text_config().model_type not in GPTQ_FAMILIES:
        return False
    _, layers = find_decoder(model)
    shapes = [one.weight.shape for layer in layers for one in layer.modules() if isinstance(one, torch.nn.Linear)]
    return all(inputs % block == 0 and outputs % PER_ZERO_POINTS == 0 for outputs, inputs in shapes)


class LayerWalk:
    """One layer while the text passes it."""

    def __init__(self, layer: Any, prefix: str, shards: Shards, file: str, block: int) -> None:
        self._layer, self._prefix, self._shards, self._file, self._block = layer, prefix, shards, file, block
        self._linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        self._left: set[Any] = set()
        self._plain: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._inputs: tuple[torch.Tensor, Compensation] | None = None
        self._made: dict[Any, Rounded] = {}
        self.matrices = len(self._linears)

    def attach(self, on_end: Callable[[], None]) -> list[Any]:
        """Hooks that do all of it; ``on_end`` is called when the layer was passed."""

        def end(_layer: Any, _inputs: Any, _output: Any) -> None:
            self._end()
            on_end()

        return [
            self._layer.register_forward_pre_hook(lambda _layer, _inputs: self._begin()),
            *(linear.register_forward_pre_hook(self._round) for linear in self._linears),
            self._layer.register_forward_hook(end),
        ]

    def _begin(self) -> None:
        """In fp32 from here on, the rounded weights where they are there already."""
        kept = self._shards.load(self._file)
        self._plain = [(tensor, tensor.data) for tensor in _tensors([self._layer])]
        for tensor, data in self._plain:
            if data.is_floating_point():
                tensor.data = data.to(torch.float32, copy=True)
        if kept is not None:
            read = dequantise(kept, "gptq", 4)
            for name, tensor in self._layer.state_dict(keep_vars=True).items():
                tensor.data.copy_(read[f"{self._prefix}.{name}"])
        self._left = set(self._linears) if kept is None else set()

    def _round(self, linear: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """Round ``linear`` before it is used for the first time; those that share an input share what it costs."""
        if linear not in self._left:
            return
        if self._inputs is None or self._inputs[0] is not inputs[0]:
            self._inputs = inputs[0], _plan(inputs[0].flatten(0, -2).float())
        self._put(linear, self._inputs[1])

    def _put(self, linear: Any, plan: Compensation) -> None:
        rounded = _round_pieces(linear.weight.data, plan, self._block, symmetric=self._shards.symmetric)
        linear.weight.data.copy_(rounded.weight())
        self._made[linear] = rounded
        self._left.discard(linear)

    def _end(self) -> None:
        """Keep what was made, and put the source's own weights back, which are mapped and cost no memory."""
        self._inputs = None
        if not self._shards.has(self._file):
            for linear in [one for one in self._linears if one in self._left]:  # nothing came here: one of many experts
                self._put(linear, _plan(torch.eye(linear.in_features)))
            self._shards.keep(self._file, self._tensors())
        self._made = {}
        for tensor, data in self._plain:
            tensor.data = data
        self._plain = []

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything of the layer as it is stored."""
        owners = dict(self._layer.named_modules())
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self._layer.state_dict().items():
            owner, _, kind = name.rpartition(".")
            rounded = self._made.get(owners[owner]) if kind == "weight" and not self._shards.symmetric else None
            if rounded is None:
                found[f"{self._prefix}.{name}"] = tensor
            else:
                found |= gptq_tensors(f"{self._prefix}.{owner}", rounded)
        return found


def _tensors(modules: Iterable[Any]) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [tensor for module in modules for tensor in itertools.chain(module.parameters(), module.buffers())]


def _hold_in_fp32(model: Any, but: set[torch.Tensor]) -> None:
    """Everything in fp32 that is small: neither the layers nor the tables."""
    for tensor in _tensors([model]):
        if tensor not in but and tensor.is_floating_point():
            tensor.data = tensor.data.float()


def _plan(rows: torch.Tensor, damping: float = 0.0) -> Compensation:
    """How to round a matrix with these inputs ``[tokens, columns]``."""

    def moments(columns: torch.Tensor) -> torch.Tensor:
        chosen = rows[:, columns]
        return chosen.t() @ chosen

    importance = rows.pow(2).sum(0)
    importance += damping * importance.mean()
    return plan_compensation(importance, moments, span=SPAN)


def _round_table(table: torch.Tensor, hidden: torch.Tensor, block: int, *, tied: bool) -> torch.Tensor:
    """Symmetric always: the builder quantises the table itself, by largest magnitudes."""
    plan = _plan(hidden.float(), TABLE_DAMPING if tied else 0.0)
    return _round_pieces(table.detach(), plan, block, symmetric=True).weight()


def _round_pieces(weight: torch.Tensor, plan: Compensation, block: int, *, symmetric: bool) -> Rounded:
    """``weight`` rounded, some rows at a time, which know nothing of each other."""
    made = []
    for piece in weight.split(max(1, PIECE_ELEMENTS // weight.shape[1])):
        made.append(Rounded(*round_rows(piece.float(), plan, symmetric=symmetric, block=block, shrinks=RANGES)))
    if len(made) == 1:
        return made[0]
    grid = dataclasses.replace(
        made[0].grid,
        scale=torch.cat([one.grid.scale for one in made]),
        zero=torch.cat([one.grid.zero for one in made]),
        pinned=None,
    )
    return Rounded(torch.cat([one.levels for one in made]).float() + grid.low, grid)


def finish_checkpoint(shards: Shards, source: Path, out: Path, block: int) -> None:
    """Move the files of ``shards`` into ``out``, behind everything that ``source`` has beside its weights: where there
    is no room for that, they are not lost.
    """
    from safetensors import safe_open

    weight_map: dict[str, str] = {}
    made = sorted(shards.directory.glob("*.safetensors"))
    for path in made:
        with safe_open(path, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), path.name)
    index = {"metadata": {"total_size": sum(path.stat().st_size for path in made)}, "weight_map": weight_map}
    (out / INDEX_FILE).write_text(json.dumps(index, indent=1), "utf-8")
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    _name_dtype(config, str(shards.dtype).removeprefix("torch."))
    if not shards.symmetric:
        config["quantization_config"] = quantization_config(block)
    (out / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    for path in made:
        path.rename(out / path.name)


def _name_dtype(config: dict[str, Any], dtype: str) -> None:
    """The type of the stored weights, wherever a configuration names one."""
    config["dtype"] = dtype
    config.pop("torch_dtype", None)
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _name_dtype(part, dtype)
