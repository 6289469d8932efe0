"""The lm_eval backend against lm_eval's own "hf" backend, on the same model."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, manager
from lm_eval.utils import make_table

from espalier.errors import UserError
from espalier.exam.evaluate import Asking, evaluate
from espalier.exam.lm_eval import EspalierLM, grouped
from espalier.exam.tasks import Settings
from espalier.models import load
from espalier.models.saved import save_model
from tests import processes
from tests.conftest import SAMPLES, Vocabulary, real_data
from tests.exam.independent import model_of, tokenizer_of
from tests.exam.tasks.test_own_task import task_file
from tests.families.test_marked import t5

MACHINE = "torch.utils.collect_env.get_pretty_env_info"
"""lm_eval writes into each result what pip has installed and what the machine is: a second of other programs' time."""
SHOTS = "Question: What is the capital of France?\nAnswer: Paris\n\n" * 8


@pytest.fixture(autouse=True)
def _a_machine_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MACHINE, lambda: "")


@pytest.fixture(scope="module", params=["gpt2-llama", "aquila_bpe-qwen2", "gpt2-bloom"])
def folder(
    request: pytest.FixtureRequest, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    name, _, kind = request.param.partition("-")
    tokenizer = tokenizer_of(str(vocabulary(name)))
    path = tmp_path_factory.mktemp("model")
    changes = {} if kind == "bloom" else {"max_position_embeddings": 256}
    save_model(path, model_of(kind, tokenizer, **changes), tokenizer)
    return path


@pytest.fixture(scope="module")
def one(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one")
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    save_model(path, model_of("llama", tokenizer), tokenizer)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[EspalierLM, HFLM]:
    length = None if "bloom" in (folder / "config.json").read_text() else 256
    ours = EspalierLM(str(folder), max_length=length or 512)
    lm = load.load_lm(str(folder))
    return ours, HFLM(pretrained=lm, tokenizer=ours.tokenizer, batch_size=4, max_length=length or 512)


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, arguments[i], i) for i in range(len(arguments))]  # type: ignore[arg-type]


def pairs() -> list[tuple[str, str]]:
    maker = random.Random(0)
    found = [("", " hello world"), ("", "你好"), ("Yes ", "no")]
    for i in range(12):
        question = f"{SHOTS if i % 3 else ''}Question: number {maker.randrange(999)}?\nAnswer:"
        found += [(question, f" {maker.randrange(99)} and {maker.randrange(99)}") for _ in range(4)]
        found += [(question, " yes"), (question, " no")]
    found += [("中国的首都是", "北京"), ("中国的首都是", "上海"), ("中国", "的首都")]
    found += [
        ("word " * 400 + "end", " of it all"),
        ("word " * 400 + "end", " of"),
    ]  # longer than the context
    return found


@pytest.mark.slow
def test_loglikelihoods_are_those_of_the_hf_backend(both: tuple[EspalierLM, HFLM]) -> None:
    ours, theirs = both
    asked = pairs()
    found = ours.loglikelihood(requests("loglikelihood", asked))
    truth = theirs.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    for (score, greedy), (right, right_greedy) in zip(found, truth, strict=True):
        assert score == pytest.approx(right, abs=1e-4, rel=1e-5) and greedy == right_greedy
    if ours.model.traits.method != "padded":
        assert ours.cost.computed < 0.5 * ours.cost.unshared


def test_an_encoder_decoder_is_asked_as_the_hf_backend_asks_it(tmp_path: Path) -> None:
    """Its seq2seq mode encodes context and continuation apart, and scores no end token."""
    folder = t5(tmp_path)
    theirs = HFLM(pretrained=str(folder), backend="seq2seq", batch_size=2, max_length=256, device="cpu")
    ours = EspalierLM(str(folder), max_length=256)
    asked = [
        ("一加一等于几？答：", " 二。"),
        ("一加一等于几？答：", " 三。"),
        ("say hello", " hello there"),
        ("你好", "再见"),
    ]
    found = ours.loglikelihood(requests("loglikelihood", asked))
    truth = theirs.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in truth], abs=1e-4)
    how = {"until": ["。"], "max_gen_toks": 6, "do_sample": False}
    written = [(context, how) for context, _ in asked]
    said = ours.generate_until(requests("generate_until", written))
    assert said == theirs.generate_until(requests("generate_until", written), disable_tqdm=True)


@pytest.mark.slow
def test_rolling_loglikelihoods_are_those_of_the_hf_backend(both: tuple[EspalierLM, HFLM]) -> None:
    ours, theirs = both
    # no text that repeats itself: lm_eval takes windows of equal tokens for one request
    numbered = "".join(f"{n}月亮是圆的。" for n in range(100))
    texts = [("The moon is round. " * 90,), ("A short one.",), (numbered,)]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    truth = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(truth, rel=1e-5)


def test_written_answers_are_those_of_the_hf_backend(both: tuple[EspalierLM, HFLM]) -> None:
    ours, theirs = both
    asked = [
        ("Question: who?\nAnswer:", {"until": ["\n", "Question"], "max_gen_toks": 24}),
        ("问：谁？\n答：", {"until": ["\n"], "max_gen_toks": 24}),
        ("Once upon a time", {"until": [" the"], "max_gen_toks": 16, "do_sample": False}),
        ("word " * 400 + "end", {"until": ["\n"], "max_gen_toks": 8}),
    ]
    found = ours.generate_until(requests("generate_until", asked))
    assert found == theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)


def test_greedy_is_true_where_the_model_would_write_it(both: tuple[EspalierLM, HFLM]) -> None:
    ours, _ = both
    context = "Question: who?\nAnswer:"
    (text,) = ours.generate_until(requests("generate_until", [(context, {"until": [], "max_gen_toks": 4})]))
    if ours.tokenizer.encode(context + text)[: len(ours.tokenizer.encode(context))] == ours.tokenizer.encode(
        context
    ):
        (found,) = ours.loglikelihood(requests("loglikelihood", [(context, text)]))
        again = ours.tokenizer.encode(context + text)[len(ours.tokenizer.encode(context)) :]
        if ours.tokenizer.decode(again) == text and len(again) == 4:
            assert found[1]


def test_pairs_come_back_in_their_order_whatever_they_share() -> None:
    maker = random.Random(1)
    trunk = [maker.randrange(50) for _ in range(100)]
    made = []
    for _ in range(200):
        start = trunk[: maker.choice([1, 30, 70, 100])]
        made.append(
            (start + [maker.randrange(3) for _ in range(maker.randrange(1, 4))], [maker.randrange(9)])
        )
    groups, whose = grouped(made)
    seen = []
    for shared, questions in groups:
        for number, question in questions.items():
            for i, (tail, unscored) in zip(whose[number], question.tails, strict=True):
                assert (shared + question.stem, tail, unscored) == (*made[i], 0) and question.stem
                seen.append(i)
    assert sorted(seen) == list(range(200))
    tokens = sum(len(shared) + sum(len(q.stem) for q in qs.values()) for shared, qs in groups)
    assert tokens < 0.5 * sum(len(context) for context, _ in made)


# --- whole tasks of lm_eval, with data on the disk ----------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks in lm_eval's own language: multiple choice with drawn shots, and written answers."""
    path = tmp_path_factory.mktemp("tasks")
    real = real_data()
    folder = SAMPLES / "exams" if real is None else real / "data"
    for split, source in (("train", "train_few_all"), ("test", "test_public" if real else "dev_few_all")):
        rows = (folder / "eprstmt" / f"{source}.json").read_text("utf-8").strip().split("\n")[:24]
        (path / f"{split}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    common = (
        "dataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    train: {path / 'train.jsonl'}\n    test: {path / 'test.jsonl'}\n"
        "training_split: train\ntest_split: test\n"
    )
    (path / "sentiment.yaml").write_text(
        "task: sentiment\noutput_type: multiple_choice\n" + common +
        'doc_to_text: "评论：{{sentence}}\\n情感："\ndoc_to_choice: ["差", "好"]\n'
        "doc_to_target: \"{{['Negative', 'Positive'].index(label)}}\"\n"
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n', "utf-8",
    )  # fmt: skip
    (path / "opinion.yaml").write_text(
        "task: opinion\noutput_type: generate_until\n" + common +
        'doc_to_text: "评论：{{sentence}}\\n情感："\ndoc_to_target: "{{label}}"\n'
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 6\nmetric_list:\n  - metric: exact_match\n', "utf-8",
    )  # fmt: skip
    return path


FEWER_TASKS = (
    "import runpy; from lm_eval.tasks import manager; manager.__file__ = '{folder}/manager.py'; "
    "import torch.utils.collect_env; " + MACHINE + " = str"
)
"""lm_eval reads the 10,000 files of its own tasks each time it begins; these tests need none of them."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shots"), [("sentiment", 0), ("sentiment", 3), ("opinion", 0)])
def test_whole_tasks_give_the_same_results(
    name: str, shots: int, both: tuple[EspalierLM, HFLM], tasks: Path
) -> None:
    tasks_of = TaskManager(include_path=str(tasks), include_defaults=False)
    ours, theirs = (
        simple_evaluate(model=lm, tasks=[name], num_fewshot=shots, task_manager=tasks_of, bootstrap_iters=0)
        for lm in both
    )
    assert ours is not None and theirs is not None
    assert ours["results"] == theirs["results"]
    for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
        assert one["arguments"] == other["arguments"] and one["target"] == other["target"]


@pytest.mark.slow
def test_the_command_takes_the_arguments_of_lm_eval(one: Path, tasks: Path, tmp_path: Path) -> None:
    code = f"{FEWER_TASKS.format(folder=str(tmp_path))}; runpy.run_module('espalier.exam.lm_eval', run_name='__main__')"
    command = [
        sys.executable, "-c", code, "run", "--model", "espalier", "--model_args", f"pretrained={one}",
        "--tasks", "sentiment", "--include_path", str(tasks), "--limit", "4", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    said = processes.run(command, capture_output=True)
    assert said.returncode == 0, said.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    assert "acc,none" in json.loads(path.read_text("utf-8"))["results"]["sentiment"]


@pytest.mark.slow
def test_lm_eval_tasks_are_exams_of_ours(one: Path, tasks: Path, tmp_path: Path) -> None:
    settings = Settings(tasks, limit=6)
    results = evaluate(
        str(one),
        ["lm_eval:sentiment"],
        out=tmp_path,
        settings=settings,
        shots=[0, 2],
        asking=Asking(quiet=True),
    )
    tasks_of = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = HFLM(pretrained=load.load_lm(str(one)), tokenizer=load.load_tokenizer(str(one)), batch_size=4)
    for shots in (0, 2):
        row = results["tasks"][f"lm_eval_sentiment_{shots}shot"]
        truth = simple_evaluate(
            model=theirs, tasks=["sentiment"], num_fewshot=shots, limit=6, task_manager=tasks_of,
            bootstrap_iters=0, fewshot_random_seed=42,
        )  # fmt: skip
        assert truth is not None
        numbers: Any = truth["results"]["sentiment"]
        assert row["n"] == 6 and row["shots"] == shots and row["metrics"]["acc"] == numbers["acc,none"]
        assert row["metrics"]["acc_stderr"] > 0 and row["tokens_computed"] > 0
        lines = [
            json.loads(x) for x in (tmp_path / f"lm_eval_sentiment_{shots}shot.jsonl").open(encoding="utf-8")
        ]
        assert sum(line["metrics"]["acc"] for line in lines) / 6 == row["metrics"]["acc"]


@pytest.mark.slow
def test_an_unknown_task_of_lm_eval_is_refused(
    one: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "manager.py"))
    with pytest.raises(UserError, match="has no such task"):
        evaluate(
            str(one),
            ["lm_eval:sentimnt"],
            out=tmp_path,
            settings=Settings(tasks),
            asking=Asking(quiet=True),
        )


def test_our_results_are_read_by_what_reads_lm_evals(one: Path, tmp_path: Path) -> None:
    """lm_eval's own table is made from our file; a sample holds the very numbers of our line."""
    path = task_file(tmp_path, train="train.jsonl")
    asking = Asking(quiet=True, lm_eval_files=True)
    results = evaluate(str(one), [str(path)], out=tmp_path / "out", shots=[1], asking=asking)
    (file,) = (tmp_path / "out" / "lm_eval").rglob("results_*.json")
    whole = json.loads(file.read_text("utf-8"))
    table = make_table(whole)
    value = results["tasks"]["sums"]["metrics"]["accuracy"]
    assert f"{value:.4f}" in table and "|sums" in table and "acc" in table
    (samples,) = file.parent.glob("samples_sums_*.jsonl")
    found = [json.loads(line) for line in samples.open(encoding="utf-8")]
    lines = [json.loads(line) for line in (tmp_path / "out" / "sums.jsonl").open(encoding="utf-8")]
    assert sum(sample["acc"] for sample in found) / len(found) == value
    for sample, line in zip(found, lines, strict=True):
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == line["scores"]
        assert sample["arguments"]["gen_args_0"]["arg_0"].endswith(line["prompt"])
