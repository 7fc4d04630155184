"""An estimator of one's own by its name, `package.module:function`.

A bundle comes from outside and may name anything. So nothing of a module runs, not even its first line, unless its
source offers the named function with `@estimator(...)`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from importlib.machinery import ModuleSpec, PathFinder

from model.errors import InputError
from model.estimator import Estimator, estimator

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MARK = f"@{estimator.__name__}(...)"


def is_own_name(name: str) -> bool:
    """Whether the name is of the form `package.module:function`."""
    return bool(_NAME.fullmatch(name))


def import_estimator(name: str) -> Estimator:
    """The estimator that `package.module:function` names.

    Raises:
        InputError: there is no such module here, it does not offer the function, or it can't be imported.
    """
    module, _, function = name.partition(":")
    if not _offers(_source_of(module, name=name), function):
        raise InputError(f"{name}: expected a function marked with {_MARK} in the source of {module}, found none")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # somebody else's code may raise anything
        said = " ".join(str(error).split())
        raise InputError(f"{name}: can't be imported: {type(error).__name__}: {said}") from error
    if not isinstance(found, Estimator):
        raise InputError(f"{name}: expected what {_MARK} of model.estimator makes, found {type(found).__name__}")
    return found


def _source_of(module: str, *, name: str) -> str:
    """The module's text. Unlike `importlib.util.find_spec`, it imports no package on the way."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__ and its like were never found, only run
        return ""
    path = top
    for part in below:
        path = f"{path}.{part}"
        inside = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(path, inside) if inside else None
    if spec is None:
        raise InputError(f"{name}: expected the package {top!r} with it to be installed here, found no module {path!r}")
    return _read_source(spec, module) or ""


def _read_source(spec: ModuleSpec, module: str) -> str | None:
    get_source = getattr(spec.loader, "get_source", None)
    try:
        return get_source(module) if get_source else None
    except (ImportError, OSError, UnicodeDecodeError, SyntaxError):
        return None  # no text: it offers nothing


def _offers(source: str, function: str) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return any(
        isinstance(node, ast.FunctionDef) and node.name == function and any(map(_is_mark, node.decorator_list))
        for node in tree.body
    )


def _is_mark(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else None
    return name == estimator.__name__
