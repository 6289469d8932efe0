"""The options of stages, read from their modules' text: what a stage's file declares, without the seconds of torch.

A class made here has the keys of the real one, with their types and ranges where the text alone says them; where it
does not (the names of losses, which stand in a table), any value passes. What keys mean together is left to the real
classes, which are asked next.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import make_dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from espalier.config import stage_defaults
from espalier.config.option import Options, option
from espalier.config.options import COMMON, RunOptions
from espalier.stages.objectives import NAMES

_KNOWN = {"option": option, "Literal": Literal, "Any": Any, **vars(stage_defaults)}


def declared() -> dict[str, tuple[type, ...]]:
    """Stage -> its option classes, as `espalier.runs.catalogue.CLASSES` has them, `sample` and `evaluate` too."""
    classes = {name: (*COMMON, *_own(f"espalier.stages.objectives.{name}")) for name in NAMES}
    rolled = _class("espalier.stages.rollout_options", "RolloutOptions")
    classes["sample"] = (*COMMON, rolled, _class("espalier.runs.sample", "SampleOptions"))
    classes["evaluate"] = (RunOptions, _class("espalier.runs.examine", "ExamOptions"))
    return classes


def _own(module: str) -> list[type]:
    """The classes among the arguments of the module's ``STAGE = Stage(…)``."""
    stage = next(
        node.value
        for node in _tree(module).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "STAGE"
    )
    assert isinstance(stage, ast.Call)
    given = {word.arg: word.value for word in stage.keywords}
    listed = given.get("options") or (stage.args[2] if len(stage.args) > 2 else ast.Tuple([]))
    assert isinstance(listed, ast.Tuple)
    return [_class(module, item.id) for item in listed.elts if isinstance(item, ast.Name)]


@cache
def _class(module: str, name: str) -> type:
    """The class that a name means in a module; a real one where its module is light, as those of `config` are."""
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _made(module, node)
        if isinstance(node, ast.ImportFrom) and any(item.name == name for item in node.names):
            assert node.module is not None
            if node.module.startswith("espalier.config"):
                return getattr(sys.modules[node.module], name)  # type: ignore[no-any-return]
            return _class(node.module, name)
    raise AssertionError(f"{module} has no {name}")


def _made(module: str, node: ast.ClassDef) -> type:
    bases = [
        _class(module, base.id) for base in node.bases if isinstance(base, ast.Name) and base.id != "Options"
    ]
    declarations = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    fields = [
        (item.target.id, _value(item.annotation, Any), _value(item.value, option(None, "")))
        for item in declarations
        if isinstance(item.target, ast.Name)
    ]
    return make_dataclass(node.name, fields, bases=tuple(bases) or (Options,), frozen=True, kw_only=True)


def _value(node: ast.expr | None, otherwise: Any) -> Any:
    """What an expression of our own source means, where it needs nothing of its module."""
    assert node is not None
    try:
        return eval(compile(ast.Expression(node), "<options>", "eval"), dict(_KNOWN))
    except NameError:
        return otherwise


@cache
def _tree(module: str) -> ast.Module:
    package, _, name = module.rpartition(".")
    folder = files("espalier").joinpath(*package.split(".")[1:])
    return ast.parse(folder.joinpath(f"{name}.py").read_text("utf-8"))
