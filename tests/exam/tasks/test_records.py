"""Exams on a user's own files against numbers made by hand with plain transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.data.encode.templates import choose_template
from espalier.errors import UserError
from espalier.exam.answers.rate import pair_numbers
from espalier.exam.answers.read import Reader, windows
from espalier.exam.evaluate import Asking, evaluate, examine_all
from espalier.exam.numbers.calibration import calibration
from espalier.exam.plan import plan
from espalier.exam.tasks import NoShots, Settings, make_task
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.saved import save_model
from tests.conftest import Vocabulary
from tests.exam.independent import alone, encoded, model_of, tokenizer_of

QUIET = Asking(quiet=True)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary) -> Any:
    return tokenizer_of(str(vocabulary("gpt2")))


# --- reward --------------------------------------------------------------------------------------


def rated_alone(model: TreeModel, ids: list[int]) -> float:
    """The head on the last hidden state of one sequence."""
    before = model.lm.config._attn_implementation
    model.lm.set_attn_implementation("eager")
    with torch.no_grad():
        hidden = model.lm.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    model.lm.set_attn_implementation(before)
    assert model.scalar_head is not None
    return float(model.scalar_head(hidden[None]))


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_reward_model_is_judged_on_real_pairs(
    name: str, shared: Path, tokenizer: Any, tmp_path: Path
) -> None:
    path = shared / "data" / "comparison_gpt4_zh" / "comparison_gpt4_data_zh.json"
    model = model_of(name, tokenizer, **({"max_position_embeddings": 8192} if name == "llama" else {}))
    torch.manual_seed(1)
    model = TreeModel(model.lm, model.traits, ScalarHead(32)).eval()
    planned = plan([f"reward:{path}"], [None], Settings(Path(), limit=6))
    results = examine_all(model, tokenizer, planned, tmp_path, name="random", asking=QUIET)
    row = results["tasks"]["reward_comparison_gpt4_data_zh"]
    lines = [
        json.loads(x) for x in (tmp_path / "reward_comparison_gpt4_data_zh.jsonl").open(encoding="utf-8")
    ]
    template = choose_template(tokenizer)
    right, margins, chosen = 0, 0.0, 0.0
    for line in lines:
        assert line["preference"] == [1.0, 0.0] and line["gold"] == 0
        found = []
        for candidate in line["candidates"]:
            from espalier.data.records import Message

            said = [Message(m["role"], m["content"]) for m in line["prompt"]]
            pieces = template.render([*said, Message("assistant", candidate["text"])])
            found.append(rated_alone(model, encoded(tokenizer, "".join(piece.text for piece in pieces))))
        assert line["scores"] == pytest.approx(found, abs=1e-4)
        right += found[0] > found[1]
        margins += found[0] - found[1]
        chosen += found[0]
    assert row["n"] == 6 and row["metrics"]["accuracy"] == pytest.approx(right / 6)
    assert row["metrics"]["margin"] == pytest.approx(margins / 6, abs=1e-4)
    assert row["metrics"]["chosen_score"] == pytest.approx(chosen / 6, abs=1e-4)
    assert row["calibration"] == calibration(lines) and row["calibration"]["pairs"] == 6
    assert row["chance"] == 0.5 and row["metrics"]["accuracy_stderr"] >= 0
    if name == "llama":
        assert row["tokens_computed"] < row["tokens_unshared"]


def test_all_ordered_pairs_of_a_ranking_count_and_ties_are_not_right() -> None:
    found = pair_numbers([3.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 1.0])
    # pairs: (0,1) right, (0,2) right, (0,3) a tie, (1,2) wrong, (1,3) wrong; 2 and 3 make no pair.
    assert found["accuracy"] == (2.0, 5.0)
    assert found["margin"] == (2.0 + 1.0 + 0.0 - 1.0 - 2.0, 5.0)


def test_a_model_without_a_scalar_head_is_refused(shared: Path, tokenizer: Any, tmp_path: Path) -> None:
    path = shared / "data" / "comparison_gpt4_zh" / "comparison_gpt4_data_zh.json"
    planned = plan([f"reward:{path}"], [None], Settings(Path(), limit=1))
    with pytest.raises(UserError, match="no scalar head: it is no reward model"):
        examine_all(model_of("llama", tokenizer), tokenizer, planned, tmp_path, name="x", asking=QUIET)


def test_a_pair_with_a_margin_of_0_is_a_pair_all_the_same(tokenizer: Any, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin} for margin in (0, 2.5)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    model = model_of("llama", tokenizer)
    model = TreeModel(model.lm, model.traits, ScalarHead(32)).eval()
    planned = plan([f"reward:{pairs}"], [None], Settings(Path()))
    results = examine_all(model, tokenizer, planned, tmp_path / "out", name="random", asking=QUIET)
    first, second = (
        json.loads(line) for line in (tmp_path / "out" / "reward_pairs.jsonl").open(encoding="utf-8")
    )
    assert results["tasks"]["reward_pairs"]["n"] == 2
    assert first["metrics"] == second["metrics"] and first["preference"] == [1.0, 0.0]


def test_a_saved_reward_model_is_examined_with_its_head(shared: Path, tokenizer: Any, tmp_path: Path) -> None:
    plain = model_of("llama", tokenizer)
    model = TreeModel(plain.lm, plain.traits, ScalarHead(32)).eval()
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, tokenizer)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}) + "\n", "utf-8")
    results = evaluate(str(tmp_path / "model"), [f"reward:{path}"], out=tmp_path / "out", asking=QUIET)
    assert results["tasks"]["reward_pairs"]["n"] == 1


# --- perplexity ----------------------------------------------------------------------------------


def test_every_token_counts_once_and_has_half_a_window_before_it() -> None:
    for length in range(2, 60):
        for window, stride in ((4, 2), (7, 3), (16, 16 // 2), (5, 1)):
            counted = []
            for cut, flags in windows(range(length), window, stride):
                assert len(cut) <= window and len(cut) == len(flags)
                for at, (token, counts) in enumerate(zip(cut, flags, strict=True)):
                    if counts:
                        counted.append(token)
                        assert at == token or at >= window - stride
            assert counted == list(range(1, length))


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_bits_per_byte_and_perplexity_of_real_text(
    name: str, shared: Path, tokenizer: Any, tmp_path: Path
) -> None:
    source = next((shared / "data" / "text_en").rglob("*.jsonl"))
    texts = [json.loads(line)["text"][:1200] for line in source.open(encoding="utf-8")][:5]
    path = tmp_path / "wiki.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    model = model_of(name, tokenizer)
    planned = plan([f"perplexity:{path}"], [None], Settings(Path()))
    results = examine_all(model, tokenizer, planned, tmp_path / "out", name="x", asking=QUIET)
    nats = tokens = size = 0.0
    lines = [json.loads(x) for x in (tmp_path / "out" / "perplexity_wiki.jsonl").open(encoding="utf-8")]
    for line, text in zip(lines, texts, strict=True):
        total, count = alone(model.lm, tokenizer, "", text)
        assert line["nats"] == pytest.approx(-total, rel=1e-5) and line["tokens"] == count
        nats, tokens, size = nats - total, tokens + count, size + len(text.encode())
    found = results["tasks"]["perplexity_wiki"]["metrics"]
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert results["tasks"]["perplexity_wiki"]["n"] == 5 and found["bits_per_byte_stderr"] > 0


@pytest.mark.slow
def test_a_window_that_slides_is_one_sequence_at_a_time(shared: Path, tokenizer: Any) -> None:
    model = model_of("llama", tokenizer)
    text = "The cat sat on the mat and looked at the moon. " * 12
    ((nats, tokens, _),), _ = Reader(model, tokenizer, window=32, stride=8).read([text])
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    before = model.lm.config._attn_implementation
    model.lm.set_attn_implementation("eager")
    expected = 0.0
    for at in range(1, len(ids)):  # the window that ends where this token's block ends
        stop = at + 1 if at < 32 else 32 + 8 * ((at - 32) // 8 + 1)
        stop = min(max(stop, min(32, len(ids))), len(ids))
        start = max(0, stop - 32)
        with torch.no_grad():
            logits = model.lm(input_ids=torch.tensor([ids[start:stop]])).logits[0]
        expected -= float(logits[at - start - 1].log_softmax(-1)[ids[at]])
    model.lm.set_attn_implementation(before)
    assert tokens == len(ids) - 1 and nats == pytest.approx(expected, rel=1e-5)


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_references_have_a_perplexity(shared: Path, tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="the judges of the extra `exams` are not installed")
    path = shared / "data" / "alpaca_en" / "alpaca_5000.json"
    model = model_of("llama", tokenizer)
    planned = plan([f"generation:{path}"], [None], Settings(Path(), limit=3))
    results = examine_all(model, tokenizer, planned, tmp_path, name="x", asking=QUIET)
    (row,) = results["tasks"].values()
    nats = tokens = 0.0
    for line in (json.loads(x) for x in (tmp_path / "generation_alpaca_5000.jsonl").open(encoding="utf-8")):
        prefix = results["prefixes"].get(line["prefix"], "")
        total, count = alone(model.lm, tokenizer, prefix + line["prompt"], line["references"][0])
        nats, tokens = nats - total, tokens + count
    assert row["metrics"]["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)


@pytest.mark.parametrize("kind", ["generation", "reward", "perplexity"])
def test_what_a_file_lacks_is_said(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        plan([f"{kind}:{tmp_path / 'no.jsonl'}"], [None], Settings(Path()))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n', "utf-8")
    with pytest.raises(UserError, match=r"bad\.jsonl:1"):
        plan([f"{kind}:{path}"], [None], Settings(Path()))
    with pytest.raises(NoShots):
        make_task(f"{kind}:{path}", Settings(Path()), shots=3)
