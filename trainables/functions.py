"""Functions of the user, named as `path/to/file.py:function` or `module:function`.

Such a function is run with the rights of the process that calls it. Its source counts by digest.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from trainables.errors import SpecError

_NAME = re.compile(r"(?!.*://).+:[A-Za-z_]\w*")
FORM = "module:function or path/to/file.py:function"


def names_function(text: str) -> bool:
    """Whether a text has the form of a function's name."""
    return _NAME.fullmatch(text) is not None


def split_name(name: str) -> tuple[str, str]:
    """The file or module of a name, and the function in it."""
    where, _, called = name.rpartition(":")
    return where, called


def load_function(name: str, field: str) -> Callable[..., Any]:
    """The function of a name; its file or module is run.

    Args:
        name: Name of the function.
        field: Dotted field with the name, for messages.

    Raises:
        SpecError: The file, module or function does not exist or cannot be imported.
    """
    where, called = split_name(name)
    is_file = where.endswith(".py")
    module = _import_file(Path(where), field) if is_file else _import_module(where, field)
    function = getattr(module, called, None)
    if not callable(function):
        known = [
            other
            for other, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise SpecError(
            f"{field}: got {name!r}, but {where} has no function {called!r}; allowed: "
            f"{', '.join(known) or '(it has none)'}. Correct the name."
        )
    return function  # type: ignore[no-any-return]


def source_digest(name: str, field: str) -> str:
    """Digest `sha256:...` of the source file of a function; a named file is not run.

    Raises:
        SpecError: The module or file does not exist.
    """
    where, _ = split_name(name)
    if where.endswith(".py"):
        path = Path(where).expanduser()
    else:
        path = Path(_import_module(where, field).__file__ or "")
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SpecError(
            f"{field}: {name!r} cannot be read ({error}); allowed: a function in a Python source "
            "file. Correct the path."
        ) from error


def function_error(name: str, field: str, error: Exception, allowed: str) -> SpecError:
    """The error to raise where a function of the user failed."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return SpecError(f"{field}: {name} raised {text}; allowed: {allowed}. Correct the function.")


def _import_module(where: str, field: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise SpecError(
            f"{field}: module {where!r} cannot be imported ({error}); allowed: a "
            "module on Python's path, or path/to/file.py. Check the name or install what it needs."
        ) from error


def _import_file(path: Path, field: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise SpecError(
            f"{field}: there is no file {str(path)!r}; allowed: an existing .py file. "
            "Correct the path."
        )
    # Two files of the same name are two modules; pickle and dataclasses find a module by name.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"lorchestra_function_{path.stem}_{digest}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except (ImportError, SyntaxError) as error:
        del sys.modules[name]
        raise SpecError(
            f"{field}: {str(path)!r} cannot be imported ({error}); allowed: a Python "
            "file whose imports are installed. Correct the file or install what it needs."
        ) from error
    return module
