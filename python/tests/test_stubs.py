"""The type stubs name the functions that there are, and their parameters."""

import ast
import inspect
import pathlib

import pytest

import xent

TREE = ast.parse(pathlib.Path(xent.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
FUNCTIONS = [node for node in TREE.body if isinstance(node, ast.FunctionDef)]
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}


def options(name):
    """The keys of a TypedDict, those of its bases among them."""
    node = CLASSES[name]
    keys = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    for base in node.bases:
        if base.id in CLASSES:
            keys |= options(base.id)
    return keys


def parameters(node):
    names = {argument.arg for argument in node.args.posonlyargs + node.args.args + node.args.kwonlyargs}
    if node.args.kwarg is not None:
        names |= options(node.args.kwarg.annotation.slice.id)
    return names


def test_all_functions():
    functions = {name for name in xent.__all__ if not inspect.isclass(getattr(xent, name)) and name != "__version__"}
    assert {node.name for node in FUNCTIONS} == functions


@pytest.mark.parametrize("name", sorted({node.name for node in FUNCTIONS}))
def test_parameters(name):
    function = getattr(xent, name)
    if not inspect.isbuiltin(function):
        pytest.skip("its signature is not for inspect to see")
    union = set().union(*(parameters(node) for node in FUNCTIONS if node.name == name))
    assert union == set(inspect.signature(function).parameters)
