"""The shape of the source, enforced by reading it with `ast`: nothing here imports the package.

Imports only go down, from a floor to a lower one, and the rooms of one floor do not see one another:

    cli -> sweeps | diagnosis | reports -> conversion -> training -> watching | interventions -> monitors -> measures
        -> models | data | optim -> nn -> quantize -> spec | progress
        -> document | formats | numerals | metric_keys | display | webpage

Five rooms stand beside the tower and see formats, document, numerals and spec: matrix, symptoms, store and statistics,
which are seen from monitors upwards, and recipes, from nn upwards. They and the bottom of the tower never load torch,
so that `altgrad --help`, a table of formats and a look at finished runs answer at once. Each rule is a function of
parsed sources that yields `file:line: rule`; the second half of the file plants one violation of each rule and one
small tree without any, so the rules can fail.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    ("formats", "document", "numerals", "metric_keys", "display", "webpage", "crowding"),
    ("spec", "progress"),
    ("quantize",),
    ("nn",),
    ("models", "data", "optim"),
    ("measures",),
    ("monitors",),
    ("watching", "interventions"),
    ("training",),
    ("conversion",),
    ("sweeps", "diagnosis", "reports"),
    ("cli",),
)
BESIDE = {"recipes": "nn", "matrix": "monitors", "symptoms": "monitors", "store": "monitors", "statistics": "monitors"}
"""Each with the lowest room that sees it."""
TORCH_FREE = {*FLOORS[0], *FLOORS[1], *BESIDE}
TORCH_LOADERS = {"torch", "torchvision", "torchmetrics", "transformers", "accelerate"}
LAZY = {"wandb", "datasets", "pandas", "pyarrow", "rich", "matplotlib", "plotly", "scipy", "sklearn", "transformers"}
LAZY |= {"ray", "submitit", "jinja2", "huggingface_hub", "torchmetrics", "statsmodels", "tensorboard"}
BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
FILE_LINES, FUNCTION_LINES = 400, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef
OF_TORCH = {"forward", "backward", "setup_context", "extra_repr"}
"""Methods that torch's documentation describes."""


def rooms_below(room: str) -> set[str]:
    """The rooms a room may import, itself among them; empty for a room this file does not know."""
    if room in BESIDE:
        return {room, *FLOORS[0], *FLOORS[1]}
    level = next((i for i, floor in enumerate(FLOORS) if room in floor), None)
    if level is None:
        return set()
    seen = {room, *(r for floor in FLOORS[:level] for r in floor)}
    return seen | {each for each, lowest in BESIDE.items() if level >= FLOORS.index((lowest,))}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the line, and the innermost function's name (None at module level)."""

    target: str
    line: int
    function: str | None


@dataclass(frozen=True)
class Source:
    """One file: its path from the root with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]

    @property
    def room(self) -> str:
        return room_of(self.module)

    def fault(self, line: int, rule: str) -> str:
        return f"{self.path}:{line}: {rule}"


def room_of(module: str) -> str:
    """`altgrad.nn.linear` is in `nn`; the package's own `__init__` is in ``."""
    return (module.split(".") + [""])[1]


def statements(node: ast.AST, function: str | None = None) -> Iterator[tuple[ast.AST, str | None]]:
    """Every node that the program runs below this one, with the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        if checker_only(child):
            continue
        yield child, function
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from statements(child, inside)


def checker_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def imports(source: Source, modules: set[str]) -> list[Import]:
    """Every import of a file. `from a import b` is an import of a.b where `modules` has it, else of a."""
    return list(dict.fromkeys(each_import(source, modules)))


def each_import(source: Source, modules: set[str]) -> Iterator[Import]:
    for node, function in statements(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, function)
        elif isinstance(node, ast.ImportFrom):
            parts = source.package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module or ""]))
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                version = full == "altgrad.__version__"
                target = full if full in modules or (origin == "altgrad" and not version) else origin
                if not version:
                    yield Import(target, node.lineno, function)


def loaded_at_start(sources: Sequence[Source], modules: set[str]) -> set[str]:
    """Every module, ours or not, that `import altgrad.cli.main` loads by the module-level imports of our files."""
    by_name = {source.module: source for source in sources}
    seen: set[str] = set()
    waiting = ["altgrad.cli.main"]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in seen:
            waiting += [found.target for found in imports(by_name[name], modules) if found.function is None]
            waiting.append(name.rpartition(".")[0])
        seen.add(name)
    return seen


def own(target: str) -> bool:
    return target.split(".")[0] == "altgrad"


def direction(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """Imports go down. The root `__init__` imports nothing at module level, and nobody goes through its lazy names."""
    for source in sources:
        if source.room and not rooms_below(source.room):
            yield source.fault(1, f"room '{source.room}' has no floor; give it one in {Path(__file__).name}")
            continue
        for found in imports(source, modules):
            room = room_of(found.target)
            if not own(found.target):
                if source.room == "formats" and found.target.split(".")[0] not in sys.stdlib_module_names:
                    yield source.fault(found.line, f"formats uses the standard library only, not {found.target}")
            elif source.room == "":
                if found.function is None:
                    yield source.fault(
                        found.line, f"altgrad/__init__.py resolves {found.target} lazily, in __getattr__"
                    )
            elif found.target not in modules:
                yield source.fault(found.line, f"{found.target} is no module; import from the module that defines it")
            elif room not in rooms_below(source.room):
                yield source.fault(found.line, f"imports go down, and {source.room} does not see {room or 'altgrad'}")


def cycles(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """No module imports itself by way of others while it is loading."""
    edges: dict[str, dict[str, str]] = {}
    for source in sources:
        targets = {i.target: source.fault(i.line, "import cycle") for i in imports(source, modules) if not i.function}
        edges[source.module] = {t: where for t, where in targets.items() if own(t)}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        loop = error.args[1][::-1]
        yield f"{edges[loop[0]][loop[1]]} {' -> '.join(loop)}"


def late_imports(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """Our own modules are imported at module level. What the CLI loads at its start is the exception: it loads nothing
    torch-side there, and its functions import what they need, unless the start has loaded that anyway.
    """
    start = loaded_at_start(sources, modules)
    for source in sources:
        starting = source.room == "cli" and source.module in start
        for found in imports(source, modules):
            if not own(found.target) or found.function == "__getattr__":
                continue
            if starting and found.function is None and room_of(found.target) not in {*TORCH_FREE, "cli", ""}:
                yield source.fault(found.line, f"the CLI imports {found.target} inside the command, to start fast")
            elif found.function and not (starting and found.target not in start):
                yield source.fault(found.line, f"import {found.target} at module level, not in {found.function}()")
        for node, function in statements(source.tree):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            dynamic = name in {"import_module", "__import__"} and function != "__getattr__"
            if dynamic and source.room != "spec" and isinstance(node, ast.Call):
                yield source.fault(node.lineno, "only the discovery in spec.py imports by name")


def libraries(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """torch stays out of the torch-free rooms; other heavy libraries are imported in functions of one file a room."""
    owners: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    start = loaded_at_start(sources, modules)
    for source in sources:
        for found in imports(source, modules):
            library = found.target.split(".")[0]
            loads_torch = library in TORCH_LOADERS or found.target == "safetensors.torch"
            if loads_torch and source.room in TORCH_FREE:
                yield source.fault(found.line, f"{source.room} loads no torch, and {found.target} does")
            if loads_torch and source.room in {"", "cli"} and source.module in start and found.function is None:
                yield source.fault(found.line, f"`altgrad --help` must not load {found.target}")
            if library in LAZY:
                if found.function is None:
                    yield source.fault(found.line, f"import {library} inside the function that needs it")
                owners[library, source.room].setdefault(
                    source.path, source.fault(found.line, f"{library} has another owner:")
                )
    for places in owners.values():
        first, *others = sorted(places)
        yield from (f"{places[other]} {first}" for other in others)


def type_checking(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """An import of ours for the type checker alone hides an import in the wrong direction. The library's face has no
    direction to hide, and neither has a package of others, imported late and named in an annotation."""
    for source in sources:
        for node in filter(checker_only, ast.walk(source.tree)):
            for each in node.body:
                of = [each.module or "altgrad"] if isinstance(each, ast.ImportFrom) else []
                of = [alias.name for alias in each.names] if isinstance(each, ast.Import) else of
                if not of or (source.room and any(map(own, of))):
                    yield source.fault(each.lineno, "under TYPE_CHECKING only imports of what is not ours")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING":
                yield source.fault(node.lineno, "from typing import TYPE_CHECKING")


def names(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """A file is named after what it holds."""
    for source in sources:
        for part in BANNED_NAMES & set(source.path.removesuffix(".py").split("/")):
            yield source.fault(1, f"'{part}' names no content; name the file after what it holds")


def lengths(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """A file and a function fit in one reading."""
    for source in sources:
        count = len(source.text.splitlines())
        if count > FILE_LINES:
            yield source.fault(FILE_LINES + 1, f"{count} lines; a file has at most {FILE_LINES}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = (node.end_lineno or node.lineno) - node.lineno + 1
                if long > FUNCTION_LINES:
                    yield source.fault(node.lineno, f"{node.name}() has {long} lines; at most {FUNCTION_LINES}")


def drawing(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """The CLI draws what the library gives: it computes nothing, so it needs no tensors, measures, casts or updates."""
    for source in sources:
        for found in imports(source, modules) if source.room == "cli" else ():
            if found.target.split(".")[0] in {"torch", "numpy", "pandas"} and found.function is None:
                yield source.fault(found.line, f"cli does not import {found.target}; the library computes")
            elif own(found.target) and room_of(found.target) in {"measures", "quantize", "optim"}:
                yield source.fault(found.line, f"cli computes nothing with {found.target}; ask a room above it")


def documented(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """What is public says what it is, once: what overrides or implements a documented interface inherits its words."""
    bases: dict[str, list[str]] = {}
    spoken: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
                own = {each.name for each in node.body if isinstance(each, Function) and ast.get_docstring(each)}
                spoken.setdefault(node.name, set()).update(own)

    def inherited(name: str, method: str) -> bool:
        known = [base for base in bases[name] if base in bases and base != name]
        return any(method in spoken[base] or inherited(base, method) for base in known)

    for source in sources:
        for holder in ast.walk(source.tree):
            own = isinstance(holder, ast.ClassDef)
            for node in holder.body if isinstance(holder, ast.ClassDef | ast.Module) else []:
                if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_") or is_overload(node):
                    continue
                specified = f"{node.name}Spec" in bases  # its spec says what it is
                heard = own and (
                    holder.name.startswith("_") or node.name in OF_TORCH or inherited(holder.name, node.name)
                )
                if not (ast.get_docstring(node) or specified or heard):
                    yield source.fault(node.lineno, f"{node.name} is public and says nothing of itself")


def is_overload(node: ast.AST) -> bool:
    return any(ast.unparse(each).endswith("overload") for each in getattr(node, "decorator_list", []))


def unique(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """One name, one thing: no two public classes or functions of the package share one. A command, a section and a
    verb of the library may be called as what they show or draw."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_") and not is_overload(node):
                drawing = source.room == "cli" and isinstance(node, Function)
                if not drawing and "/sections/" not in source.path:
                    places[node.name].append(source.fault(node.lineno, f"{node.name} is also at"))
    for found in places.values():
        first, *others = found
        yield from (f"{other} {first.rpartition(':')[0]}" for other in others)


def products(sources: Sequence[Source], modules: set[str]) -> Iterator[str]:
    """A kind XSpec stands in one file with the X that it builds."""
    for source in sources:
        classes = [node for node in source.tree.body if isinstance(node, ast.ClassDef)]
        for node in classes:
            product = node.name.removesuffix("Spec")
            if product != node.name and kind_of_family(node) and product not in {each.name for each in classes}:
                yield source.fault(node.lineno, f"{node.name} builds no {product} here")


def kind_of_family(node: ast.ClassDef) -> bool:
    return any(isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == "kind" for each in node.body)


RULES = (
    direction,
    cycles,
    late_imports,
    libraries,
    type_checking,
    names,
    lengths,
    drawing,
    documented,
    unique,
    products,
)


@cache
def read(folder: str) -> list[Source]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def faults(rules: Iterable, sources: Sequence[Source]) -> list[str]:
    modules = {source.module for source in sources}
    return [fault for rule in rules for fault in rule(sources, modules)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    sources = read("altgrad")
    assert {"formats", "spec", "quantize"} <= {source.room for source in sources}, "the package was not found"
    if found := faults([rule], sources):
        pytest.fail("\n".join(found), pytrace=False)


def test_tests_and_benches_are_named_after_what_they_hold():
    assert not faults([names], [*read("tests"), *read("bench")])


# Each planted tree is {path under altgrad/: source}; the empty modules that its imports name are added.
LATE = "def f():\n import pandas"
PLANTED = {
    "upwards": (direction, {"quantize/grid.py": "from altgrad.nn import x"}, "grid.py:1: .*quantize does not see nn"),
    "relative upwards": (direction, {"nn/a.py": "from ..training import x"}, "nn/a.py:1: .*nn does not see training"),
    "sibling": (direction, {"optim/a.py": "\nimport altgrad.models"}, "optim/a.py:2: .*optim does not see models"),
    "beside": (direction, {"store/a.py": "from altgrad.matrix import x"}, "store does not see matrix"),
    "beside too low": (direction, {"measures/a.py": "from altgrad.store import x"}, "measures does not see store"),
    "in a function": (direction, {"spec.py": "def f():\n import altgrad.nn"}, "spec.py:2: .*spec does not see nn"),
    "lazy name": (direction, {"training/a.py": "from altgrad import train"}, "altgrad.train is no module"),
    "eager root": (direction, {"__init__.py": "from altgrad.spec import Spec"}, "resolves altgrad.spec lazily"),
    "formats": (direction, {"formats/a.py": "import numpy.linalg"}, "standard library only, not numpy.linalg"),
    "new room": (direction, {"engine.py": ""}, "room 'engine' has no floor"),
    "cycle": (cycles, {"nn/a.py": "from altgrad.nn import b", "nn/b.py": "from .a import x"}, r"nn.(\w) -> .*nn.\1$"),
    "late": (late_imports, {"nn/a.py": "class A:\n def f(self):\n  import altgrad.spec"}, "nn/a.py:3: .*not in f()"),
    "late light": (
        late_imports,
        {"cli/main.py": "from altgrad import spec\ndef f():\n from altgrad import spec"},
        "main.py:3: ",
    ),
    "early heavy": (
        late_imports,
        {"cli/main.py": "from . import b", "cli/b.py": "import altgrad.nn"},
        "cli/b.py:1: .*inside",
    ),
    "by name": (late_imports, {"nn/a.py": "import importlib\nimportlib.import_module('x')"}, "only the discovery"),
    "torch": (libraries, {"formats/a.py": "def f():\n from torch import nn"}, "formats/a.py:2: formats loads no torch"),
    "torch by proxy": (libraries, {"store/a.py": "from safetensors.torch import x"}, "store loads no torch"),
    "torch in cli": (libraries, {"cli/main.py": "import torch"}, "cli/main.py:1: .*must not load torch"),
    "eager library": (libraries, {"data/a.py": "if 1:\n import datasets"}, "import datasets inside the function"),
    "two owners": (
        libraries,
        dict.fromkeys(["nn/a.py", "nn/b.py"], LATE),
        "nn/b.py:2: pandas .*owner: altgrad/nn/a.py$",
    ),
    "checker only": (type_checking, {"nn/a.py": "if TYPE_CHECKING:\n from altgrad import x"}, "nn/a.py:2: under "),
    "checker's work": (type_checking, {"nn/a.py": "if TYPE_CHECKING:\n import pandas\n x = 1"}, "nn/a.py:3: under "),
    "checker by attribute": (type_checking, {"nn/a.py": "if typing.TYPE_CHECKING:\n pass"}, "nn/a.py:1: from typing"),
    "name": (names, {"nn/helpers/a.py": ""}, "'helpers' names no content"),
    "tensors in cli": (drawing, {"cli/a.py": "from torch import Tensor"}, "cli/a.py:1: cli does not import torch"),
    "numbers in cli": (
        drawing,
        {"cli/a.py": "def f():\n from altgrad.measures.sqnr import x", "measures/sqnr.py": ""},
        "cli/a.py:2: .* with altgrad.measures.sqnr",
    ),
    "long file": (lengths, {"nn/a.py": "x = 1\n" * 401}, "nn/a.py:401: 401 lines"),
    "silent": (documented, {"nn/a.py": "class A:\n 'is'\n def f(self): 0"}, "nn/a.py:3: f is public and says nothing"),
    "two of a name": (
        unique,
        {"nn/a.py": "class A:\n 'is'", "optim/a.py": "class A:\n 'is'"},
        "optim/a.py:1: A is also at altgrad/nn/a.py",
    ),
    "no product": (products, {"nn/a.py": "class ASpec:\n 'is'\n kind: str = 'a'"}, "nn/a.py:1: ASpec builds no A here"),
    "long function": (lengths, {"nn/a.py": "def f():\n" + " x = 1\n" * 60}, r"nn/a.py:1: f\(\) has 61 lines"),
}
CHECKED = "if TYPE_CHECKING:\n from altgrad.nn import x\n"
SOUND = {
    "__init__.py": CHECKED + "__version__ = '1'\ndef __getattr__(name):\n import altgrad.training\n",
    "spec.py": "import importlib, yaml\nfrom altgrad.formats import x\nimportlib.import_module('altgrad.' + x)",
    "store/a.py": "from altgrad import __version__\n"
    + CHECKED.replace("altgrad.nn", "pandas")
    + "from .b import x\ndef _f():\n import wandb",
    "training/a.py": "import torch\nfrom altgrad.store.a import f\nfrom altgrad import matrix, nn",
    "cli/main.py": "import typer\nfrom altgrad.cli.b import x\ndef _f():\n from altgrad import spec\n from . import a",
    "cli/a.py": "from altgrad.training.a import _f\ndef _g():\n import torch",
    "nn/a.py": "def _f():\n" + " x = 1\n" * 59 + "x = 1\n" * 240,
}


def planted(tree: dict[str, str]) -> list[Source]:
    empty = ["__init__.py", "spec.py", "matrix.py", "cli/b.py", "nn/c.py", "store/b.py"]
    empty += [f"{room}/__init__.py" for room in ("formats", "nn", "models", "store", "training")]
    return [Source(f"altgrad/{path}", text) for path, text in (dict.fromkeys(empty, "") | tree).items()]


@pytest.mark.parametrize(("rule", "tree", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_reported_once_with_its_place(rule, tree, message):
    (found,) = faults([rule], planted(tree))
    assert re.search(message, found)


def test_a_sound_tree_has_no_faults():
    assert faults(RULES, planted(SOUND)) == []


def test_every_rule_has_a_planted_violation():
    assert {rule for rule, _, _ in PLANTED.values()} == set(RULES)
