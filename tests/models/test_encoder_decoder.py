"""Encoder-decoders as models of rows: the same numbers as transformers gives, called in its own way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, MT5Config, PegasusConfig, T5Config

from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters import adapter as adapters
from espalier.models.adapters import kinds as adapter_kinds
from espalier.models.adapters.freezing import blocks, freeze_lowest
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.saved import save_model
from espalier.trees import Tree, lay_out_padded

T5 = {"vocab_size": 100, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 100,
    "d_model": 16,
    "max_position_embeddings": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
}
BART |= {f"{p}_{n}": v for p in ("encoder", "decoder") for n, v in (("attention_heads", 2), ("ffn_dim", 32))}
CONFIGS: dict[str, Any] = {
    "t5": T5Config(**T5, decoder_start_token_id=0),
    "mt5": MT5Config(**T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
    "bart": BartConfig(**BART, decoder_start_token_id=2),
    "pegasus": PegasusConfig(**BART, decoder_start_token_id=0),
}
QUESTIONS = [[5, 6, 7, 8, 9], [5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19]]
ANSWERS = [[[20, 21, 22], [23, 24, 25, 26, 27], [28]], [[29]], [[30, 31]]]


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """Transformers' model, and ours from the same folder."""
    config = copy.deepcopy(CONFIGS[request.param])
    torch.manual_seed(0)
    made: Any = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if request.param == "bart":
        made.final_logits_bias.normal_()
    made.save_pretrained(tmp_path)
    return AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), load.load_lm(str(tmp_path)).eval()


def ends(lm: Any) -> tuple[int, int]:
    return lm.config.eos_token_id, lm.config.decoder_start_token_id


def trees(lm: Any) -> list[Tree]:
    end, start = ends(lm)
    made = []
    for question, answers in zip(QUESTIONS, ANSWERS, strict=True):
        asked = [*question, end, start]
        made.append(
            Tree.join([([*asked, *a, end], [False] * len(asked) + [True] * (len(a) + 1)) for a in answers])
        )
    return made


def plain(other: Any) -> list[torch.Tensor]:
    """Logprobs of every answer and its end, one call an answer."""
    end, start = ends(other)
    found = []
    for question, answers in zip(QUESTIONS, ANSWERS, strict=True):
        for answer in answers:
            logits = other(
                input_ids=torch.tensor([[*question, end]]), decoder_input_ids=torch.tensor([[start, *answer]])
            ).logits[0]
            labels = torch.tensor([*answer, end])[:, None]
            found.append(logits.log_softmax(-1).gather(1, labels)[:, 0])
    return found


def test_logprobs_and_gradients(pair: tuple[Any, Any]) -> None:
    other, lm = pair
    traits = probe(lm)
    assert traits.method == "padded"
    assert traits.plain_head == (lm.config.model_type != "bart"), "bart adds a bias to its logits"
    found = TreeModel(lm, traits)(lay_out_padded(trees(lm)), Want()).logprobs
    assert found is not None
    truth = plain(other)
    for row, wanted in zip(found, truth, strict=True):
        assert (row[: len(wanted)] - wanted).abs().max() < 1e-5
        assert not row[len(wanted) :].any()
    found.sum().backward()
    sum(t.sum() for t in truth).backward()  # type: ignore[union-attr]
    theirs = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, grad in ours.items():
        assert (grad - theirs[name]).abs().max() < 2e-4 * max(1.0, float(theirs[name].abs().max())), name


def test_equal_prompts_are_encoded_once(pair: tuple[Any, Any]) -> None:
    _, lm = pair
    rows: list[int] = []
    lm.get_encoder().register_forward_hook(
        lambda _m, _a, kwargs, _o: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    TreeModel(lm, probe(lm))(lay_out_padded(trees(lm)), Want())
    assert rows[-1] == len(QUESTIONS) < sum(map(len, ANSWERS))


def test_scores_are_read_at_the_last_token(pair: tuple[Any, Any]) -> None:
    other, lm = pair
    model = TreeModel(lm, probe(lm), ScalarHead(16))
    torch.nn.init.normal_(model.scalar_head.weight)  # type: ignore[union-attr]
    found = model(lay_out_padded(trees(lm)), Want(logprobs=False, scores=True)).scores
    assert found is not None
    end, start = ends(lm)
    taken: list[torch.Tensor] = []
    other.get_output_embeddings().register_forward_pre_hook(lambda _m, args: taken.append(args[0]))
    other(
        input_ids=torch.tensor([[*QUESTIONS[0], end]]),
        decoder_input_ids=torch.tensor([[start, *ANSWERS[0][1], end]]),
    )
    assert float(model.scalar_head(taken[0][0, -1:])) == pytest.approx(float(found[1]), abs=1e-5)  # type: ignore[misc]


def test_sampling_is_greedy_generate(pair: tuple[Any, Any]) -> None:
    other, lm = pair
    if lm.config.model_type in ("bart", "pegasus"):
        # with 3 layers in the decoder and 2 in the encoder transformers' generate makes too small a cache
        other.config.num_hidden_layers = 3
    other.generation_config.forced_eos_token_id = None
    end, start = ends(lm)
    prompts = [[*question, end, start] for question in QUESTIONS]
    prompts.append([*QUESTIONS[0], end, start, 40, 41])  # an answer that has begun
    found = sample(lm, probe(lm), prompts, Sampling(8, temperature=0, stop=(end,)), copies=2)
    for prompt, (answer, same) in zip(prompts, found, strict=True):
        at = prompt.index(start, prompt.index(end) + 1)
        said = other.generate(
            input_ids=torch.tensor([prompt[:at]]),
            decoder_input_ids=torch.tensor([prompt[at:]]),
            max_new_tokens=8,
            do_sample=False,
            num_beams=1,
        )
        assert said[0, len(prompt) - at :].tolist() == answer.tokens == same.tokens


def test_transformers_own_calls_are_as_they_were(pair: tuple[Any, Any]) -> None:
    other, lm = pair
    asked = {"input_ids": torch.tensor([[5, 6, 7, ends(lm)[0]]]), "labels": torch.tensor([[20, 21]])}
    assert float(lm(**asked).loss) == pytest.approx(float(other(**asked).loss))


def test_lora_is_merged_and_saved(pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, lm = pair
    adapted: Any = adapter_kinds.add_lora(lm, rank=2, alpha=None, dropout=0.0, target=["all"], bias="none")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = lay_out_padded(trees(lm))
    model = TreeModel(adapted, probe(adapted)).eval()
    wanted = model(batch, Want()).logprobs
    assert wanted is not None
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", TreeModel(adapters.merged(adapted), model.traits), None)
    again = load.load_lm(str(tmp_path / "saved")).eval()
    found = TreeModel(again, probe(again))(batch, Want()).logprobs
    assert found is not None
    assert (found - wanted).abs().max() < 5e-5


def test_freezing_takes_the_encoder_first(pair: tuple[Any, Any]) -> None:
    _, lm = pair
    depth = len(blocks(lm))
    assert depth == (4 if "t5" in lm.config.model_type else 5)
    assert freeze_lowest(lm, 0.4) == 2
    TreeModel(lm, probe(lm))(lay_out_padded(trees(lm)), Want()).logprobs.sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in blocks(lm)[0].parameters() if not p.requires_grad)
    assert any(p.grad is not None for p in blocks(lm)[-1].parameters())


def test_a_row_without_an_answer_s_beginning_is_refused() -> None:
    lm = load.new_lm({"model_type": "t5", **T5}, 100, {"pad_token_id": 0, "eos_token_id": 1})
    with pytest.raises(UserError, match="questions with answers"):
        lm(input_ids=torch.tensor([[5, 6, 7, 1]]))


def test_the_tree_layout_is_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="encoder-decoder"):
        probe(pair[1], wanted="tree")


@pytest.mark.parametrize("mask", [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]])
def test_rows_are_padded_on_the_right_alone(mask: list[int]) -> None:
    lm = load.new_lm({"model_type": "t5", **T5}, 100, {"pad_token_id": 0, "eos_token_id": 1})
    with pytest.raises(ValueError, match="padded on the right"):
        lm(input_ids=torch.tensor([[5, 1, 0, 7, 8, 1]]), attention_mask=torch.tensor([mask]))
