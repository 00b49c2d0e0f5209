"""Two graphs of one model beside each other, whose weights lie on the disk once.

A graph with an INT8 cache differs from the one that its scales were measured on in its attention and in those scales.
All weights are the same bytes, gigabytes of them: its external data is the other graph's, by a link where the file
system can, and what is new stands in the graph file itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRAPH_FILE = "model.onnx"
DATA_FILE = f"{GRAPH_FILE}.data"


@contextlib.contextmanager
def sharing_data(other: Path) -> Iterator[None]:
    """Graphs that onnx-ir saves meanwhile refer to the external data of the one in the folder ``other``. Saved as usual
    where some weight of the other is not in them: it would travel for nothing.
    """
    import onnx_ir as ir

    plain = ir.save

    def save(model: Any, path: Any, *more: Any, **named: Any) -> None:
        kept, made = (_initializers(each) for each in (ir.load(other / GRAPH_FILE), model))
        if kept is None or made is None or not _are_same(kept, made, other / DATA_FILE):
            plain(model, path, *more, **named)
            return
        folder = Path(path).parent
        for name, tensor in ((name, value.const_value) for name, value in kept.items()):
            where = {"location": DATA_FILE, "offset": tensor.offset, "length": tensor.length, "base_dir": folder}
            made[name].const_value = ir.ExternalTensor(dtype=tensor.dtype, shape=tensor.shape, name=name, **where)
        link_file(other / DATA_FILE, folder / DATA_FILE)
        plain(model, path)

    ir.save = save
    try:
        yield
    finally:
        ir.save = plain


def _initializers(model: Any) -> dict[str, Any] | None:
    """Those of all of its graphs by name; None where two share one."""
    found = [pair for graph in model.graphs() for pair in graph.initializers.items()]
    return dict(found) if len({name for name, _ in found}) == len(found) else None


def _are_same(kept: dict[str, Any], made: dict[str, Any], data: Path) -> bool:
    """Whether everything of ``kept``, which lies in the file ``data``, has type, shape and bytes of its namesake."""
    with data.open("rb") as file:  # onnx-ir refuses a file that has links, as one that was kept has
        for name, value in kept.items():
            theirs, ours = value.const_value, None if name not in made else made[name].const_value
            if ours is None or not hasattr(theirs, "offset") or str(theirs.location) != DATA_FILE:
                return False
            if (theirs.dtype, list(theirs.shape)) != (ours.dtype, list(ours.shape)):
                return False
            file.seek(theirs.offset)
            if file.read(theirs.length) != ours.tobytes():
                return False
    return True


def link_tree(source: Path, target: Path) -> None:
    """Every file of ``source`` in ``target`` too."""
    for path in sorted(source.rglob("*")):
        where = target / path.relative_to(source)
        if path.is_dir():
            where.mkdir(parents=True, exist_ok=True)
        else:
            link_file(path, where)


def link_file(source: Path, target: Path) -> None:
    """The file ``source`` at ``target`` too, by a link where the file system can, by a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
