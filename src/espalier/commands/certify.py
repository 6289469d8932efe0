"""The command `espalier certify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from espalier.models.certificate import Found

PROMPTS = (
    "What is 3 plus 4? Answer with a number.",
    "Write one sentence about the sea.",
    "请用一句话介绍长城。",
    "把下面的词按字母顺序排列：banana, apple, cherry。",
    "def add(a, b):",
    "  white space,\n\nand two line breaks  ",
    "🙂 naïve café — “quotes”",
    "1,024 × 3.5e3 = ?",
)
"""What is asked where no file is named: two languages, digits, code, white space and rare characters."""


def certify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model as it was trained.")],
    forms: Annotated[
        list[str],
        typer.Argument(metavar="FORM ...", help="The same, merged, quantised, exported (.gguf) or saved."),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines with a `prompt` each, in place of a few of both languages."),
    ] = None,
    max_kl: Annotated[float, typer.Option(min=0, help="The most that may differ, in nats a token.")] = 1e-3,
    max_score_error: Annotated[float, typer.Option(min=0, help="Of a reward model's scores.")] = 1e-3,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Of the likeliest answer that is compared.")
    ] = 24,
    out: Annotated[Path | None, typer.Option(help="Write the certificate here, as JSON.")] = None,
) -> None:
    """Whether other forms of a model still are that model: token ids, probabilities, likeliest answers, scores."""
    from espalier.engine import files
    from espalier.models.certificate import compare_forms, open_form
    from espalier.screen import Screen

    texts = list(PROMPTS) if prompts is None else _read(prompts)
    console = Screen()
    opened, found = open_form(model), []
    for form in forms:
        console.say(f"comparing {form}", "dim")
        found.append(compare_forms(opened, form, texts, max_new_tokens=max_new_tokens))
    failures = {one.form: one.failures(max_kl, max_score_error) for one in found}
    _show(console, model, found)
    for one in found:
        if one.first_other is not None:
            prompt, mine, other = one.first_other
            console.say(
                f"{one.form}: another answer to {prompt!r}: {other!r}, and the model's own is {mine!r}", "dim"
            )
    for form, lines in failures.items():
        for line in lines:
            console.say(f"{form}: {line}", "bold red")
    passed = not any(failures.values())
    if passed:
        console.say(f"certified: within {max_kl:g} nats a token of {model}", "green")
    if out is not None:
        made = {
            "model": model,
            "prompts": texts,
            "max_kl": max_kl,
            "max_score_error": max_score_error,
            "passed": passed,
            "forms": {one.form: {**one.as_json(), "failures": failures[one.form]} for one in found},
        }
        files.write_json(out, made)
    raise typer.Exit(0 if passed else 1)


def _read(path: Path) -> list[str]:
    from espalier.data.read.files import read_rows
    from espalier.data.records import BadRecord
    from espalier.errors import UserError

    texts = []
    for place, row, _ in read_rows(path):
        text: Any = None if isinstance(row, BadRecord) else row.get("prompt")
        if not isinstance(text, str) or not text:
            raise UserError(f"{place}: wanted a JSON object with a `prompt`, a text.")
        texts.append(text)
    if not texts:
        raise UserError(f"{path}: no prompt in it.")
    return texts


def _show(console: Any, model: str, found: list[Found]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"against {model}", title_justify="left", box=box.SIMPLE, padding=(0, 1), pad_edge=False
    )
    table.add_column("form", overflow="fold")
    for name in ("same ids", "KL, nats", "same choice", "same answers", "scores off"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        differ = one.differences
        table.add_row(
            one.form,
            f"{one.same_ids}/{one.prompts}",
            "-" if differ is None else f"{differ.kl:.2g}",
            "-" if differ is None else f"{differ.same_choice:.1%}",
            "-" if one.same_answers is None else f"{one.same_answers}/{one.prompts}",
            "-" if one.score_error is None else f"{one.score_error:.2g}",
        )
    console.print(table)
