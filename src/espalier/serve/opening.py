"""Models by their names: opened once each, as one that writes or as one that scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espalier.errors import UserError
from espalier.models.classifier import TextClassifier, is_encoder
from espalier.models.open import OpenModel, open_model
from espalier.models.run_folder import find_model
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits
from espalier.serve.scorer import ServedScorer


@dataclass(frozen=True)
class ModelOpener:
    """How the models of one command are opened.

    Attributes:
        dtype, rope_scaling, allow_pickle, trust_remote_code: see `open_model`.
        template: a name of `choose_template`; auto is each model's own.
        limits: of each one's engine.
    """

    limits: EngineLimits
    template: str = "auto"
    dtype: str = "auto"
    rope_scaling: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def writer(self, name: str, folder: str) -> ServedModel:
        """One that answers.

        Raises:
            UserError: it cannot be opened, or is a reward model.
        """
        found = self.any(name, folder)
        if isinstance(found, ServedScorer):
            raise UserError(
                f"{folder}: is a reward model: it scores answers and writes none. Give it as --reward-model."
            )
        return found

    def scorer(self, name: str, folder: str) -> ServedScorer:
        """One that scores.

        Raises:
            UserError: it cannot be opened, or has no head that gives one number.
        """
        # A scalar head is looked for only when the weights are there, so a wrong folder costs its loading.
        return ServedScorer(name, self._opened(folder), self.template)

    def any(self, name: str, folder: str) -> ServedModel | ServedScorer:
        """Whichever of both it is."""
        opened = self._opened(folder)
        if isinstance(opened, TextClassifier) or opened.scalar_head is not None:
            return ServedScorer(name, opened, self.template)
        return ServedModel(name, opened, self.template, self.limits)

    def _opened(self, folder: str) -> OpenModel | TextClassifier:
        folder = find_model(folder)
        if is_encoder(folder):
            return TextClassifier(
                folder, trust_remote_code=self.trust_remote_code, allow_pickle=self.allow_pickle
            )
        return open_model(
            folder,
            dtype=self.dtype,
            rope_scaling=self.rope_scaling,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
        )


def named_models(words: Sequence[str]) -> dict[str, str]:
    """Folders by their names, of words like ``MODEL`` and ``NAME=MODEL``.

    >>> named_models(["runs/sft", "judge=runs/reward"])
    {'sft': 'runs/sft', 'judge': 'runs/reward'}

    Raises:
        UserError: a word is neither, or two models have one name.
    """
    named: dict[str, str] = {}
    for word in words:
        name, mark, folder = word.partition("=")
        if not mark or Path(word).exists():
            name, folder = Path(word).name or word, word
        if not name or not folder:
            raise UserError(f"{word!r}: wanted MODEL or NAME=MODEL.")
        if name in named:
            raise UserError(f"two models are called {name!r}: {named[name]} and {folder}. Say NAME={folder}.")
        named[name] = folder
    return named
