"""Running a model whose weights are mapped in half precision as if they were fp32, one layer of it in memory at a time.

Products of bfloat16 are two to five times as slow as those of fp32 on processors without instructions for them, and a
whole model in fp32 takes four bytes of memory a parameter. What a layer gets and gives is fp32 throughout, so the
numbers are those of the model converted as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def in_fp32(model: Any, on_layer: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let ``model`` compute in fp32 within the block; ``on_layer`` is called at the end of every decoder layer."""
    import torch

    handles = []
    for module, is_layer in _units(model):
        if isinstance(module, torch.nn.Embedding):
            handles.append(module.register_forward_hook(lambda _, given, made: made.float()))
            continue
        half: dict[Any, Any] = {}
        handles.append(module.register_forward_pre_hook(_widen(half)))
        handles.append(module.register_forward_hook(_restore(half, on_layer if is_layer else None), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _units(model: Any) -> Iterator[tuple[Any, bool]]:
    """What is converted as one: decoder layers, and whatever else has parameters of its own."""
    import torch

    layers: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and name.endswith("layers"):
            layers += module
    inside = {inner for layer in layers for inner in layer.modules()}
    yield from ((layer, True) for layer in layers)
    for module in model.modules():
        if module not in inside and any(True for _ in module.parameters(recurse=False)):
            yield module, False


def _widen(half: dict[Any, Any]) -> Callable[..., None]:
    def before(module: Any, given: Any) -> None:
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.element_size() < 4:
                half[parameter] = parameter.data
                parameter.data = parameter.data.float()

    return before


def _restore(half: dict[Any, Any], on_layer: Callable[[], None] | None) -> Callable[..., None]:
    def after(module: Any, given: Any, made: Any) -> None:
        for parameter, data in half.items():
            parameter.data = data
        half.clear()
        if on_layer is not None:
            on_layer()

    return after
