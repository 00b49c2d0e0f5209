"""Loading modules with a check taken out of their syntax tree, in this process and its children, before they are first
imported.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

from msgspec import json

from tests.sabotage.changes import mutate
from tests.sabotage.mutation import Mutation

ROOT = Path(__file__).resolve().parents[2]


def source_of(module: str) -> Path:
    """Where the source of ``module`` lies; nothing is imported by this, neither it nor a package that it is in.

    Raises:
        LookupError: there is no such module.
    """
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        # By path: looking for a module by its name imports the packages that it is in.
        file = Path(place).joinpath(*inner).with_suffix(".py")
        if inner and file.is_file():
            return file
    raise LookupError(f"there is no module {module}")


def without(source: str, cuts: Iterable[Mutation]) -> ast.Module:
    """The syntax tree of a module without the checks.

    Raises:
        LookupError: a check is not there, or not there once: the table has to follow the code.
    """
    tree = ast.parse(source)
    for cut in cuts:
        mutate(tree, cut)
    return tree


def resolve(cuts: Iterable[Mutation]) -> None:
    """Find every place that is named and change it, in memory only.

    Raises:
        LookupError: a module, a definition or a part of one is not there, or not there once.
    """
    for path, each in _by_file(cuts).items():
        compile(without(path.read_text("utf-8"), each), str(path), "exec", dont_inherit=True)


def _by_file(cuts: Iterable[Mutation]) -> dict[Path, list[Mutation]]:
    found: dict[Path, list[Mutation]] = {}
    for cut in cuts:
        found.setdefault(source_of(cut.module), []).append(cut)
    return found


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, cuts: Sequence[Mutation]) -> None:
        super().__init__(name, path)
        self._cuts = cuts

    def get_code(self, fullname: str) -> CodeType:
        tree = without(Path(self.path).read_text("utf-8"), self._cuts)
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, cuts: Iterable[Mutation]) -> None:
        self._cuts: dict[str, list[Mutation]] = {}
        for cut in cuts:
            self._cuts.setdefault(cut.module, []).append(cut)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._cuts:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.origin is not None, name
        return importlib.util.spec_from_loader(name, _Loader(name, spec.origin, self._cuts[name]))


def remove(cuts: Sequence[Mutation]) -> None:
    """From now on this process imports the modules without these checks."""
    for cut in cuts:
        assert cut.module not in sys.modules, f"{cut.module} was imported before its check could be taken out"
    sys.meta_path.insert(0, _Finder(cuts))


def remove_in_children(cuts: Sequence[Mutation], directory: Path) -> None:
    """From now on every Python process that this one starts imports the modules without these checks.

    ``directory`` gets a ``sitecustomize``, which Python runs before anything else.
    """
    directory.mkdir()
    (directory / "cuts.json").write_bytes(json.encode(cuts))
    (directory / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom msgspec import json\n"
        "from tests.sabotage.mutation import Mutation\nfrom tests.sabotage.removal import remove\n"
        'remove(json.decode(Path(__file__).with_name("cuts.json").read_bytes(), type=list[Mutation]))\n',
        "utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
