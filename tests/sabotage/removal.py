"""Loading modules with a check taken out of their source, in this process and its children, before they are first
imported.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

from msgspec import Struct, json

OURS = ("agent.", "contract.", "packager.")
ROOT = Path(__file__).resolve().parents[2]


class Cut(Struct, frozen=True):
    """In the source of ``module``, ``old`` (which stands there once) becomes ``new``.

    ``module`` may be a package: then ``old`` stands once in one of its modules, wherever that is.
    """

    module: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The source without the check.

        Raises:
            LookupError: the check is not there, or not there once: the table has to follow the code.
        """
        found = source.count(self.old)
        if found != 1:
            raise LookupError(f"{self.module} has {self.old!r} {found} times; the table must name a check exactly")
        return source.replace(self.old, self.new)


def located(cut: Cut) -> Cut:
    """The cut with the very module that it is about, which is not imported.

    Raises:
        LookupError: no module of the package, or more than one, has the check.
    """
    package = ROOT.joinpath(*cut.module.split("."))
    if not cut.module.startswith(OURS) or not package.is_dir():
        return cut
    # By path: looking for a module by its name imports the packages above it.
    files = sorted(package.rglob("*.py"))
    found = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if cut.old in file.read_text("utf-8")
    ]
    if len(found) != 1:
        raise LookupError(f"{cut.old!r} stands in {found or 'no module'} of {cut.module}; it must be one")
    return Cut(found[0], cut.old, cut.new)


def source_of(module: str) -> Path:
    """Where the source of ``module`` lies; the module itself is not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, cuts: Sequence[Cut]) -> None:
        super().__init__(name, path)
        self._cuts = cuts

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text("utf-8")
        for cut in self._cuts:
            source = cut.apply(source)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, cuts: Iterable[Cut]) -> None:
        self._cuts: dict[str, list[Cut]] = {}
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


def remove(cuts: Sequence[Cut]) -> None:
    """From now on this process imports the modules without these checks."""
    cuts = [located(cut) for cut in cuts]
    for cut in cuts:
        assert cut.module not in sys.modules, f"{cut.module} was imported before its check could be taken out"
    sys.meta_path.insert(0, _Finder(cuts))


def remove_in_children(cuts: Sequence[Cut], directory: Path) -> None:
    """From now on every Python process that this one starts imports the modules without these checks.

    ``directory`` gets a ``sitecustomize``, which Python runs before anything else.
    """
    directory.mkdir()
    (directory / "cuts.json").write_bytes(json.encode([located(cut) for cut in cuts]))
    (directory / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom msgspec import json\nfrom tests.sabotage.removal import Cut, remove\n"
        'remove(json.decode(Path(__file__).with_name("cuts.json").read_bytes(), type=list[Cut]))\n',
        "utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
