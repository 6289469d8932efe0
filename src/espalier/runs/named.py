"""Whether what an option names is there: data, models, tokenizers, files. Without torch, so that it is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espalier.config.option_set import OptionSet
from espalier.config.options import DataOptions
from espalier.data.read.sources import files_of
from espalier.data.read.specs import parse_specs
from espalier.disk.reading import read_object
from espalier.errors import UserError
from espalier.models.hub_reach import check_reachable
from espalier.models.run_folder import check_there, find_model


def check_named(kind: str, key: str, value: Any, options: OptionSet) -> None:
    """Raises UserError where nothing is behind one value of an option.

    Args:
        kind: what it names (`espalier.config.option.Named`); "rewards" are looked at entry by entry.
        key: the option.
        value: a name; anything but a text is another way to give the same, which names nothing.
    """
    if kind == "data":
        for spec in parse_specs(value, options[DataOptions].dataset_dir):
            if files_of(spec) is None:
                check_reachable(spec.path, "datasets")
    elif not isinstance(value, str):
        return
    elif kind == "model":
        folder = find_model(value, say=lambda line: None)
        check_there(folder)
        check_reachable(folder)
    elif kind == "tokenizer":
        check_there(value, f"{key}: ")
        check_reachable(value)
    elif kind == "function":
        path = Path(value.rpartition(":")[0])
        if path.suffix == ".py" and not path.is_file():
            raise UserError(f"{key}: there is no file {path}.")
    else:
        read_object(Path(value), key)
