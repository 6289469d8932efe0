"""A model backend of the library lm_eval (extra `lm-eval`), so that each of its tasks runs on token trees.

Requests with the same context become one question, contexts that begin alike share their beginning, and results are
those of lm_eval's own "hf" backend on the same model. As a command with lm_eval's own arguments::

    python -m espalier.exam.lm_eval --model espalier --model_args pretrained=DIR --tasks hellaswag

lm_eval knows the models that it ships; this module registers one more when it is imported, which its own command does
not do. In Python: ``lm_eval.simple_evaluate(model=EspalierLM(pretrained="DIR"), tasks=["hellaswag"])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from espalier.data.encode.encoding import leading
from espalier.engine.hardware import keep_freed_memory
from espalier.errors import UserError
from espalier.exam.answers.encode import Encoded
from espalier.exam.answers.scorer import Cost, Scorer
from espalier.exam.answers.write import Writer
from espalier.exam.task import Drawing
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.open import open_model
from espalier.models.tokenizers.marks import around_prompt, marked
from espalier.rendering import rendered
from espalier.trees.tree import agreement

_SHORTEST_SHARED = 64  # tokens of a beginning that is worth a trunk of its own

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("espalier")
class EspalierLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """lm_eval's interface to a model that takes trees.

    Args:
        pretrained: a folder or hub id (an adapter's is merged into its base), or a `TreeModel` in memory.
        tokenizer: of a model in memory, or another one's name.
        layout: auto, tree or padded.
        dtype: float32, bfloat16, float16, or auto, as in `models.open.open_model`.
        max_length: the longest context; None: the model's.
        device: such as cuda:0; None: the first GPU; the CPU where there is none.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights in .bin files, through torch's safe loader.
        batch_size, max_batch_size: accepted and ignored: rows are packed to a token budget.
    """

    def __init__(
        self,
        pretrained: str | TreeModel,
        tokenizer: Any = None,
        layout: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            keep_freed_memory()
            if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
                device = "auto"  # lm_eval's command says cuda:0 unless told otherwise
            opened = open_model(
                pretrained,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
            )
            if isinstance(tokenizer, str):
                tokenizer = load.load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
            else:
                tokenizer = opened.required_tokenizer
            pretrained = opened.tree_model(layout)
        if tokenizer is None:
            raise UserError("a model in memory needs its tokenizer: EspalierLM(model, tokenizer).")
        self.model, self.tokenizer = pretrained, tokenizer
        self.max_length = int(max_length or load.context_length(pretrained.lm))
        self.cost = Cost()
        self._scorer = Scorer(pretrained)
        self._writer = Writer(pretrained, tokenizer)
        self._around = around_prompt(pretrained.lm, tokenizer)

    @property
    def eot_token_id(self) -> int:
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What a text begins with where nothing stands before it."""
        bos: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the tokenizer's chat template."""
        return rendered(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None leaves special tokens to the tokenizer, unless the text begins with its bos token."""
        if add_special_tokens is None:
            begun = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
            return list(self.tokenizer.encode(string, **({"add_special_tokens": False} if begun else {})))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm_eval's, but for models that find their prompt by marks: these stand between the two."""
        if not any(self._around):
            before, whole = super()._encode_pair(context, continuation)
            return before, whole
        asked = marked(context, self._around)
        before, whole = (
            leading(self.tokenizer, text) + self.tok_encode(text, add_special_tokens=False)
            for text in (asked, asked + continuation.lstrip())
        )
        return before, whole[len(before) :]

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Sum of the logprobs of each continuation after its context, and whether each token is the likeliest."""
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs: list[tuple[list[int], list[int]]] = []
        for text, context, continuation in requests:
            excess = len(context) + len(continuation) - 1 - self.max_length
            if excess >= len(context):
                raise UserError(
                    f"a continuation of {len(continuation)} tokens does not fit into {self.max_length} ({text})."
                )
            pairs.append((context[max(0, excess) :], continuation))
        groups, whose = grouped(pairs)
        scored, cost = self._scorer.score(groups)
        self.cost.computed += cost.computed
        self.cost.unshared += cost.unshared
        for number, members in whose.items():
            one = scored[number]
            for member, score, greedy in zip(members, one.scores, one.greedy, strict=True):
                results[member] = (score, greedy)
        for request, answer in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The loglikelihood of whole texts, in windows as lm_eval cuts them."""
        parts: list[TokenRequest] = []
        whose = []
        for i, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                parts.append((None, *make_disjoint_window(window)))
                whose.append(i)
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(whose, self._loglikelihood_tokens(parts), strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Written answers, each up to its stop texts."""
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for i in range(len(requests)):
            alike.setdefault(repr(requests[i].args[1]), []).append(i)
        for members in alike.values():
            how = dict(requests[members[0]].args[1])
            until = how.get("until") or []
            written, cost = self._writer.write(
                [marked(requests[i].args[0], self._around) for i in members],
                max_new_tokens=int(how.get("max_gen_toks", 256)),
                stop=[until] if isinstance(until, str) else list(until),
                drawing=Drawing(
                    float(how.get("temperature", 1.0)) if how.get("do_sample") else 0.0,
                    float(how.get("top_p", 1.0)),
                    int(how.get("top_k", 0)),
                ),
            )
            self.cost.computed += cost.computed
            self.cost.unshared += cost.unshared
            for i, one in zip(members, written, strict=True):
                (text,) = one.texts
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts


def grouped(
    pairs: Sequence[tuple[list[int], list[int]]],
) -> tuple[list[tuple[list[int], dict[int, Encoded]]], dict[int, list[int]]]:
    """(context, continuation) pairs as trees: equal contexts once, and once what runs of contexts begin with.

    Returns:
        Groups for `Scorer.score`, and which pairs each numbered question holds, in the order of its candidates.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        members.setdefault(tuple(context), []).append(i)
    contexts = sorted(members)
    whose = dict(enumerate(members[context] for context in contexts))
    groups = []
    for first, last, shared in _runs(contexts):
        questions = {
            number: Encoded(list(contexts[number][shared:]), [(list(pairs[i][1]), 0) for i in whose[number]])
            for number in range(first, last)
        }
        groups.append((list(contexts[first][:shared]), questions))
    return groups, whose


def _runs(contexts: Sequence[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    """(first, last + 1, tokens that all begin with) of sorted contexts; a run ends where its beginning would halve."""
    runs = []
    first, shared = 0, len(contexts[0]) - 1 if contexts else 0
    for at in range(1, len(contexts) + 1):
        begins = 0
        if at < len(contexts):
            begins = min(agreement(contexts[first], contexts[at]), shared, len(contexts[at]) - 1)
        alone = at - first == 1
        if begins >= _SHORTEST_SHARED and (alone or 2 * begins >= shared):
            shared = begins
            continue
        runs.append((first, at, 0 if alone else shared))
        if at < len(contexts):
            first, shared = at, len(contexts[at]) - 1
    return runs


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
