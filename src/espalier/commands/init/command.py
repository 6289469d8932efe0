"""The command `espalier init`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from espalier.commands.init.comments import LANGUAGES, Language
from espalier.commands.init.recipe import EXAM, GOALS, HARDWARE, NEW, REWARDED, Answers, written
from espalier.commands.written import check_free, write_new
from espalier.errors import UserError
from espalier.screen import Screen

_FROM_SCRATCH = ("pretrain", "sft")


def init(
    goal: Annotated[str | None, typer.Option(help=f"One of {', '.join(GOALS)}.")] = None,
    model: Annotated[str | None, typer.Option(help="A local model, a hub id, or new (from scratch).")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="What to learn from; may be repeated. Of evaluate: its tasks.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="cpu, gpu (one) or gpus (all of this machine).")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of the comments: en or zh.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="Of ppo and grpo: a reward model, a rule, or FILE.py:FUNCTION.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="What to write; GOAL.yaml.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: what is not given is as suggested.")
    ] = False,
) -> None:
    """Five questions, and a first file of options with comments, ready for `espalier run`."""
    ask = _Asker(yes)
    chosen = ask.choice("goal", "What is it for? 目标", goal, GOALS, "sft")
    file = out or Path(f"{chosen}.yaml")
    check_free(file)
    fresh = f" ({NEW}: from scratch)" if chosen in _FROM_SCRATCH else ""
    begin = ask.text(
        "model",
        f"Which model? A folder or a hub id{fresh}. 模型",
        model,
        NEW if chosen == "pretrain" else None,
    )
    if begin == NEW and chosen not in _FROM_SCRATCH:
        raise UserError(
            f"--model {NEW} is for {' and '.join(_FROM_SCRATCH)}; {chosen} begins from a trained model."
        )
    what = "Which exams? Names or task files" if chosen == EXAM else "Which data? Files, globs or hub ids"
    named = data or ask.text("data", f"{what}, with commas. 数据", None, None).split(",")
    answers = Answers(
        goal=chosen,
        model=begin,
        data=tuple(name.strip() for name in named),
        hardware=ask.choice("hardware", "On what does it run? 硬件", hardware, HARDWARE, _found_hardware()),
        language=cast(
            Language, ask.choice("language", "Language of the comments? 注释语言", language, LANGUAGES, "en")
        ),
        reward=_reward(ask, chosen, reward),
    )
    write_new(file, written(answers, str(file)))
    say = Screen().say
    say(f"written: {file}")
    say(f"look:    espalier inspect {file}")
    say(f"run:     espalier run {file}")


def _reward(ask: _Asker, goal: str, given: str | None) -> str | None:
    """PPO and GRPO want to know what a good answer is; nobody can guess it."""
    if goal in REWARDED:
        asked = "What scores the answers? A reward model's folder, a rule (equals, contains, number, brevity), or "
        return ask.text("reward", f"{asked}FILE.py:FUNCTION. 奖励", given, None)
    if given is not None:
        raise UserError(f"--reward is for {' and '.join(REWARDED)}; {goal} has none. Leave it out.")
    return None


def _found_hardware() -> str:
    """By the devices of NVIDIA's driver, without the second that torch takes."""
    count = sum(Path(f"/dev/nvidia{number}").exists() for number in (0, 1))
    return HARDWARE[count]


class _Asker:
    """Questions on stderr, answers from stdin, a terminal or a pipe; an empty line takes what is suggested."""

    def __init__(self, yes: bool) -> None:
        self._yes, self._screen = yes, Screen(stderr=True)

    def choice(
        self, option: str, question: str, given: str | None, known: Sequence[str], suggested: str
    ) -> str:
        """One of `known`.

        Raises:
            UserError: an answer that is none, which nobody can mend in a pipe.
        """
        while True:
            answer = self.text(option, f"{question} ({', '.join(known)})", given, suggested)
            if answer in known:
                return answer
            wrong = f"--{option} {answer}: wanted one of {', '.join(known)}."
            if given is not None or not sys.stdin.isatty():
                raise UserError(wrong)
            self._screen.say(wrong, "yellow")

    def text(self, option: str, question: str, given: str | None, suggested: str | None) -> str:
        """What was given on the command line, else the answer, else what is suggested.

        Raises:
            UserError: there is none of them.
        """
        if given:
            return given
        if self._yes:
            if suggested is None:
                raise UserError(f"--yes asks nothing, and nothing can be suggested here: give --{option}.")
            return suggested
        while True:
            self._screen.print(
                question + (f" [{suggested}]" if suggested else "") + ": ", end="", soft_wrap=True
            )
            line = sys.stdin.readline()
            if not sys.stdin.isatty():
                self._screen.say(line.strip())  # as a terminal shows what is typed
            if not line:
                raise UserError(
                    f"the input ended before an answer. Give --{option}, or --yes for what is suggested."
                )
            if line.strip() or suggested:
                return line.strip() or str(suggested)
            if not sys.stdin.isatty():
                raise UserError(f"an empty line is no answer here. Give --{option}.")
