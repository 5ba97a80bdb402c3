"""Claims about the library as a whole: no room hides a verb, and every public name is typed and says what it is."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import altgrad

PROGRAM = """
import importlib, inspect, json, pkgutil, sys, types
import altgrad
import altgrad.diagnosis, altgrad.training

compiler = "torch._dynamo" in sys.modules
modules = [each.name for each in pkgutil.walk_packages(altgrad.__path__, "altgrad.")]
for name in modules:
    importlib.import_module(name)


def about(name):
    found = getattr(altgrad, name)
    unbound = found.__init__ if inspect.isclass(found) else found
    parameters = [] if not inspect.isfunction(unbound) else inspect.signature(unbound).parameters.values()
    untyped = [p.name for p in parameters if p.annotation is p.empty and p.name != "self"]
    if inspect.isfunction(found) and inspect.signature(found).return_annotation is inspect.Signature.empty:
        untyped.append("return")
    return {
        "module": isinstance(found, types.ModuleType), "callable": callable(found), "says": inspect.getdoc(found) or "",
        "untyped": untyped, "home": found.__module__, "function": inspect.isfunction(found),
    }


print(json.dumps([compiler, modules, {name: about(name) for name in altgrad.__all__ if name != "__version__"}]))
"""
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def found() -> Any:
    """In a process of its own: every submodule was imported, then every public name was looked up."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_torchs_compiler_is_not_loaded_before_something_is_compiled(found: Any) -> None:
    compiler, _, _ = found
    assert not compiler, "two seconds of every command that loads torch"


def test_no_room_hides_a_verb(found: Any) -> None:
    _, modules, names = found
    assert {"altgrad.training.loop", "altgrad.cli.main", "altgrad.store.frames"} <= set(modules)
    hidden = [name for name, about in names.items() if about["module"] or not about["callable"]]
    rooms = {module.split(".")[1] for module in modules} & {name for name, about in names.items() if about["function"]}
    assert not hidden and not rooms
    assert all(about["home"].startswith("altgrad.") for about in names.values())


def test_every_public_name_is_typed_and_says_what_it_is(found: Any) -> None:
    _, _, names = found
    assert {"train", "runs", "quantize_model", "load_quantized", "watch"} <= set(names)
    assert {name: about["untyped"] for name, about in names.items() if about["untyped"]} == {}
    silent = [name for name, about in names.items() if not about["says"].split("\n")[0].endswith((".", ":"))]
    assert not silent, "the first line of a docstring is a sentence"


def test_a_type_checker_sees_the_names_where_the_program_finds_them() -> None:
    tree = ast.parse((ROOT / "altgrad/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: each.module for each in block.body if isinstance(each, ast.ImportFrom) for alias in each.names
    }
    assert seen == altgrad._HOMES
