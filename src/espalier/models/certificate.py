"""Whether two forms of a model are one: the ids of texts, probabilities, likeliest answers, and a reward model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from espalier.errors import UserError
from espalier.models.endings import ends_of
from espalier.models.measure import Differences, differences
from espalier.models.open import OpenModel, open_model
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample


@dataclass(frozen=True)
class Found:
    """What a form of a model differs by.

    Attributes:
        form: its name.
        prompts: texts that were compared.
        same_ids: of them, those that both tokenizers turn into the same ids.
        same_vocabulary: whether both have as many tokens.
        differences: of probabilities on the ids of the first; None where the vocabularies differ, and of reward models.
        same_answers: prompts whose likeliest answer is the same, token by token; None of reward models.
        first_other: a prompt with another answer: prompt, the first's answer, the form's.
        score_error: the largest difference of scores; None of models without.
    """

    form: str
    prompts: int
    same_ids: int
    same_vocabulary: bool
    differences: Differences | None
    same_answers: int | None
    first_other: tuple[str, str, str] | None
    score_error: float | None

    def failures(self, max_kl: float, max_score_error: float) -> list[str]:
        """Why it is no certificate; [] where it is one."""
        found = []
        if self.same_ids < self.prompts:
            found.append(
                f"{self.prompts - self.same_ids} of {self.prompts} texts become other token ids: another tokenizer"
            )
        if not self.same_vocabulary:
            found.append("its vocabulary has another size, so that nothing else can be compared")
        if self.differences is not None and not self.differences.kl <= max_kl:
            found.append(
                f"KL {self.differences.kl:.3g} nats a token, more than {max_kl:g} (--max-kl); the largest difference of "
                f"logits is {self.differences.logit_error_max:.3g}"
            )
        if self.score_error is not None and not self.score_error <= max_score_error:
            found.append(f"scores differ by up to {self.score_error:.3g}, more than {max_score_error:g}")
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def open_form(name: str) -> OpenModel:
    """A folder, hub id, run or adapter, or a GGUF file, in float32.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(name)
    if path.suffix != ".gguf":
        return open_model(name)
    if not path.is_file():
        raise UserError(f"{name}: there is no such file. Check the path.")
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        lm: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{name}: transformers cannot read this GGUF file ({str(error).splitlines()[0]}). "
            "It needs pip install 'espalier-llm[gguf]' and an architecture that it knows."
        ) from error
    return OpenModel(name, lm.eval(), tokenizer, None)


def compare_forms(model: OpenModel, form: str, texts: Sequence[str], *, max_new_tokens: int) -> Found:
    """Two forms on the same texts.

    Args:
        model: as `open_form` opens it.
        form: as `open_form` takes it.
        texts: none empty.
        max_new_tokens: of the likeliest answers.

    Raises:
        UserError: the form cannot be read, or only one of them is a reward model.
    """
    first, second = model, open_form(form)
    if (first.scalar_head is None) != (second.scalar_head is None):
        raise UserError(f"{first.name} and {form}: one is a reward model and the other is not.")
    ids, others = ([one.required_tokenizer.encode(text) for text in texts] for one in (first, second))
    rows = [(row, [True] * len(row)) for row in ids if len(row) > 1]
    comparable, judged = _words(first) == _words(second), first.scalar_head is not None
    written = comparable and not judged
    answers = [_answers(one, ids, max_new_tokens) for one in (first, second)] if written else None
    same = None if answers is None else [a == b for a, b in zip(*answers, strict=True)]
    other = None
    if answers is not None and same is not None and not all(same):
        at = same.index(False)
        said = [str(first.required_tokenizer.decode(each[at])) for each in answers]
        other = (texts[at], said[0], said[1])
    return Found(
        form,
        len(texts),
        sum(a == b for a, b in zip(ids, others, strict=True)),
        comparable,
        differences(first.lm, second.lm, rows) if written else None,
        None if same is None else sum(same),
        other,
        _score_error(first, second, ids) if comparable and judged else None,
    )


def _words(opened: OpenModel) -> int:
    embeddings: Any = opened.lm.get_input_embeddings()  # type: ignore[operator]
    return int(embeddings.weight.shape[0])


def _answers(opened: OpenModel, prompts: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    sampling = Sampling(longest, temperature=0, stop=tuple(sorted(ends_of(opened.lm))))
    found = sample(opened.lm, probe(opened.lm), prompts, sampling)
    return [answers[0].tokens for answers in found]


@torch.no_grad()
def _score_error(first: OpenModel, second: OpenModel, rows: Sequence[Sequence[int]]) -> float:
    worst = 0.0
    for row in rows:
        scores = []
        for one in (first, second):
            lm: Any = one.lm
            hidden = lm.base_model(input_ids=torch.tensor([list(row)])).last_hidden_state[0, -1:]
            assert one.scalar_head is not None
            scores.append(float(one.scalar_head(hidden)))
        worst = max(worst, abs(scores[0] - scores[1]))
    return worst
