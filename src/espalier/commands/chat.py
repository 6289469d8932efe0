"""The command `espalier chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle, DtypeName, RopeScaling, TrustRemoteCode, check_models


def chat(
    model: Annotated[str, typer.Argument(help="A model folder, a run or a hub id.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this mass.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="Sample from so many likeliest tokens; 0: all.")] = 0,
    min_p: Annotated[
        float, typer.Option(help="Leave out what is less likely than this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said comes less often.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same talk again; -1: another one each time.")] = 1,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    template: Annotated[str, typer.Option(help="Of conversations; auto is the model's own.")] = "auto",
    reward_model: Annotated[str | None, typer.Option(help="Its score stands below each answer.")] = None,
    compare: Annotated[str | None, typer.Option(help="A model that answers beside the first one.")] = None,
    votes: Annotated[Path, typer.Option(help="The file of /vote, which dpo and reward read.")] = Path(
        "votes.jsonl"
    ),
    hide_thoughts: Annotated[bool, typer.Option("--hide-thoughts", help="Show answers alone.")] = False,
    rope_scaling: RopeScaling = None,
    dtype: DtypeName = "auto",
    allow_pickle: AllowPickle = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model in the terminal; /help lists what else can be said."""
    check_models(*[name for name in (model, compare, reward_model) if name])
    from espalier.models.run_folder import find_model
    from espalier.screen import Screen
    from espalier.serve.opening import ModelOpener
    from espalier.serve.requests import EngineLimits
    from espalier.serve.session import Session
    from espalier.serve.settings import AnswerSettings
    from espalier.serve.terminal.chat import Chat, talk
    from espalier.serve.terminal.editor import questions
    from espalier.serve.terminal.orders import ORDERS, obey

    settings = AnswerSettings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=None if seed == -1 else seed,
    )  # fmt: skip
    notes = Screen(stderr=True)
    opener = ModelOpener(
        EngineLimits(0, rows=1), template, dtype, rope_scaling, allow_pickle, trust_remote_code
    )
    found = find_model(model)
    served = opener.writer(found, found)
    conversation = Chat(
        Session(served, settings, system), opener, questions(list(ORDERS), notes), votes, not hide_thoughts,
        notes=notes,
    )  # fmt: skip
    if (room := max(1, served.context // 2)) < max_new_tokens:
        conversation.note(f"answers of at most {room} tokens: the model's context is {served.context}")
    if reward_model is not None:
        conversation.scorer = opener.scorer(reward_model, reward_model)
    if compare is not None:
        obey(conversation, f"/compare {compare}")
    if conversation.by_hand:
        conversation.note(f"{served.name}: {served.model.traits.reason}\n/help lists what can be said here")
    talk(conversation, obey)
