"""The trained models among a run's rewards, by how they read an answer: the policy's own ids, or text.

B answers to a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from espalier.config.options import ModelOptions
from espalier.data.encode.encoding import adds_bos, encode_pieces
from espalier.data.encode.scored import ScoreAt, closing, score_place, until_score
from espalier.data.encode.templates import choose_template
from espalier.data.read.turns import as_messages
from espalier.data.records import ASSISTANT, USER, Message
from espalier.errors import UserError
from espalier.models.classifier import TextClassifier, is_encoder, too_long
from espalier.models.forward import Want
from espalier.models.load import load_tokenizer
from espalier.models.offload import resident
from espalier.models.positions.table import table_length
from espalier.rollout.experience import AnswerGroup, as_judged, measure
from espalier.rollout.rewards.table import ModelSettings, RewardSpec
from espalier.stages.model_memory import load_scorer
from espalier.stages.parts import Live
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree


class RewardModel(Protocol):
    """A frozen model that scores answers.

    Attributes:
        module: its weights.
    """

    module: nn.Module

    def scores(self, live: Live, answered: Sequence[AnswerGroup]) -> list[Tensor]:
        """Of each group (B,), the same on every rank.

        Args:
            answered: the same on every rank.

        Raises:
            UserError: a score is no number, or the model has no positions for a row.
        """


def load_reward_model(setup: Setup, spec: RewardSpec) -> RewardModel:
    """The model of an entry, loaded; which of the three it is its folder and the entry say.

    Raises:
        UserError: it is no reward model, or has another tokenizer and is not asked to read text.
    """
    settings = cast(ModelSettings, spec.settings)
    if is_encoder(settings.path):
        return ClassifierReward(setup, settings)
    return RetokenizedReward(setup, settings) if settings.retokenize else TreeReward(setup, settings)


class TreeReward:
    """A trained model of the run's tokenizer that reads the trees of answers.

    Args:
        setup: of the run.
        settings: of the model.
    """

    def __init__(self, setup: Setup, settings: ModelSettings) -> None:
        self._setup, self._settings = setup, settings
        self._tokenizer = self._own_tokenizer()
        given = None if self._tokenizer is setup.tokenizer else self._tokenizer
        self._model = load_scorer(setup, settings.path, given)
        self.module: nn.Module = self._model
        self._longest = table_length(self._model.lm)
        self._template = setup.template if given is None else choose_template(given)
        self._closing = closing(self._tokenizer, self._template)
        self._place = self._place_of_scores()

    def _own_tokenizer(self) -> Any:
        return self._setup.tokenizer

    def scores(self, live: Live, answered: Sequence[AnswerGroup]) -> list[Tensor]:
        shown = [self._shown(group) for group in answered]
        for tree in shown:
            if self._longest is not None and tree.longest_path > self._longest:
                raise too_long(self._settings.path, tree.source, tree.longest_path, self._longest)
        with resident(self._model):
            judged = measure(shown, self._setup.rows(self._model), lambda batch: self._judged(live, batch))
        return _sound([tree.extras["scores"] for tree in judged], answered, self._settings.path)

    def _shown(self, group: AnswerGroup) -> Tree:
        """The answers as the model reads them; the leaves are where it is read."""
        return as_judged(group, self._closing, self._place)

    def _place_of_scores(self) -> ScoreAt:
        """Where the model is read; says so where nobody has said it and it makes a difference."""
        said = self._settings.score_at or self._model.score_at
        if said is None and self._closing.tail:
            self._setup.say(
                f"{self._settings.path}: does not say at which token it scores an answer, so it is read behind the "
                "whole turn, as model cards do; reward_score_at: answer reads it at the end token (the exam reward:FILE "
                "shows the accuracy of both)"
            )
        return score_place(said)

    @torch.no_grad()
    def _judged(self, live: Live, batch: Batch) -> dict[str, Tensor]:
        with live.accelerator.autocast():
            scores = self._model(batch, Want(logprobs=False, scores=True)).scores
        assert scores is not None
        return {"scores": scores.float()}


class RetokenizedReward(TreeReward):
    """A trained model with a tokenizer of its own: prompt and answer are written by its template, and encoded anew."""

    def _own_tokenizer(self) -> Any:
        trusted = self._setup.option(ModelOptions).trust_remote_code
        return load_tokenizer(self._settings.path, trust_remote_code=trusted)

    def _shown(self, group: AnswerGroup) -> Tree:
        paths = []
        for text, ended in zip(group.texts, group.ended, strict=True):
            ids = self._ids(group, text, ended)
            paths.append((ids, [False] * len(ids)))
        return Tree.join(paths, source=group.ask.source)

    def _ids(self, group: AnswerGroup, text: str, ended: bool) -> list[int]:
        """A conversation up to where it is scored. An answer that was cut short has no end to be read at."""
        before = as_messages(list(group.ask.messages), "a prompt") if group.ask.messages else ()
        turns = before or (Message(USER, group.ask.text),)
        answer = Message(ASSISTANT, text, prefix=group.ask.prefix)
        pieces = self._template.render([*turns, answer], train_from=len(turns))
        (path,) = encode_pieces(self._tokenizer, [pieces], bos=adds_bos(self._tokenizer))
        ids, trained = until_score(path, self._place if ended else "answer")
        cut = 0 if ended or True not in trained else len(self._closing.end)
        return ids[: len(ids) - cut]


class ClassifierReward:
    """An encoder that reads prompt and answer as text, in padded rows.

    Args:
        setup: of the run.
        settings: of the model.
    """

    def __init__(self, setup: Setup, settings: ModelSettings) -> None:
        self._setup, self._settings = setup, settings
        model = setup.option(ModelOptions)
        how = {"trust_remote_code": model.trust_remote_code, "allow_pickle": model.allow_pickle}
        self._classifier = TextClassifier(settings.path, **how).to(setup.device)
        self.module: nn.Module = self._classifier
        setup.say(f"{settings.path}: an encoder; it reads prompt and answer as text, by its own tokenizer")

    def scores(self, live: Live, answered: Sequence[AnswerGroup]) -> list[Tensor]:
        setup = self._setup
        own: list[tuple[int, Tensor]] = []
        problems: list[UserError] = []
        try:
            with resident(self._classifier):
                for at in range(setup.rank, len(answered), setup.world):
                    own.append((at, self._of_group(answered[at])))
        except UserError as met:
            problems.append(met)
        if setup.world > 1:  # no rank may wait for one that has stopped
            own, problems = gather_object(own), gather_object(problems)
        if problems:
            raise problems[0]
        found = dict(own)
        return _sound([found[at] for at in range(len(answered))], answered, self._settings.path)

    def _of_group(self, group: AnswerGroup) -> Tensor:
        turns = [dict(turn) for turn in group.ask.messages] or [{"role": USER, "content": group.ask.text}]
        pairs = [(turns, group.ask.prefix + text) for text in group.texts]
        scores: Tensor = self._classifier(pairs, [group.ask.source] * len(pairs))
        return scores


def _sound(scores: list[Tensor], answered: Sequence[AnswerGroup], name: str) -> list[Tensor]:
    """The scores; a reward model that says nan would spoil the advantages of a whole rollout."""
    for group, numbers in zip(answered, scores, strict=True):
        for score in numbers.tolist():
            if not math.isfinite(score):
                raise UserError(
                    f"the reward model {name} gives {score} for an answer to the prompt {group.ask.source}: its weights "
                    "are broken. Look at reward_model; the last checkpoint is kept."
                )
    return scores
