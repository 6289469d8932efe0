"""Python files of the user's own: loaded as modules, what they raise told with its line, what belongs to them.

Only the standard library, so that a process that runs such a file starts in a tenth of a second.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load(path: str, kind: str) -> ModuleType:
    """Execute a file as a module like any other: it stands in `sys.modules`, where dataclasses look for it.

    Args:
        kind: a word before its name there, for a file may be called math.py.

    Raises:
        Exception: whatever the file raises.
    """
    file = Path(path).resolve()
    own = f"{kind}_{file.stem}"
    spec = importlib.util.spec_from_file_location(own, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_of(module: ModuleType, path: str, name: str) -> Callable[..., Any]:
    """A function of a loaded file. Raises LookupError where it has none, with what it has."""
    function = vars(module).get(name)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise LookupError(f"{path} has no function {name!r}; it has {', '.join(known) or 'none'}.")
    found: Callable[..., Any] = function
    return found


def said(error: BaseException, path: str) -> str:
    """An exception with the last line of the user's file that it went through: ``rw.py:2: IndexError: …``."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    file = str(Path(path).resolve())
    mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f"{path}:{mine[-1].lineno}: " if mine else ""
    text = f": {mine[-1].line}" if mine and mine[-1].line else ""
    return f"{place}{type(error).__name__}: {error}{f' (in{text})' if text else ''}"


def unfit(path: str) -> str | None:
    """Why a file cannot be run, as far as can be seen without running it; None where nothing is seen."""
    try:
        compile(Path(path).read_bytes(), path, "exec")
    except FileNotFoundError:
        return f"there is no file {path}."
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    except (SyntaxError, ValueError) as error:
        return f"{said(error, path)}. Mend the file."
    return None


def modules_of(path: Path, seen: set[Path] | None = None) -> list[Path]:
    """A file and what lies beside it that it imports, and what that imports; of a package all its files."""
    seen = set() if seen is None else seen
    if path in seen:
        return []
    seen.add(path)
    try:
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    except (OSError, ValueError, SyntaxError):
        return [path]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    modules = [path]
    for name in sorted({name.split(".")[0] for name in names}):
        if (package := path.parent / name).is_dir():
            near = sorted(package.rglob("*.py"))
        else:
            near = [path.with_name(f"{name}.py")]
        modules += [module for one in near if one.is_file() for module in modules_of(one, seen)]
    return modules
