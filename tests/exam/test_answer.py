"""Candidates scored in trees are candidates scored one at a time; planted models pass, bad task files do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier
from espalier.errors import UserError
from espalier.exam.answer import choose, encode_candidates
from espalier.exam.run import evaluate, run_tasks
from espalier.exam.task import load_task
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import save_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "model_type": "qwen2", "intermediate_size": 64, "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
QUESTIONS = [
    ("中国的首都是哪里？\n答：", ("北京", "上海", "广州市")),
    ("中国的首都是哪里？\n答：不是", ("北京", "上海")),
    ("Question: What is 2 + 3?\nAnswer:", (" 5", " 6", " five", " fifty-five")),
    ("Question: What is 2 + 4?\nAnswer:", (" 5", " 6")),
]
SHOTS = "Question: What is 1 + 1?\nAnswer: 2\n\n"


def model_of(name: str, tokenizer: Any) -> TreeModel:
    torch.manual_seed(0)
    lm = load.new_lm(CONFIGS[name], len(tokenizer), {"eos_token_id": tokenizer.eos_token_id})
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)  # an untrained model prefers nothing
    return TreeModel(lm, probe(lm)).eval()


def alone(lm: Any, tokenizer: Any, prompt: str, candidate: str) -> tuple[float, int]:
    """One whole sequence through the plain model, scored after the prompt's own tokens."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + candidate, add_special_tokens=False)["input_ids"]
    start = 0
    while start < len(before) and start < len(whole) and before[start] == whole[start]:
        start += 1
    lm.set_attn_implementation("eager")
    with torch.no_grad():
        logprobs = lm(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
    scored = [float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole))]
    return sum(scored), len(scored)


@pytest.fixture(scope="module", params=["gpt2", "aquila_bpe"])
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Any:
    return load.load_tokenizer(str(shared / "data" / "tokenizers" / request.param))


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("prefix", ["", SHOTS * 3], ids=["0-shot", "3-shot"])
def test_trees_score_as_one_sequence_at_a_time(name: str, prefix: str, tokenizer: Any) -> None:
    model = model_of(name, tokenizer)
    asked = [(prefix + prompt, texts) for prompt, texts in QUESTIONS]
    found, cost = choose(model, tokenizer, asked)
    turned, _ = choose(model, tokenizer, asked[::-1], row_tokens=40)
    assert (model.traits.method == "padded") == (name == "bloom")
    assert cost.computed < cost.unshared or name == "bloom"
    for (prompt, texts), scored, again in zip(asked, found, turned[::-1], strict=True):
        for text, s, n, t in zip(texts, scored.scores, scored.tokens, again.scores, strict=True):
            truth, count = alone(model.lm, tokenizer, prompt, text)
            assert n == count
            assert s == pytest.approx(truth, abs=1e-4) and t == pytest.approx(truth, abs=1e-4)


def test_a_token_merged_across_the_boundary_is_scored_whole(shared: Path) -> None:
    tokenizer = load.load_tokenizer(str(shared / "data" / "tokenizers" / "gpt2"))
    ((ids, flags),) = encode_candidates(tokenizer, "He is run", ["ning"]).paths
    assert tokenizer.decode([i for i, f in zip(ids, flags, strict=True) if f]) == " running"
    ((ids, flags),) = encode_candidates(tokenizer, "He is", [" running"]).paths
    assert tokenizer.decode([i for i, f in zip(ids, flags, strict=True) if f]) == " running"


def test_the_python_interface_gives_the_same(shared: Path) -> None:
    tokenizer = load.load_tokenizer(str(shared / "data" / "tokenizers" / "gpt2"))
    model = model_of("llama", tokenizer)
    prompt, texts = QUESTIONS[2]
    for (total, count), text in zip(espalier.score(model.lm, tokenizer, prompt, texts), texts, strict=True):
        truth, n = alone(model.lm, tokenizer, prompt, text)
        assert count == n and total == pytest.approx(truth, abs=1e-4)


# --- task files -----------------------------------------------------------------------------------

ROWS = [{"q": f"{a} + {b} =", "options": [str(a + b), str(a + b + 1)], "answer": str(a + b)}
        for a in range(1, 4) for b in range(1, 4)]  # fmt: skip
TASK = {
    "name": "sums",
    "data": "sums.jsonl",
    "question": "{{ q }}",
    "candidates": "options",
    "gold": "answer",
}


def task_file(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Path:
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    settings = {k: v for k, v in {**TASK, **changes}.items() if v is not None}
    (folder / "sums.yaml").write_text(json.dumps(settings), "utf-8")
    return folder / "sums.yaml"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load.train_tokenizer([row["q"] + " " + row["answer"] for row in ROWS] * 5, 280)
    model = model_of("llama", tokenizer)
    save_model(folder, model, tokenizer)
    return folder


def test_a_model_that_knows_gets_everything_and_its_opposite_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.exam import run as room
    from espalier.exam.answer import Cost, Scored

    task = load_task(task_file(tmp_path))
    tokenizer = load.load_tokenizer(str(small))
    lm = load.load_lm(str(small))
    golds = iter([q.gold for q in task.questions] * 2)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):

        def planted(*_: Any, sign: float = sign, **__: Any) -> tuple[list[Scored], Cost]:
            return [Scored([sign * (i == next_gold) for i in range(2)], [1, 1])
                    for next_gold in [next(golds) for _ in task.questions]], Cost(1, 1)  # fmt: skip

        monkeypatch.setattr(room, "choose", planted)
        results = run_tasks(
            TreeModel(lm, probe(lm)), tokenizer, [task], tmp_path / "out", name="x", quiet=True
        )
        assert results["tasks"]["sums"]["metrics"]["accuracy"] == expected


def test_results_have_the_promised_keys(small: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path, train="sums.jsonl")
    results = evaluate(str(small), [str(path)], out=tmp_path / "out", shots=2, limit=5, quiet=True)
    assert results["template"] is None
    assert results == json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    row = results["tasks"]["sums"]
    assert row["n"] == 5 and row["shots"] == 2 and row["tokens_computed"] < row["tokens_unshared"]
    assert set(row["metrics"]) == {"accuracy", "accuracy_stderr"} and row["chance"] == 0.5
    lines = [json.loads(x) for x in (tmp_path / "out" / "sums.jsonl").read_text("utf-8").splitlines()]
    wanted = {"id", "prefix", "prompt", "candidates", "scores", "tokens", "normalise", "gold", "prediction"}
    assert len(lines) == 5 and all(set(line) == wanted for line in lines)
    assert results["prefixes"][lines[0]["prefix"]].count("=") == 2


def test_generated_answers_are_cut_and_compared(small: Path, tmp_path: Path) -> None:
    path = task_file(
        tmp_path,
        candidates=None,
        gold=None,
        generation={"references": "answer", "max_new_tokens": 4, "metric": "contains"},
    )
    results = evaluate(str(small), [str(path)], out=tmp_path / "out", quiet=True)
    assert set(results["tasks"]["sums"]["metrics"]) == {"contains", "contains_stderr"}
    line = json.loads((tmp_path / "out" / "sums.jsonl").read_text("utf-8").splitlines()[0])
    assert set(line) == {"id", "prefix", "prompt", "text", "references", "metrics"}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"questoin": "x"}, "did you mean `question`"),
        ({"question": "{{ query }}"}, "sums.jsonl:1"),
        ({"gold": "7"}, "is no candidate"),
        ({"candidates": "choices"}, "the data has q, options, answer"),
        ({"gold": None}, "`gold` is missing"),
        ({"shots": 2}, "no `train` file"),
        ({"normalise": "max"}, "wanted sum or mean"),
        ({"generation": {"references": "answer"}}, "one of them"),
    ],
)
def test_a_wrong_task_file_says_what_to_do(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_task(task_file(tmp_path, **changes))
    assert wanted in str(error.value)


def test_a_missing_task_file_names_a_near_one(tmp_path: Path) -> None:
    task_file(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean .*sums\.yaml"):
        load_task(tmp_path / "sum.yaml")


def test_a_number_as_gold_is_an_index_and_a_text_is_a_text(tmp_path: Path) -> None:
    rows = [{"q": "x", "options": ["1", "2", "3"], "answer": value} for value in (1, "1")]
    task = load_task(task_file(tmp_path, rows))
    assert [q.gold for q in task.questions] == [1, 0]


def test_one_stop_text_is_one(tmp_path: Path) -> None:
    generation = {"references": "answer", "stop": "END"}
    assert load_task(task_file(tmp_path, candidates=None, gold=None, generation=generation)).stop == ("END",)


def test_a_broken_model_gets_no_score() -> None:
    from espalier.exam.answer import Scored
    from espalier.exam.scores import predicted

    with pytest.raises(UserError, match="weights are broken"):
        predicted(Scored([float("nan"), 0.0], [1, 1]), "sum")
