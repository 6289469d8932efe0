"""LLaMA-Factory's `dataset_info.json`: names of data sets -> where they lie and what their columns are called.

A name becomes a `DatasetSpec` with the columns renamed to ours; speakers with names of their own become ours row by
row (`retagged`). Pictures, sound and loading by script are refused, because only text is trained.
"""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.errors import UserError

NAME = "dataset_info.json"
DEFAULT_FOLDER = "data"
"""Where LLaMA-Factory looks for the file when `dataset_dir` is not given."""

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_BOTH = {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}
_DEFAULTS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
}
_MEDIA = ("images", "videos", "audios")
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLE_OF = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def looked_up(entry: Any, dataset_dir: str | None) -> Any:
    """An entry of `dataset` by its meaning in the table, if it is a name of it and no path; its own keys win."""
    own = {"path": str(entry)} if isinstance(entry, (str, Path)) else entry
    if not isinstance(own, Mapping) or not isinstance(own.get("path"), str):
        return entry
    name, folder = own["path"], Path(dataset_dir or DEFAULT_FOLDER).expanduser()
    there = (folder / NAME).is_file()
    named = there and name in read_info(folder)
    if not (
        named and dataset_dir is not None
    ):  # a folder called `data` beside us does not change what a path means
        if Path(name).expanduser().exists() or glob.has_magic(name) or (dataset_dir is None and not there):
            return entry
        if (folder / name).exists():
            return {**own, "path": str(folder / name)}
        if "/" in name and not named:
            return entry  # a hub id, or a path that does not exist
    return {**entry_of(name, folder), **{key: value for key, value in own.items() if key != "path"}}


def as_described(
    row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str] | None, kind: str
) -> dict[str, Any]:
    """A row with our column names, as far as it has `columns` (ours: theirs), and with our speakers.

    For documents, the instruction is the text, as it is in LLaMA-Factory's pretraining.
    """
    if kind == "text" and "instruction" in columns:
        columns = {"text": columns["instruction"]}
    described = {name: value for name, value in row.items() if name not in columns.values()}
    described.update({ours: row[theirs] for ours, theirs in columns.items() if theirs in row})
    return retagged(described, tags) if tags else described


def read_info(folder: Path) -> dict[str, dict[str, Any]]:
    """The table of `folder`/dataset_info.json. Raises `UserError` where it is missing or no table."""
    path = folder / NAME
    try:
        table = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"dataset_dir: {folder} holds no {NAME}; give the folder that does, or paths in `dataset`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); repair it") from None
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise UserError(f"{path}: wanted an object of objects, {{name: {{file_name: …}}}}")
    return table


def entry_of(name: str, folder: Path) -> dict[str, Any]:
    """What a spec (see `sources.DatasetSpec`) must say for the data set `name` of `folder`'s table.

    Raises `UserError` for an unknown name (with near ones), a place we cannot read, and media.
    """
    table = read_info(folder)
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else f"it names {', '.join(list(table)[:8])}"
        raise UserError(f"dataset: {name!r} is neither a file nor in {folder / NAME}; {hint}")
    entry = table[name]
    what = f"{folder / NAME}: {name!r}"
    form = entry.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{what} has the formatting {form!r}; wanted alpaca or sharegpt")
    columns = entry.get("columns") or _DEFAULTS["sharegpt" if form != "alpaca" else "alpaca"]
    media = [column for column in _MEDIA if column in columns]
    if media:
        raise UserError(f"{what} has {', '.join(media)}; only text can be trained. Remove it from `dataset`.")
    return {
        "path": _place(entry, what, folder),
        "split": entry.get("split"),
        "subset": entry.get("subset"),
        "samples": entry.get("num_samples"),
        "columns": _columns(columns, form, what),
        "tags": _tags(entry.get("tags") or {}, form, columns),
        "optional_columns": True,
    }


def _place(entry: Mapping[str, Any], what: str, folder: Path) -> str:
    if "script_url" in entry:
        raise UserError(
            f"{what} is loaded by a script of its own, which is not run here; give its files instead"
        )
    if "file_name" in entry:
        return str(folder / entry["file_name"])
    for key in ("hf_hub_url", "ms_hub_url", "om_hub_url"):
        if key in entry:
            return str(entry[key])
    raise UserError(f"{what} has no file_name and no hf_hub_url; wanted one of them")


def _columns(columns: Mapping[str, str], form: str, what: str) -> dict[str, str]:
    """Our column names -> those of the file."""
    known = {**_BOTH, **(_ALPACA if form == "alpaca" else {"messages": "conversations"})}
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise UserError(f"{what} names the column {unknown[0]!r}; known are {', '.join(known)}")
    return {known[name]: theirs for name, theirs in columns.items() if theirs}


def _tags(tags: Mapping[str, str], form: str, columns: Mapping[str, str]) -> dict[str, str] | None:
    """The names of keys and speakers, where they are not ShareGPT's own."""
    if form == "alpaca":
        return None
    if form == "openai" and not tags:
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                "observation_tag": "tool", "function_tag": "function"}  # fmt: skip
    full = {**_TAGS, **tags}
    return None if full == _TAGS else full


def retagged(row: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """A row whose turns are named by `tags` as one with ShareGPT's names; speakers that no tag names stay as they are.

    >>> tags = {**_TAGS, "role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A"}
    >>> retagged({"conversations": [{"who": "Q", "said": "2+3=?"}]}, tags)
    {'conversations': [{'from': 'human', 'value': '2+3=?'}]}
    """
    roles = {tags[tag]: role for tag, role in _ROLE_OF.items() if tag in tags}

    def turn(value: Any) -> Any:
        if not isinstance(value, Mapping) or tags["role_tag"] not in value:
            return value
        role, ours = value[tags["role_tag"]], (tags["role_tag"], tags["content_tag"])
        further = {key: said for key, said in value.items() if key not in ours}
        return {**further, "from": roles.get(role, role), "value": value.get(tags["content_tag"])}

    renamed = dict(row)
    for name in ("conversations", "chosen", "rejected"):
        value = renamed.get(name)
        if isinstance(value, list):
            renamed[name] = [turn(item) for item in value]
        elif isinstance(value, Mapping):
            renamed[name] = turn(value)
    return renamed
