"""Functions are short and take few arguments (where more belongs together, a small dataclass says so); a word means one thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import espalier

SOURCE = Path(espalier.__file__).parent
LINES, PARAMETERS = 60, 8

FOREIGN = {
    "exam/lm_eval.py: __init__",  # lm_eval calls it with names of its own
    "models/legacy/native.py: forward",  # as the classes of transformers are called
    "api.py: generate",  # for people: keywords as every library of the field has them
}
"""Functions whose parameters others have chosen."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(SOURCE).as_posix()}: {node.name}", node


def is_command(node: Function) -> bool:
    """Whether typer makes a command of it, whose options are its parameters: their list is as long as it must be."""
    given = [*node.args.args, *node.args.kwonlyargs]
    return any("typer." in ast.unparse(one.annotation) for one in given if one.annotation is not None)


def lines(node: Function) -> int:
    """The lines of a function; of a command those below its options."""
    first = node.body[0].lineno if is_command(node) else node.lineno
    return (node.end_lineno or first) - first + 1


def parameters(node: Function) -> int:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(one.arg not in ("self", "cls") for one in given) + sum(
        one is not None for one in (node.args.vararg, node.args.kwarg)
    )


def test_functions_are_short() -> None:
    long = {name for name, node in functions() if lines(node) > LINES}
    assert long == set()


def test_functions_take_few_parameters() -> None:
    wide = {name for name, node in functions() if parameters(node) > PARAMETERS and not is_command(node)}
    assert wide - FOREIGN == set()
    assert wide >= FOREIGN, "an exception that nothing needs any more"


def test_a_class_name_means_one_thing() -> None:
    """But for how an exam's answers are written, and what `espalier.generate` gives: each is the word of its readers."""
    rooms: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                rooms.setdefault(node.name, set()).add(path.relative_to(SOURCE).as_posix())
    assert len(rooms) > 200
    assert {name: files for name, files in rooms.items() if len(files) > 1} == {
        "Generation": {"api.py", "exam/task.py"}
    }
