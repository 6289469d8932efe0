"""A YAML file and `key=value` words of the command line -> one mapping that knows where each key stands.

Says nothing about which keys exist; that is :mod:`espalier.config.build`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from espalier.config.names import SWITCHES, SYNONYMS
from espalier.errors import UserError


class RawConfig(dict[str, Any]):
    """A mapping that remembers where each key stands and how it was written there.

    ``places`` is ``{"cutoff_len": "sft.yaml:3"}`` and ``written`` is ``{"cutoff_len": "max_length"}``; keys that came
    from Python have neither.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        places: Mapping[str, str] | None = None,
        written: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(values or {})
        self.places: dict[str, str] = dict(places or {})
        self.written: dict[str, str] = dict(written or {})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RawConfig:
        """`values` itself, or a copy without places of a mapping that has none."""
        return values if isinstance(values, RawConfig) else cls(values)

    def where(self, key: str) -> str:
        """How a message about this key begins: "sft.yaml:3: `cutoff_len` (written `max_length`)"."""
        written = self.written.get(key, key)
        place = f"{self.places[key]}: " if key in self.places else ""
        return f"{place}`{key}`" + (f" (written `{written}`)" if written != key else "")


class _Loader(yaml.SafeLoader):
    """YAML with keys that know their line, no key twice, and 1e-5 read as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    placed = RawConfig()
    yield placed
    seen: dict[Any, int] = {}
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        key: Any = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        try:
            earlier = seen.setdefault(key, line)
        except TypeError:
            raise UserError(
                f"{loader.name}:{line}: a key must be a plain word, not a list or a mapping."
            ) from None
        if earlier != line:
            raise UserError(
                f"{loader.name}:{line}: `{key}` stands a second time (first in line {earlier}). Remove one."
            )
        placed[key] = loader.construct_object(value_node, deep=True)
        placed.places[key] = f"{loader.name}:{line}"


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 wants a dot in a number with an exponent; every other reader of 1e-5 takes it as a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_yaml(path: str | Path, overrides: Sequence[str] = ()) -> RawConfig:
    """Reads one YAML file and lays `key=value` words over it (each value read as YAML).

    A dotted key reaches into a mapping (``model_config.hidden_size=64``) or, in a pipeline, into one stage
    (``sft.learning_rate=1e-4``). ``key=null`` takes a key away. A synonym replaces the key that it means.

    Raises:
        UserError: no such file (with near names), not UTF-8, a YAML error (file:line:column), a key twice, not a
            mapping, or a word that is not key=value.
    """
    raw = _parse(_read(Path(path)), str(path))
    if not isinstance(raw, RawConfig):
        content = (
            "is empty" if raw is None else f"holds {'a list' if isinstance(raw, list) else repr(raw)[:60]}"
        )
        raise UserError(f"{path}: the file {content}; wanted `key: value` lines, for example `stage: sft`.")
    for override in overrides:
        _override(raw, override)
    return raw


def _read(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the YAML file in it.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {_near_files(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either; check the path."
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    if not near:
        return f"There is no YAML file in {folder.resolve()}; check the path."
    return "Near it: " + ", ".join(str(folder / name) for name in near) + "."


def _parse(text: str, name: str) -> Any:
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise UserError(
            f"{place}: not valid YAML: {what}. Wanted `key: value` lines, indented by spaces (never tabs)."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def _override(raw: RawConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not key:
        raise UserError(f"`{override}` is not an option; wanted key=value, for example learning_rate=1e-5.")
    value = _parse(text, f"the command line ({key})")
    *folders, last = key.split(".")
    target: dict[str, Any] = raw
    for folder in folders:
        target = _inside(target, folder, override)
    for same in [old for old in target if _meaning(old) == _meaning(last)]:
        del target[same]
    target[last] = value
    if isinstance(target, RawConfig):
        target.places[last] = "the command line"


def _meaning(key: str) -> str:
    """The option that a key sets, so that the command line replaces what the file calls by another name."""
    return SWITCHES[key][0] if key in SWITCHES else SYNONYMS.get(key, key)


def _inside(target: dict[str, Any], name: str, override: str) -> dict[str, Any]:
    stages = target.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict) and stage.get("name") == name:
            return stage
    inner = target.setdefault(name, RawConfig())
    if not isinstance(inner, dict):
        raise UserError(
            f"`{override}`: `{name}` is neither a stage's name nor a mapping here, so nothing is in it."
        )
    return inner
