"""From the options to blank filling: whether the model reads its marks, and by which ids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from espalier.config.option_set import OptionSet
from espalier.config.options import AdapterOptions, DataOptions, ModelOptions, Options, RunOptions, option
from espalier.data.encode.blanks import LEAST, BlankFilling, sentence_ends
from espalier.errors import UserError
from espalier.models.legacy.families import families
from espalier.models.legacy.family import Family
from espalier.models.load_adapted import plain_base
from espalier.models.tokenizers.marks import reader_of_marks
from espalier.stages.setup import Setup


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(Options):
    """What pretraining learns of a text."""

    pretraining_objective: Literal["causal", "blank_filling"] = option(
        "causal",
        "Learn the next token, or, with GLM and ChatGLM-6B, to fill blanks as these were made (Du et al. 2022).",
    )
    blank_filling_shares: list[float] | None = option(
        None,
        "How often blanks are short spans, sentences, a document's end; by itself 0.5,0.3,0.2 as GLM-10B was trained, and "
        "0.3,0,0.7 for ChatGLM-6B (GLM-130B, Zeng et al. 2023).",
    )

    def problems(self) -> list[str]:
        shares = self.blank_filling_shares
        if shares is None:
            return []
        if self.pretraining_objective == "causal":
            return [
                "`blank_filling_shares` belongs to pretraining_objective: blank_filling. Add that, or remove it."
            ]
        if len(shares) != 3 or not all(0 <= share < math.inf for share in shares) or not sum(shares):
            return [
                f"`blank_filling_shares` is {shares}; wanted three numbers, none below 0 and not all 0, such as "
                "0.5,0.3,0.2."
            ]
        return []


def check_blanks(options: OptionSet) -> None:
    """Raises UserError: blank filling with what cannot be together with it."""
    if options[PretrainOptions].pretraining_objective == "causal":
        return
    kind, longest = options[AdapterOptions].finetuning_type, options[DataOptions].cutoff_len
    if kind in ("prompt", "p_tuning", "prefix"):
        raise UserError(
            f"finetuning_type: {kind} puts virtual tokens before a text, and blank_filling counts places from its "
            "beginning. Use lora, or pretraining_objective: causal."
        )
    if longest < LEAST:
        raise UserError(
            f"cutoff_len: {longest} has no room for a text with a blank, its span and their marks. Wanted at least {LEAST}."
        )


def blank_filling(setup: Setup) -> BlankFilling | None:
    """How this run fills blanks; None where it learns the next token.

    Raises:
        UserError: the model reads no marks, has not a kind of blank that is asked for, or its tokenizer lacks a mark.
    """
    options, model = setup.option(PretrainOptions), setup.option(ModelOptions)
    if options.pretraining_objective == "causal":
        return None
    name = model.model_name_or_path
    vocabulary = setup.tokenizer.get_vocab()
    if name is None and not model.model_config:  # a look at a stage whose model an earlier one makes
        family = _by_tokenizer(vocabulary)
    else:
        family = reader_of_marks(model.model_config or {} if name is None else plain_base(name))
    if family is None or family.marks is None:
        raise UserError(
            f"pretraining_objective: blank_filling: {name or 'this model'} does not read blanks. They are for "
            f"{' and '.join(f.name for f in families() if f.marks)} (the first generation); use causal."
        )
    marks = family.marks
    shares = tuple(options.blank_filling_shares or marks.shares)
    if marks.sentence is None and shares[1]:
        raise UserError(
            f"blank_filling_shares: {family.name} reads no blanks of sentences ([sMASK]). Set the second number to 0."
        )
    missing = [text for text in marks.names if text not in vocabulary]
    if missing:
        raise UserError(
            f"pretraining_objective: blank_filling: the tokenizer has no {', '.join(missing)}, which {family.name} reads. "
            "Set `tokenizer:` to the folder with the model's own vocabulary."
        )
    short, whole, rest = marks.short, marks.sentence or marks.short, marks.document
    return BlankFilling(
        before=vocabulary[marks.before] if marks.before is not None else None,
        marks=(vocabulary[short], vocabulary[whole], vocabulary[rest]),
        start=vocabulary[marks.start],
        end=vocabulary[marks.end],
        shares=(shares[0], shares[1], shares[2]),
        seed=setup.option(RunOptions).seed,
        sentence_ends=sentence_ends(setup.tokenizer),
    )


def _by_tokenizer(vocabulary: dict[str, int]) -> Family | None:
    marked = (f for f in families() if f.marks is not None and all(n in vocabulary for n in f.marks.names))
    return next(marked, None)
