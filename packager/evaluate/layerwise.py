"""Running a model whose weights are mapped in half precision as if they were fp32, one layer of it in memory at a time.

Products of bfloat16 are two to five times as slow as those of fp32 on processors without instructions for them, and a
whole model in fp32 takes four bytes of memory a parameter. What a layer gets and gives is fp32 throughout, so the
numbers are those of the model converted as a whole.

All layers are converted into the same memory, one after the other: into new memory it takes six times as long, since
the system makes page after page for it ([8192, 3072] of bfloat16 on two threads of a Zen 3: 15 and 98 ms).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def in_fp32(model: Any, on_layer: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let ``model`` compute in fp32 within the block; ``on_layer`` is called at the end of every decoder layer."""
    import torch

    handles, units = [], list(_units(model))
    # What these give is made by a product or a sum, never their own weights, which do not stay as they are.
    shared = {module for module, is_layer in units if is_layer or type(module) is torch.nn.Linear}
    buffer = SharedBuffer(shared)
    for module, is_layer in units:
        if isinstance(module, torch.nn.Embedding):
            handles.append(module.register_forward_hook(lambda _, given, made: made.float()))
            continue
        half: dict[Any, Any] = {}
        handles.append(module.register_forward_pre_hook(_widen(half, buffer if module in shared else None)))
        handles.append(
            module.register_forward_hook(_restore(half, buffer, on_layer if is_layer else None), always_call=True)
        )
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


ALIGNMENT = 16
"""Elements of 4 bytes: each weight starts on a line of the processor's cache."""


class SharedBuffer:
    """Memory for the largest of ``modules`` in fp32, lent to one after the other; made when it is first asked for. No
    gradients can be computed through what it holds.
    """

    def __init__(self, modules: set[Any]) -> None:
        self._elements = max((sum(map(_padded_size, _halves(module))) for module in modules), default=0)
        self._memory: Any = None
        self._holder: Any = None

    def lend(self, module: Any) -> Iterator[Any] | None:
        """What the weights of ``module`` are to be written to, in their order; None while another one has it."""
        import torch

        if self._holder is not None:
            return None
        if self._memory is None:
            self._memory = torch.empty(self._elements, dtype=torch.float32)
        self._holder = module
        return self._cut(module)

    def _cut(self, module: Any) -> Iterator[Any]:
        start = 0
        for parameter in _halves(module):
            yield self._memory[start : start + parameter.numel()].view(parameter.shape)
            start += _padded_size(parameter)

    def give_back(self, module: Any) -> None:
        """The next one can have it, if it was ``module`` that had it."""
        if self._holder is module:
            self._holder = None


def _halves(module: Any) -> list[Any]:
    return [one for one in module.parameters() if one.is_floating_point() and one.element_size() < 4]


def _padded_size(parameter: Any) -> int:
    return int(parameter.numel() + -parameter.numel() % ALIGNMENT)


def _widen(half: dict[Any, Any], buffer: SharedBuffer | None) -> Callable[..., None]:
    def before(module: Any, given: Any) -> None:
        parameters = _halves(module)
        lent = None if buffer is None or not parameters else buffer.lend(module)
        for parameter, target in zip(parameters, lent or [None] * len(parameters), strict=True):
            half[parameter] = parameter.data
            parameter.data = parameter.data.float() if target is None else target.copy_(parameter.data)

    return before


def _restore(half: dict[Any, Any], buffer: SharedBuffer, on_layer: Callable[[], None] | None) -> Callable[..., None]:
    def after(module: Any, given: Any, made: Any) -> None:
        for parameter, data in half.items():
            parameter.data = data
        half.clear()
        buffer.give_back(module)
        if on_layer is not None:
            on_layer()

    return after
