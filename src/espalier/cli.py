"""The commands. Each is a few lines: it reads arguments, calls one function, and turns errors into exit codes.

0 done; 2 the user's input is wrong (one message, no traceback); 3 stopped by a signal, and what was done is kept;
1 a bug (traceback); 128 + its number where a signal ended it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text
from typer.core import TyperCommand

from espalier.commands.certify import certify
from espalier.commands.chat import chat
from espalier.commands.convert import convert
from espalier.commands.evaluate import evaluate
from espalier.commands.export import export
from espalier.commands.init.command import init
from espalier.commands.inspect.command import inspect
from espalier.commands.judge import judge
from espalier.commands.merge import merge
from espalier.commands.plan.command import plan
from espalier.commands.prepare import prepare
from espalier.commands.quantize import quantize
from espalier.commands.rlhf import command as rlhf_command
from espalier.commands.scores import scores
from espalier.commands.serve import serve
from espalier.commands.vocab import vocab
from espalier.commands.web import web
from espalier.config.chosen import Chosen
from espalier.config.words import file_and_overrides
from espalier.disk.writing import disk_error, is_refusal
from espalier.engine.parent import Parent, connected, has_the_word
from espalier.engine.signals import Ended, raising
from espalier.errors import Stopped, UserError
from espalier.noise import announce_slow_imports, show_only_ours
from espalier.runs.first_look import first_look
from espalier.screen import Screen, safe
from espalier.stages.objectives import descriptions

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, examine and talk to language models on token trees.",
)

File = Annotated[str, typer.Argument(metavar="FILE.yaml", help="The options, as flat YAML.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Options that win over the file's.")
]
_WrongCall: Any = next(kind for kind in reversed(typer.BadParameter.__mro__) if "show" in vars(kind))
"""Any mistake in the arguments: what can show itself. Newer versions of typer bring click inside, so that it cannot be
imported as click's own."""
_KEYS_WITH_DASHES = {"ignore_unknown_options": True}
"""`--learning_rate 3` is `learning_rate=3` (`file_and_overrides`); an option that is none is found as an unknown key."""
_errors = Screen(stderr=True)
_state = {"verbose": False}


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Always show tracebacks.")] = False,
) -> None:
    _state["verbose"] = verbose


@app.command(context_settings=_KEYS_WITH_DASHES)
def run(
    file: File,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Of a pipeline: this step alone; may be repeated.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="Of a pipeline: begin with this step.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Of a pipeline: end with this step.")] = None,
) -> None:
    """Run a file: one stage (`stage:`) or a pipeline (`stages:`). Again = continue where it stopped."""
    raise typer.Exit(_on_all([file, *(overrides or [])], Chosen(tuple(only or ()), first, last)))


def _on_all(words: list[str], chosen: Chosen, stage: str | None = None) -> int:
    """A run; the exit code. A first signal is a stop wherever it comes, for between the steps nothing can be lost."""
    try:
        file, overrides = file_and_overrides(words)
        overrides = [*([f"stage={stage}"] if stage else []), *overrides]
        # A rank's parent has looked, or each would say the same.
        if "WORLD_SIZE" not in os.environ and first_look(file, overrides, chosen):
            return 0
        from espalier.runs.pipeline import run_on_all

        return run_on_all(file, overrides, ["-v"] if _state["verbose"] else [], chosen)
    except Ended as end:
        if end.again:
            raise
        raise Stopped(
            f"stopped by {end}; all that was done is kept. Run the same command again to continue."
        ) from None


class _StageCommand(TyperCommand):
    """A command whose ``--help`` goes on with the keys of its stage."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from espalier.commands.reference import stage_keys

        formatter.write(stage_keys(self.name or ""))


def _stage_command(stage: str, text: str) -> None:
    def command(file: File, overrides: Overrides = None) -> None:
        raise typer.Exit(_on_all([file, *(overrides or [])], Chosen(), stage))

    app.command(stage, help=text, cls=_StageCommand, context_settings=_KEYS_WITH_DASHES)(command)


for _name, _text in descriptions().items():
    _stage_command(_name, _text)
_stage_command(
    "sample",
    "Answers of a model, sampled and scored, as records to train on: pairs, rankings or the best ones.",
)


app.command()(init)
app.command("rlhf")(rlhf_command(lambda file: _on_all([file], Chosen())))
app.command()(evaluate)
app.command()(scores)
app.command()(judge)
app.command()(convert)
app.command()(export)
app.command()(prepare)
app.command()(inspect)
app.command()(plan)
app.command()(merge)
app.add_typer(vocab, name="vocab")
app.command()(quantize)
app.command()(certify)
app.command()(serve)
app.command()(chat)
app.command()(web)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: smaller data and model.")] = False,
    seed: Annotated[int, typer.Option(help="Of the data and of all that is drawn.")] = 1,
) -> None:
    """The whole chain on data that the package makes: text to a judged model, in minutes on two cores."""
    from espalier.demo.chain import run_demo

    raise typer.Exit(run_demo(out, quick=quick, seed=seed))


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write the run's HTML page again."""
    from espalier.report.page import write_report

    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: there is no such folder. Give the output_dir of a run.")
    print(safe(str(write_report(run_folder))))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A script of benchmarks/, such as attention.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.")] = None,
) -> None:
    """Run one of the benchmarks of a checkout."""
    import subprocess

    folder = Path("benchmarks")
    script = folder / f"{name}.py"
    if not script.is_file():
        known = (
            ", ".join(sorted(p.stem for p in folder.glob("[!_]*.py")))
            or "none: run this in a checkout of Espalier"
        )
        raise UserError(f"there is no benchmark {name!r} in {folder.resolve()}. Here: {known}.")
    raise typer.Exit(
        subprocess.run([sys.executable, str(script), *(arguments or [])], check=False).returncode
    )


def main() -> NoReturn:
    """The entry point of the command `espalier`."""
    show_only_ours()
    announce_slow_imports()
    sys.exit(guarded(lambda: app(standalone_mode=False)))


def guarded(call: Callable[[], Any]) -> int:
    """Run and turn what happens into an exit code. A rank of ours tells its parent, who speaks for all of them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    parent = connected()
    try:
        with raising() as ended:
            code = call()
        if ended and code == 128 + signal.SIGINT:  # typer's code for whatever signal
            return 128 + ended[-1].number
        return code if isinstance(code, int) else 0
    except typer.Exit as wish:
        return wish.exit_code
    except typer.Abort:
        return 128 + signal.SIGINT
    except UserError as error:
        return _said(error, parent)
    except Stopped as stopped:
        if parent is not None:
            parent.tell("stopped", str(stopped))
        elif has_the_word():
            _errors.say(str(stopped))
        return 3
    except Ended as end:
        return 128 + end.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if is_refusal(error):  # of a library's own file, most often a temporary one
            place = getattr(error, "filename", None) or tempfile.gettempdir()
            return _said(disk_error(Path(str(place)), error), parent)
        if isinstance(error, _WrongCall):
            error.show()
            return 2
        if parent is None:
            raise
        parent.tell("bug", traceback.format_exc())
        return 1


def _said(error: UserError, parent: Parent | None) -> int:
    if _state["verbose"]:
        _errors.print_exception()
    if parent is not None:
        parent.tell("error", str(error))
    elif has_the_word():
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[rank {rank}] "
        _errors.print(Text.assemble(where, ("error:", "bold red"), " ", safe(str(error))), soft_wrap=True)
    return 2


if __name__ == "__main__":
    main()
