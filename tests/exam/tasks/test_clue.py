"""Every CLUE task on its real files: prompts, shots, scores and predictions are those of an evaluator of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.evaluate import Asking, examine_all
from espalier.exam.plan import plan
from espalier.exam.task import Question, Task
from espalier.exam.tasks import GROUPS, NoShots, Settings, make_task
from espalier.exam.tasks.clue import EXAMS
from espalier.exam.tasks.clue_exam import ClueExam
from espalier.models.forward import TreeModel
from tests import processes
from tests.exam.independent import alone, encoded, model_of, tokenizer_of
from tests.exam.planted import planted
from tests.exam.tasks.clue_prompts import RELATIONS, TNEWS, Known, known

FOLDERS = {"chid": "chid_fewclue"}
LIMITS = {"iflytek": 1}


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Callable[[str], Path]) -> Any:
    return tokenizer_of(str(vocabulary("aquila_bpe")))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> TreeModel:
    return model_of("qwen2", tokenizer, max_position_embeddings=8192)


def asked(task: Task) -> list[Question]:
    return [question for question in task.read() if isinstance(question, Question)]


def truth(exams: Path, name: str, split: str) -> list[Known]:
    return list(known(exams / FOLDERS.get(name, name), name, split))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["plain", "pangu"])
@pytest.mark.parametrize("name", sorted(EXAMS))
def test_an_independent_scorer_agrees(
    name: str, prompts: Any, layouts: Path, tokenizer: Any, model: TreeModel, tmp_path: Path
) -> None:
    settings = Settings(layouts, prompts, limit=LIMITS.get(name, 3))
    results = examine_all(
        model, tokenizer, plan([name], [0, 3], settings), tmp_path, name="random", asking=Asking(quiet=True)
    )
    normalise = "mean" if prompts == "pangu" or name == "c3" else "sum"
    questions = truth(layouts, name, "dev")
    pool = truth(layouts, name, "train")
    for shots in (0, 3):
        lines = [json.loads(x) for x in (tmp_path / f"{name}_{shots}shot.jsonl").open(encoding="utf-8")]
        right = 0
        for line, question in zip(lines, questions, strict=False):
            gold, (prompt, candidates) = question[0], question[1 if prompts == "plain" else 2]
            prefix = results["prefixes"][line["prefix"]] if shots else ""
            assert line["prompt"] == prompt and line["gold"] == gold
            assert [(c["text"], c["scored_from"]) for c in line["candidates"]] == candidates
            found = [alone(model.lm, tokenizer, prefix + prompt, *candidate) for candidate in candidates]
            assert line["scores"] == pytest.approx([s for s, _ in found], abs=1e-4, rel=1e-6)
            assert line["tokens"] == [n for _, n in found]
            values = [s / n if normalise == "mean" else s for s, n in found]
            best = values.index(max(values))
            assert line["prediction"] == best
            right += best == gold
        row = results["tasks"][f"{name}_{shots}shot"]
        assert row["n"] == len(lines) == LIMITS.get(name, 3) and row["normalise"] == normalise
        assert row["metrics"]["accuracy"] == pytest.approx(right / len(lines))
        assert row["chance"] == pytest.approx(sum(1 / len(line["candidates"]) for line in lines) / len(lines))
    # Solved examples: from the train file, with its gold labels, one prefix for all questions.
    (prefix,) = {results["prefixes"][line["prefix"]] for line in lines}
    solved = {}
    for gold, plain, pangu in pool:
        prompt, candidates = plain if prompts == "plain" else pangu
        assert gold is not None
        solved[prompt + candidates[gold][0]] = gold
    if prompts == "pangu" and name in ("tnews", "iflytek"):  # cut to so many characters
        many = {"tnews": 150, "iflytek": 25}[name]
        solved = {head + "：" + text[:many] for head, _, text in (one.partition("：") for one in solved)}  # type: ignore[assignment]
    separator = "\n\n" if prompts == "plain" else "\n"
    count = 0
    while prefix:
        example = max((one for one in solved if prefix.startswith(one + separator)), key=len, default=None)
        assert example is not None, f"no solved example of the train file: {prefix[:200]!r}"
        prefix = prefix.removeprefix(example + separator)
        count += 1
    assert count == 3


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["plain", "pangu"])
@pytest.mark.parametrize("name", sorted(EXAMS))
def test_every_question_of_the_file_is_asked(name: str, prompts: Any, layouts: Path) -> None:
    questions = asked(make_task(name, Settings(layouts, prompts), shots=0))
    expected = truth(layouts, name, "dev")
    assert len(questions) == len(expected) and len({q.id for q in questions}) == len(questions)
    for question, one in zip(questions, expected, strict=True):
        prompt, candidates = one[1 if prompts == "plain" else 2]
        assert (question.prompt, question.gold) == (prompt, one[0])
        assert [(c.text, c.scored_from) for c in question.candidates] == candidates


@pytest.mark.parametrize("name", [name for name in GROUPS["clue"] if name in EXAMS])
def test_the_layout_of_clue_itself(name: str, shared: Path) -> None:
    """One to a few real rows of each original file."""
    folder = shared / "data" / "clue_format_witness"
    questions = asked(make_task(name, Settings(folder), shots=0))
    expected = list(known(folder / name, name, "dev")) if name not in ("iflytek", "csl") else []
    assert questions and all(q.gold is not None for q in questions)
    for question, one in zip(questions, expected, strict=bool(expected)):
        assert (question.prompt, question.gold) == (one[1][0], one[0])


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["plain", "pangu"])
@pytest.mark.parametrize("name", sorted(EXAMS))
def test_a_model_that_knows_gets_everything(
    name: str, prompts: Any, layouts: Path, tokenizer: Any, tmp_path: Path
) -> None:
    planned = plan([name], [0], Settings(layouts, prompts, limit=LIMITS.get(name, 4)))
    (task, n) = planned.tasks[0]

    def says(q: Question, right: bool) -> list[int]:
        assert q.gold is not None
        said = q.gold if right else (q.gold + 1) % len(q.candidates)
        ids = encoded(tokenizer, q.prompt + q.candidates[said].text)
        return ids if q.prompt else [tokenizer.bos_token_id, *ids]

    for share in (1.0, 0.5, 0.0):
        texts = [says(q, i < share * n) for i, q in enumerate(asked(task))]
        results = examine_all(
            planted(len(tokenizer), texts), tokenizer, planned, tmp_path / str(share), name=f"planted {share}",
            asking=Asking(quiet=True),
        )  # fmt: skip
        expected = sum(i < share * n for i in range(n)) / n
        assert results["tasks"][name]["metrics"]["accuracy"] == pytest.approx(expected)


# --- the traps of the predecessors' evaluator --------------------------------------------------------


def test_shots_come_from_the_train_file_only(exams: Path, tmp_path: Path) -> None:
    (tmp_path / "bustm").mkdir()
    (tmp_path / "bustm" / "dev.json").write_bytes((exams / "bustm" / "dev_few_all.json").read_bytes())
    with pytest.raises(NoShots, match="no train file"):
        make_task("bustm", Settings(tmp_path), shots=3)
    planned = plan(["bustm"], [0, 3], Settings(tmp_path, limit=2))
    assert [task.shots for task, _ in planned.tasks] == [0] and "bustm, 3 shots" in planned.skipped


@pytest.mark.parametrize("new", [False, True])
def test_all_candidates_of_a_question_have_the_same_shots(new: bool, exams: Path) -> None:
    task = make_task("tnews", Settings(exams, limit=20, new_shots=new), shots=3)
    drawn = [question.shots.pairs for question in asked(task)]
    assert len(set(drawn)) == (20 if new else 1) and all(len(set(pairs)) == 3 for pairs in drawn)
    assert drawn == [question.shots.pairs for question in asked(task)], "another reading draws others"


def test_another_seed_draws_other_shots(exams: Path) -> None:
    first, second = (
        asked(make_task("tnews", Settings(exams, limit=1, seed=seed), shots=3))[0].shots for seed in (1, 2)
    )
    assert first != second


def test_two_candidates_of_one_item_are_compared_in_cluewsc(exams: Path) -> None:
    for prompts in ("plain", "pangu"):
        questions = asked(make_task("cluewsc2020", Settings(exams, prompts), shots=0))  # type: ignore[arg-type]
        assert all(len(q.candidates) == 2 and len({c.text for c in q.candidates}) == 2 for q in questions)


def test_c3_questions_have_as_many_candidates_as_the_file_says(exams: Path) -> None:
    questions = asked(make_task("c3", Settings(exams), shots=0))
    assert {len(q.candidates) for q in questions} == {2, 3, 4}
    assert not [c for q in questions for c in q.candidates if "test" in c.text]


def test_c3_says_dialogue_of_dialogues_only(exams: Path) -> None:
    for prompts, dialogue, article in (("plain", "对话：", "文章："), ("pangu", "来自对话", "来自文章")):
        for q in asked(make_task("c3", Settings(exams, prompts), shots=0)):  # type: ignore[arg-type]
            said, not_said = (dialogue, article) if "/d-" in q.source else (article, dialogue)
            text = q.prompt if prompts == "plain" else q.candidates[0].text
            assert (text.startswith(said) or said in text) and not text.startswith(not_said)


def test_disputed_rows_are_left_out_and_counted(exams: Path) -> None:
    rows = [json.loads(x) for x in (exams / "ocnli" / "dev.json").open(encoding="utf-8")]
    found = list(make_task("ocnli", Settings(exams), shots=0).read())
    out = [one for one in found if isinstance(one, LeftOut)]
    assert len(out) == sum(row["label"] == "-" for row in rows) and len(found) == len(rows)


@pytest.mark.slow
def test_wrong_candidates_are_shuffled_and_the_same_in_every_process(exams: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from espalier.exam.tasks import make_task, Settings\n"
        "t = make_task('iflytek', Settings(Path(sys.argv[1]), negatives=3, limit=40), shots=0)\n"
        "print(hash('x')); print([(q.gold, [c.label for c in q.candidates]) for q in t.read()])"
    )
    done = processes.run([sys.executable, "-c", code, str(exams)], capture_output=True, check=True)
    hashed, said = done.stdout.splitlines()
    assert int(hashed) != hash("x"), "Python orders a set otherwise there"
    drawn = eval(said)
    task = make_task("iflytek", Settings(exams, negatives=3, limit=40), shots=0)
    assert drawn == [(q.gold, [c.label for c in q.candidates]) for q in task.read()]
    golds = [gold for gold, _ in drawn]
    assert len(drawn) == 40 and {len(set(labels)) for _, labels in drawn} == {4}
    assert set(golds) == {0, 1, 2, 3} and golds.count(0) < 20, "the right one must not stand in one place"


def test_ties_favour_no_gold_answer(exams: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A model that finds everything equally likely gets about chance on one-token labels, not 100 %."""
    planned = plan(["tnews"], [0], Settings(exams, negatives=3, limit=40))
    nothing = planted(len(tokenizer), [])
    row = examine_all(nothing, tokenizer, planned, tmp_path, name="flat", asking=Asking(quiet=True))
    assert row["tasks"]["tnews"]["metrics"]["accuracy"] < 0.6 and row["tasks"]["tnews"]["chance"] == 0.25


# --- broken files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line", "wanted"),
    [
        ("afqmc", '{"sentence1": "a", "label": "0"}', r"dev.json:2: the field 'sentence2' is missing"),
        ("afqmc", '{"sentence1": "a", "sentence2": "b", "label": "2"}', r"dev.json:2: the label is '2'"),
        ("ocnli", '{"sentence1": "a", ', r"dev.json:2"),
        ("tnews", '{"sentence": "a", "label": "105"}', r"dev.json:2: the label is '105'"),
        ("cluewsc2020", '{"text": "abc", "target": {"span1_text": "a", "span2_text": "x", "span2_index": 1}, '
         '"label": "true"}', r"dev.json:2: span2_index 1"),
        ("chid", '{"content": ["no mark"], "candidates": ["a"]}', r"dev.json:2: a passage without a mark"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(name: str, line: str, wanted: str, tmp_path: Path) -> None:
    good = {
        "afqmc": '{"sentence1": "a", "sentence2": "b", "label": "0"}',
        "ocnli": '{"sentence1": "a", "sentence2": "b", "label": "neutral"}',
        "tnews": '{"sentence": "a", "label": "100"}',
        "cluewsc2020": '{"text": "abc", "target": {"span1_text": "a", "span2_text": "b", "span2_index": 1}, "label": "true"}',
        "chid": '{"content": ["a#idiom000001#b"], "candidates": ["a", "b"]}',
    }
    (tmp_path / name).mkdir()
    (tmp_path / name / "dev.json").write_text(good[name] + "\n" + line + "\n", "utf-8")
    with pytest.raises(UserError, match=wanted):
        plan([name], [0], Settings(tmp_path))


def test_an_unknown_exam_names_the_nearest(exams: Path) -> None:
    with pytest.raises(UserError, match="did you mean tnews"):
        plan(["tnew"], [0], Settings(exams))


# --- test sets without answers ------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["plain", "pangu"])
def test_the_files_for_submission(
    prompts: Any, shared: Path, tokenizer: Any, model: TreeModel, tmp_path: Path
) -> None:
    names = ["afqmc", "tnews", "ocnli", "cluewsc2020", "c3", "chid"]
    settings = Settings(shared / "data" / "clue_format_witness", prompts, split="test", limit=3)
    planned = plan(names, [0], settings)
    examine_all(model, tokenizer, planned, tmp_path, name="random", asking=Asking(quiet=True))
    labels = {
        "afqmc": {"0", "1"}, "tnews": set(TNEWS), "ocnli": set(RELATIONS), "cluewsc2020": {"true", "false"},
        "c3": {0, 1, 2, 3},
    }  # fmt: skip
    for name, known_labels in labels.items():
        lines = [json.loads(x) for x in (tmp_path / f"{name}.submission.json").open(encoding="utf-8")]
        mine = [json.loads(x) for x in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")]
        assert len(lines) == len(mine) > 0
        for line, one in zip(lines, mine, strict=True):
            assert set(line) == {"id", "label"} and line["label"] in known_labels and line["id"] == one["id"]
            if name in ("tnews", "ocnli"):
                order = list(TNEWS) if name == "tnews" else RELATIONS
                assert order[one["prediction"]] == line["label"]
    whole = json.loads((tmp_path / "chid.submission.json").read_text("utf-8"))
    assert whole and all(key.startswith("#idiom") and 0 <= said < 10 for key, said in whole.items())


def test_an_exam_without_a_prompt_or_a_word_is_told_when_it_is_made() -> None:
    complete = EXAMS["ocnli"]
    with pytest.raises(TypeError, match="pangu"):
        ClueExam(complete.folders, complete.read, complete.plain)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="ocnli: 2 words for 3 labels"):
        replace(complete, plain=replace(complete.plain, words=("蕴含", "矛盾")))
