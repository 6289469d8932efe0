"""Data that no format of ours fits: a function of the user's own reads it, and gives rows in any format of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from espalier.data.read.lines import Placed
from espalier.data.read.messages import shown
from espalier.data.records import BadRecord
from espalier.errors import UserError
from espalier.own_code import function_of, load, modules_of, said, unfit


def check_reader(reader: object, what: str) -> str:
    """The name of a reader, ``FILE.py:FUNCTION``, whose file can be compiled.

    Raises:
        UserError: it is none; `what` names the place that says it.
    """
    path, _, name = reader.rpartition(":") if isinstance(reader, str) else ("", "", "")
    if not path.endswith(".py") or not name:
        raise UserError(
            f"{what}: `reader` is {reader!r}; wanted FILE.py:FUNCTION, a function of a path that yields dicts"
        )
    if (problem := unfit(path)) is not None:
        raise UserError(f"{what}: `reader`: {problem}")
    return str(reader)


def reader_files(reader: str) -> list[Path]:
    """The file of a reader, and what lies beside it that it imports: a change of them changes the data."""
    return modules_of(Path(reader.rpartition(":")[0]))


def read_with(reader: str, path: Path) -> Iterator[Placed]:
    """The rows that a reader gives for a file or folder; the place of each is its number.

    What lies beside the reader's file can be imported, behind everything that is installed.

    Raises:
        UserError: what the function raised, with its line; it has given no rows.
    """
    file, _, name = reader.rpartition(":")
    number = 0
    folder = str(Path(file).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        rows = function_of(load(file, "reader"), file, name)(path)
        if not hasattr(rows, "__iter__") or isinstance(rows, (str, Mapping)):
            raise TypeError(f"{name} returned {shown(rows)}, wanted dicts one by one (use `yield`)")
        for number, row in enumerate(rows, start=1):
            place = f"{path}:{number}"
            if isinstance(row, Mapping):
                yield place, dict(row), ""
            else:
                reason = f"{reader} gave {shown(row)}, wanted a dict with named columns"
                yield place, BadRecord(place, "not an object", reason), ""
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{path}, behind record {number}" if number else str(path)
        raise UserError(f"reader {reader}, {where}: {said(error, file)}") from error
