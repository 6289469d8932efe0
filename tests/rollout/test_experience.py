"""Answers become trees with nothing lost, and what is measured lands on its own tree and branch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.data.steps.feed import Rows
from espalier.models.forward import TreeModel, Want
from espalier.models.load import new_lm
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup, measure, sample_trees, whitened
from espalier.rollout.rewards.rules import by_rule
from espalier.rollout.rewards.scorer import silent
from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree

STOP = tuple(range(3, 12))
TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> nn.Module:
    torch.manual_seed(0)
    made = new_lm(TINY, 40, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return made.eval()


def spelled(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def asks() -> list[Ask]:
    prompts = [[20, 21, 22], [30], [20, 21, 22, 23, 24, 25]]
    return [Ask(tokens, spelled(tokens), "20", f"data:{i}") for i, tokens in enumerate(prompts)]


def answered(lm: nn.Module, *, copies: int = 4) -> list[AnswerGroup]:
    sampling = Sampling(9, temperature=1.3, stop=STOP)
    return sample_trees(lm, probe(lm), asks(), sampling, spelled, copies=copies, seeds=[5, 6, 7])


def test_a_tree_holds_its_answers_in_order_and_every_sampled_token_is_trained(lm: nn.Module) -> None:
    found = answered(lm)
    assert len({n for a in found for n in map(len, a.texts)}) > 3, "answers of one length prove little"
    for ask, one in zip(asks(), found, strict=True):
        assert one.ask == ask and one.tree.source == ask.source and one.tree.n_branches == 4
        for (tokens, trained), text, ended in zip(one.tree.paths(), one.texts, one.ended, strict=True):
            assert tokens[~trained].tolist() == ask.tokens and not trained[: len(ask.tokens)].any()
            answer = tokens[trained].tolist()
            assert spelled(answer) == text
            assert ended == (answer[-1] in STOP) and (ended or len(answer) == 9)
            assert not set(answer[:-1]) & set(STOP)


def test_the_old_logprobs_of_the_sampler_and_of_the_forward_are_the_same(lm: nn.Module) -> None:
    """At the temperature of sampling, the forward that trains sees the ratio 1."""
    from espalier.models.sampling.generate import sample

    sampling = Sampling(9, temperature=1.3, stop=STOP)
    traits = probe(lm)
    said = sample(lm, traits, [a.tokens for a in asks()], sampling, copies=4, seeds=[5, 6, 7])
    model = TreeModel(lm, traits)

    def run(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"old_logprobs": model(batch, Want(temperature=1.3)).logprobs}  # type: ignore[dict-item]

    trees = measure([a.tree for a in answered(lm)], Rows(lay_out_tree, 64), run)
    for tree, answers in zip(trees, said, strict=True):
        for row, answer in zip(tree.extras["old_logprobs"], answers, strict=True):
            torch.testing.assert_close(
                row[: len(answer.tokens)], torch.tensor(answer.logprobs), rtol=0, atol=2e-5
            )


def test_a_rule_sees_the_prompt_the_answer_and_the_reference(lm: nn.Module) -> None:
    seen: list[Any] = []

    def rule(prompt: str, answer: str, reference: str | None) -> float:
        seen.append((prompt, answer, reference))
        return float(len(seen))

    (first, *_) = answered(lm)
    assert list(by_rule(rule)(first.ask, first.texts, silent)) == [1.0, 2.0, 3.0, 4.0]
    assert seen == [(first.ask.text, text, "20") for text in first.texts]


def forest(n: int) -> list[Tree]:
    draw = random.Random(0)
    made = []
    for i in range(n):
        prompt = [draw.randrange(40) for _ in range(draw.randrange(1, 6))]
        paths = []
        for _ in range(draw.randrange(1, 4)):
            answer = [draw.randrange(40) for _ in range(draw.randrange(1, 7))]
            paths.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        made.append(Tree.join(paths, source=f"tree {i}"))
    return made


@pytest.mark.parametrize("lay_out", [lay_out_tree, lay_out_padded])
@pytest.mark.parametrize("row_tokens", [1, 30, 10_000])
def test_measures_land_on_their_own_tree_whatever_the_packing(lay_out: Any, row_tokens: int) -> None:
    """What is measured is the token itself (B, A) and the branch's last token (B,), which is known of every tree."""
    trees = [t.with_extras(kept=torch.full((t.n_branches,), float(i))) for i, t in enumerate(forest(12))]
    sizes: list[int] = []

    def run(batch: Batch) -> dict[str, Tensor]:
        sizes.append(batch.n_trees)
        return {
            "token": batch.grid(batch.labels.float()),
            "last": batch.input_ids.flatten()[batch.leaf_at].float(),
        }

    found = measure(trees, Rows(lay_out, row_tokens), run)
    assert (max(sizes) > 1) == (row_tokens > 1) and sum(sizes) == 12
    for i, (before, after) in enumerate(zip(trees, found, strict=True)):
        assert after.source == before.source and after.extras["kept"].tolist() == [i] * before.n_branches
        assert "index" not in after.extras
        answers = [tokens[trained].tolist() for tokens, trained in before.paths()]
        assert after.extras["token"].shape == (len(answers), max(map(len, answers)))
        for row, last, answer in zip(after.extras["token"], after.extras["last"], answers, strict=True):
            assert row[: len(answer)].tolist() == answer and last == answer[-1]
            assert not row[len(answer) :].any()


def test_whitening_is_over_the_real_tokens_of_all_trees_together() -> None:
    trees = []
    for i, tree in enumerate(forest(9)):
        width = max(int(trained.sum()) for _, trained in tree.paths())
        noise = torch.randn(tree.n_branches, width, generator=torch.manual_seed(i)) * 3 + 7
        trees.append(tree.with_extras(advantages=noise))  # places without a token hold noise too
    white = whitened(trees, "advantages")
    real = [
        row[: int(trained.sum())]
        for tree in white
        for row, (_, trained) in zip(tree.extras["advantages"], tree.paths(), strict=True)
    ]
    flat = torch.cat(real)
    assert flat.mean().item() == pytest.approx(0, abs=1e-5) and flat.std().item() == pytest.approx(
        1, abs=1e-2
    )
    total = sum(float(tree.extras["advantages"].abs().sum()) for tree in white)
    assert total == pytest.approx(float(flat.abs().sum()), rel=1e-5), "places without a token are 0"
    before = torch.cat([
        row[: int(trained.sum())]
        for tree in trees
        for row, (_, trained) in zip(tree.extras["advantages"], tree.paths(), strict=True)
    ])  # fmt: skip
    assert torch.equal(before.argsort(), flat.argsort()), "the order of the advantages is kept"


def test_the_first_trees_are_left_as_they_were(lm: nn.Module) -> None:
    tree = forest(1)[0]
    tree.with_extras(scores=torch.zeros(tree.n_branches))
    assert tree.extras == {}
