"""Looking before training: what a model is made of, what a data file trains, how a config will run."""

from __future__ import annotations

from pathlib import Path

from espalier.commands.inspect.config import show_config
from espalier.commands.inspect.data import DataQuestion, show_data
from espalier.commands.inspect.model import show_model
from espalier.data.read.files import SUFFIXES, WANTED
from espalier.errors import UserError
from espalier.models.run_folder import find_model


def inspect(
    what: str,
    question: DataQuestion,
    *,
    as_json: bool = False,
    html: Path | None = None,
    with_probe: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Find out what it is and show it.

    Args:
        what: a model's or a run's folder, a data file, folder or glob, or a YAML file.
        question: how to look at data; of a config only how many records to show.
        html: a page to write beside what is printed; not for models.
        with_probe: of a model, whether its weights are loaded to find its layout.
        trust_remote_code, allow_pickle: of a model, as in `models.open.open_model`.

    Raises:
        UserError: it is none of these, or the data has errors that a run would stop at.
    """
    what = find_model(what)
    path = Path(what)
    if path.suffix in (".yaml", ".yml"):
        show_config(path, question.limit, as_json=as_json, html=html)
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        if html is not None:
            raise UserError("--html is for data and configs; a model is shown as a table, or with --json.")
        show_model(
            what,
            as_json=as_json,
            with_probe=with_probe,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
    elif path.name.lower().endswith(SUFFIXES) or path.is_dir() or "*" in what:
        show_data(what, question, as_json=as_json, html=html)
    else:
        raise UserError(f"{what}: is no model folder (config.json), no data file ({WANTED}) and no YAML.")
