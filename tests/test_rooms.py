"""The order of the package: allowed imports, lengths of files, private names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lorage_jax"
PACKAGE = "lorage_jax"

# From bottom to top. A file imports from its own room and from those before it; imports for type
# checking and inside functions count. The package itself, the public face, stands above all.
ROOMS = (
    *("errors", "fields", "buckets", "chips", "processor", "compilation", "libtpu", "platforms"),
    *("provenance", "progress"),
    *("nano", "smollm2", "bundled"),
    *("config", "files", "ops", "rotary", "sharding", "distributed", "flash", "cudnn"),
    *("models", "data"),
    *("gguf", "hf", "llamacpp", "generator"),
    *(
        "infer",
        "train",
        "methods",
        "evaluate",
        "bench",
        "world",
        "compare",
        "report",
        "aot",
        "serve",
    ),
    *("commands", "cli", PACKAGE),
)
FILE_LINES = 400
FUNCTION_LINES = 60

# The only files that import by a name in a string, which this reader cannot see.
BY_NAME = {PACKAGE, "cli", "data.sources", "hf.families", "methods", "methods.method"}


class House:
    """All files of a package, read without importing them."""

    def __init__(self, root: Path):
        self.files = {self._name(root, path): path for path in sorted(root.rglob("*.py"))}
        self.trees = {name: ast.parse(path.read_text("utf-8")) for name, path in self.files.items()}

    @staticmethod
    def _name(root: Path, path: Path) -> str:
        """The name of a module without the package's: `train.loop`; the package: its own name."""
        parts = path.relative_to(root).with_suffix("").parts
        return ".".join(part for part in parts if part != "__init__") or PACKAGE

    def violations(self) -> set[str]:
        """One sentence each."""
        found = {line for name in self.files for line in self._of(name)}
        return found | set(self._circles())

    def imports(self, name: str) -> Iterator[tuple[str, str, str]]:
        """(module, name imported from it or "", name it goes by here) of imports in the package."""
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if (target := self._inside(alias.name)) is not None:
                        yield target, "", alias.asname or alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively; write the whole name"
                for alias in node.names:
                    module, known = node.module or "", alias.asname or alias.name
                    if (whole := self._inside(f"{module}.{alias.name}")) in self.files:
                        yield whole, "", known
                    elif (target := self._inside(module)) is not None:
                        yield target, alias.name, known

    @staticmethod
    def _inside(module: str) -> str | None:
        if module == PACKAGE:
            return PACKAGE
        head, _, rest = module.partition(".")
        return rest if head == PACKAGE else None

    def _of(self, name: str) -> Iterator[str]:
        room = _room(name)
        if room not in ROOMS:
            yield f"{name}: its room is not in the table"
            return
        modules = set()
        for target, member, known in self.imports(name):
            if not member:
                modules.add(known)
            if target != name and _is_private(member):
                yield f"{name} uses {target}.{member}, which is private"
            if _room(target) in ROOMS and ROOMS.index(_room(target)) > ROOMS.index(room):
                yield f"{name} imports {target}, which is above it"
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules and _is_private(node.attr):
                    yield f"{name} uses {node.value.id}.{node.attr}, which is private"
                if node.attr == "import_module" and name not in BY_NAME:
                    yield f"{name} imports by name"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    yield f"{name}.{node.name} is longer than {FUNCTION_LINES} lines"
        if len(self.files[name].read_text("utf-8").splitlines()) > FILE_LINES:
            yield f"{name} is longer than {FILE_LINES} lines"

    def _circles(self) -> Iterator[str]:
        """Pairs of files in different rooms that reach each other."""
        direct = {
            name: {target for target, _, _ in self.imports(name) if target != PACKAGE}
            for name in self.files
        }
        reach = {name: _reachable(direct, name) for name in self.files}
        for one, others in reach.items():
            for other in others:
                if one < other and _room(one) != _room(other) and one in reach.get(other, ()):
                    yield f"{one} and {other} import each other, directly or through others"


def _room(name: str) -> str:
    return name.partition(".")[0]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _reachable(direct: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        for target in direct.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def test_the_package_keeps_its_order():
    assert not (found := sorted(House(ROOT).violations())), "\n".join(found)


def test_every_room_is_there():
    assert {_room(name) for name in House(ROOT).files} == set(ROOMS)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"models/a.py": "from lorage_jax.train.b import f", "train/b.py": ""},
            {"models.a imports train.b, which is above it"},
        ),
        (
            {"models/a.py": "def g():\n    from lorage_jax import train", "train/__init__.py": ""},
            {"models.a imports train, which is above it"},
        ),
        (
            {"models/a.py": "import lorage_jax.hf.b", "hf/b.py": "import lorage_jax.models.a"},
            {
                "models.a imports hf.b, which is above it",
                "hf.b and models.a import each other, directly or through others",
            },
        ),
        ({"kitchen/a.py": ""}, {"kitchen.a: its room is not in the table"}),
        (
            {"hf/a.py": "from lorage_jax.hf.b import _f", "hf/b.py": ""},
            {"hf.a uses hf.b._f, which is private"},
        ),
        (
            {"hf/a.py": "from lorage_jax.hf import b\nb._f()", "hf/b.py": ""},
            {"hf.a uses b._f, which is private"},
        ),
        (
            {"hf/a.py": "import importlib\nimportlib.import_module('lorage_jax.train.b')"},
            {"hf.a imports by name"},
        ),
        ({"ops.py": "\n" * 401}, {"ops is longer than 400 lines"}),
        ({"ops.py": "def f():" + "\n    1" * 60}, {"ops.f is longer than 60 lines"}),
        ({"ops.py": "def f():" + "\n    1" * 59 + "\n" * 340}, set()),
        (
            {"train/a.py": "from lorage_jax.models import b\nfrom lorage_jax.models.b import f",
             "models/b.py": "from lorage_jax.ops import project", "ops.py": ""},
            set(),
        ),
    ],
)  # fmt: skip
def test_what_is_out_of_order_is_found(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert House(tmp_path / PACKAGE).violations() == expected


def test_every_room_says_what_is_in_it():
    """In its own docstring, and in the tour of the code."""
    tour = (ROOT.parent / "docs" / "tour.md").read_text("utf-8")
    for file in ROOT.glob("*/__init__.py"):
        room = file.parent.name
        assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), room
        assert room in ("nano", "smollm2") or f"`{room}/`" in tour, room
