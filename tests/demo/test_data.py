"""Every answer of the demo's data is checked by a rule that reads the text, not the generator's tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from espalier.demo import data
from espalier.demo.facts import FACTS, KINDS, QUESTIONS, STATEMENTS, words
from espalier.errors import UserError

DAYS_ZH, DAYS_EN = "一二三四五六日", words("Mon Tues Wednes Thurs Fri Satur Sun")
MONTHS_ZH = words("一 二 三 四 五 六 七 八 九 十 十一 十二")
MONTHS_EN = words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")


def solve(task: data.Exercise) -> str | None:
    """The answer worked out from the prompt's text alone; None for word knowledge (opposite, group)."""
    numbers = [int(n) for n in re.findall(r"\d+", task.prompt)]
    if task.kind == "sum":
        return str(sum(numbers))
    if task.kind == "difference":
        return str(max(numbers) - min(numbers))
    if task.kind == "larger":
        return str(max(numbers))
    if task.kind == "smaller":
        return str(min(numbers))
    if task.kind == "order":
        return (", " if task.language == "en" else "、").join(map(str, sorted(numbers)))
    if task.kind == "reverse":
        return "".join(reversed(word_of(task)))
    if task.kind in ("day_after", "day_before"):
        step = 1 if task.kind == "day_after" else -1
        if task.language == "zh":
            named = re.search(r"星期([一二三四五六日])", task.prompt)
            assert named
            return "星期" + DAYS_ZH[(DAYS_ZH.index(named[1]) + step) % 7]
        place = next(i for i, day in enumerate(DAYS_EN) if day + "day" in task.prompt)
        return DAYS_EN[(place + step) % 7] + "day"
    if task.kind == "month_after":
        if task.language == "zh":
            named = re.search(r"(十?[一二三四五六七八九十])月", task.prompt)
            assert named
            return MONTHS_ZH[(MONTHS_ZH.index(named[1]) + 1) % 12] + "月"
        place = next(i for i, month in enumerate(MONTHS_EN) if month in task.prompt)
        return next(name for name in ALL_MONTHS if name.startswith(MONTHS_EN[(place + 1) % 12]))
    return None


ALL_MONTHS = words("January February March April May June July August September October November December")


def word_of(task: data.Exercise) -> str:
    """The one word that the question is about: what no other question of its kind shares."""
    if task.language == "zh":
        return re.sub(r"把|倒过来写|反写|倒着念是什么|[“”。？]", "", task.prompt)
    return re.sub(r"Write|backwards|Reverse the word|What is|in reverse|[.? ]", "", task.prompt)


@pytest.fixture(scope="module")
def everything() -> list[data.Exercise]:
    asked = [question for fact in FACTS for question in QUESTIONS[fact.kind][fact.language]]
    count = sum(data.is_dev(p.format(**f.slots)) for f in FACTS for p in QUESTIONS[f.kind][f.language])
    return data.tasks(len(asked) - count, 0) + data.tasks(count, 0, "dev")


def test_every_answer_follows_from_its_question(everything: list[data.Exercise]) -> None:
    checked = Counter()
    for task in everything:
        wanted = solve(task)
        if wanted is not None:
            assert task.answer == wanted, task
            checked[task.kind] += 1
        assert task.answer not in task.wrong and len(set(task.wrong)) == len(task.wrong) >= 2, task
    assert set(checked) == set(KINDS) - {"opposite", "group"}


def test_word_knowledge_is_consistent() -> None:
    for language in ("zh", "en"):
        opposite = {
            f.slots["word"]: f.answer for f in FACTS if (f.kind, f.language) == ("opposite", language)
        }
        assert len(opposite) == 14 and all(opposite[other] == word for word, other in opposite.items())
        group = {f.slots["word"]: f.answer for f in FACTS if (f.kind, f.language) == ("group", language)}
        assert sorted(Counter(group.values()).values()) == [4, 4, 4]
    known = {f.slots["word"]: f.answer for f in FACTS if f.kind == "group"}
    assert known["苹果"] == "水果" and known["红色"] == "颜色" and known["horse"] == "animal"


def test_one_prompt_has_one_answer_and_one_side(everything: list[data.Exercise]) -> None:
    assert len({task.prompt for task in everything}) == len(everything)
    train, dev = data.tasks(540, 3), data.tasks(130, 4, "dev")
    assert not {task.prompt for task in train} & {task.prompt for task in dev}


@pytest.mark.parametrize("split", ["train", "dev"])
def test_all_kinds_and_both_languages_are_asked(split: str) -> None:
    asked = data.tasks(130, 0, split)
    assert {task.kind for task in asked} == set(KINDS)
    languages = Counter(task.language for task in asked)
    assert set(languages) == {"zh", "en"} and min(languages.values()) > 45
    for task in asked:
        assert bool(re.search("[\u4e00-\u9fff]", task.reply)) == (task.language == "zh")


def test_same_seed_same_data_and_another_seed_other_data() -> None:
    for make in (data.sentences, data.tasks, data.chats, data.preferences):
        assert make(50, 1) == make(50, 1)
        assert make(50, 1) != make(50, 2)


def test_too_many_tasks_are_refused_with_the_number_there_is() -> None:
    with pytest.raises(UserError, match=r"ask for at most \d+"):
        data.tasks(10**6, 0)


def test_plain_text_is_true_and_keeps_dev_questions_out(everything: list[data.Exercise]) -> None:
    text = data.sentences(400, 0)
    assert len(text) == 400
    told = {
        form.format(**fact.slots, answer=fact.answer)
        for fact in FACTS
        for form in STATEMENTS[fact.kind][fact.language]
    }
    joined = "\n".join(text)
    statements = [document for i, document in enumerate(text) if i % 4 < 2]
    left = "\n".join(statements)
    for sentence in sorted(told, key=len, reverse=True):
        left = left.replace(sentence, "")
    assert left.strip() == ""
    quiz = {task.prompt: task.answer for task in everything}
    for task in everything:
        if data.is_dev(task.prompt):
            assert not re.search(
                rf"(^|[。. ]){re.escape(task.prompt)} ?{re.escape(task.answer)}[。.]", joined, re.M
            )
    assert sum(prompt in joined for prompt in quiz) > 200
    assert "答案是" not in joined and "The answer is" not in joined


def test_sums_in_plain_text_hold() -> None:
    found = re.findall(r"(\d+) ?([+-]) ?(\d+) ?= ?[？?]? ?(\d+)", "\n".join(data.sentences(2000, 5)))
    assert len(found) > 100
    assert all(int(a) + (int(b) if sign == "+" else -int(b)) == int(c) for a, sign, b, c in found)


def test_chats_are_turns_that_end_with_the_assistant() -> None:
    lengths = Counter()
    for conversation in data.chats(300, 0):
        assert [turn["role"] for turn in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        lengths[len(conversation)] += 1
    assert lengths[4] == 50 and lengths[2] == 250
    assert all(len(conversation) == 2 for conversation in data.chats(100, 0, "dev"))


def test_preferences_reject_for_the_reason_they_name() -> None:
    pairs = data.preferences(600, 0)
    flaws = Counter(pair.flaw for pair in pairs)
    assert set(flaws) == {"wrong", "rude", "evasive"} and 0.05 < flaws["wrong"] / 600 < 0.2
    for pair in pairs:
        form = "答案是" if pair.task.language == "zh" else "The answer is"
        assert data.reward(pair.task.prompt, pair.chosen, pair.task.reply) == 1
        assert data.reward(pair.task.prompt, pair.rejected, pair.task.reply) == 0
        assert pair.rejected.startswith(form) == (pair.flaw == "wrong")
    assert all(pair.flaw == "wrong" for pair in data.preferences(50, 0, wrong_share=1.0))


@pytest.mark.parametrize(
    ("completion", "paid"),
    [
        ("答案是7。", 1.0),
        (" 答案是７ ", 1.0),
        ("答案是8。", 0.0),
        ("7", 0.0),
        ("答案是7。答案是7。", 0.0),
        ("", 0.0),
    ],
)
def test_the_rule_pays_for_the_right_polite_answer_only(completion: str, paid: float) -> None:
    assert data.reward("3加4等于几？", completion, "答案是7。") == paid


def test_files_have_the_columns_that_records_are_found_by(tmp_path: Path) -> None:
    sizes = dict.fromkeys(data.SIZES, 60)
    files = data.write_demo_data(tmp_path / "data", 0, sizes)
    assert set(files) == set(data.SIZES)
    rows = {name: [json.loads(line) for line in path.open(encoding="utf-8")] for name, path in files.items()}
    assert {name: len(found) for name, found in rows.items()} == sizes
    columns = {
        "pretrain": {"text"},
        "pretrain_dev": {"text"},
        "sft_train": {"messages"},
        "sft_dev": {"messages"},
        "pref_train": {"prompt", "chosen", "rejected"},
        "pref_dev": {"prompt", "chosen", "rejected"},
        "prompts": {"prompt", "reference"},
        "prompts_dev": {"prompt", "reference"},
        "exam": {"id", "question", "candidates", "gold", "references"},
    }
    for name, found in rows.items():
        assert all(set(row) == columns[name] for row in found), name
    for row in rows["exam"]:
        assert row["candidates"][row["gold"]] == row["references"][0]
        assert len(set(row["candidates"])) == len(row["candidates"]) >= 3
        assert data.is_dev(row["question"])
    assert len({row["id"] for row in rows["exam"]}) == 60
    assert len({row["question"] for row in rows["exam"]}) == 60
    assert len({row["gold"] for row in rows["exam"]}) >= 3, (
        "the place of the right answer must not give it away"
    )
    seen = {row["messages"][0]["content"] for row in rows["sft_dev"]}
    assert not seen & {row["question"] for row in rows["exam"]}
    trained = {
        turn["content"] for row in rows["sft_train"] for turn in row["messages"] if turn["role"] == "user"
    }
    trained |= {row["prompt"] for name in ("pref_train", "prompts") for row in rows[name]}
    assert not any(
        data.is_dev(prompt)
        for prompt in trained - {"你好！"}
        if prompt in {r["question"] for r in rows["exam"]}
    )
    assert not trained & (
        seen | {row["question"] for row in rows["exam"]} | {row["prompt"] for row in rows["pref_dev"]}
    )


def test_default_sizes_fit_the_world(tmp_path: Path) -> None:
    files = data.write_demo_data(tmp_path, 0)
    for name, path in files.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) == data.SIZES[name]


def test_an_unknown_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Correct the name"):
        data.write_demo_data(tmp_path, 0, {"sft": 3})
