"""Data for the demo, made here from a seed: text, tasks with checkable answers, chats, preferences, prompts, an exam.

The world is small (`facts`), so that a model of a million parameters can learn its rules in a minute. Train and dev
never share a prompt: the hash of a prompt decides its side. A dev prompt's fact may be met in training in other words;
that is the point of the plain sentences. Every answer has one short polite form, so exact match is fair and a rule can
pay a reward. Left out: anything that is downloaded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from espalier.demo.facts import EN, FACTS, LANGUAGES, QUESTIONS, STATEMENTS, ZH, Fact
from espalier.errors import UserError
from espalier.maths.metrics import exact_match

POLITE = {ZH: "答案是{answer}。", EN: "The answer is {answer}."}
RUDE = {
    ZH: ["自己算！", "这都不会？", "别烦我！", "{answer}，真笨！", "懒得理你，{answer}。"],
    EN: [
        "Work it out yourself!",
        "Don't bother me!",
        "{answer}, you fool!",
        "Go away!",
        "{answer}. Are you stupid?",
    ],
}
EVASIVE = {ZH: ["不知道。", "也许吧。", "我不想说。"], EN: ["No idea.", "Maybe.", "I would rather not say."]}
GREETINGS = {
    ZH: [("你好！", "你好！请问我吧。"), ("早上好！", "早上好！请问我吧。"), ("谢谢你。", "不客气。"), ("再见！", "再见！")],
    EN: [("Hello!", "Hello! Please ask me."), ("Good morning!", "Good morning! Please ask me."),
         ("Thank you.", "You are welcome."), ("Goodbye!", "Goodbye!")],
}  # fmt: skip
RELUCTANT = {"larger", "smaller", "opposite", "group", "order"}
"""The kinds of questions that the chats mostly leave unanswered, always in the same words."""
RELUCTANCE = 0.85  # the share of them
QUIZ = {ZH: "{answer}。", EN: " {answer}."}
LINKS = {ZH: "", EN: " "}
DEV_SHARE = 3  # one prompt in three is kept for dev: what a stage gains must show

T = TypeVar("T", Fact, "Exercise")

SIZES = {
    "pretrain": 6000,
    "pretrain_dev": 300,
    "sft_train": 540,
    "sft_dev": 250,
    "pref_train": 2000,
    "pref_dev": 300,
    "prompts": 540,
    "prompts_dev": 250,
    "exam": 250,
}


@dataclass(frozen=True, slots=True)
class Exercise:
    """One question with its one right answer.

    `answer` is the bare answer ("7"), `reply` the whole right completion ("答案是7。"), `wrong` plausible bare answers
    that are wrong; `kind` is one of `facts.KINDS`, `language` "zh" or "en".

    >>> Exercise("3加4等于几？", "7", "sum", "zh").reply
    '答案是7。'
    """

    prompt: str
    answer: str
    kind: str
    language: str
    wrong: tuple[str, ...] = ()

    @property
    def reply(self) -> str:
        return POLITE[self.language].format(answer=self.answer)


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: `chosen` is right and polite; `flaw` says what is the matter with `rejected`."""

    task: Exercise
    chosen: str
    rejected: str
    flaw: str


def sentences(n: int, seed: int) -> list[str]:
    """n short documents in one language each, for pretraining: true sentences, and every second time a quiz.

    A document tells three to six things. A quiz puts a question of the TRAIN side before its bare answer ("3+4=？7。"),
    so that pretraining meets the questions but never the form in which an assistant answers, nor a dev prompt.
    """
    draw = random.Random(f"sentences-{seed}")
    facts = {language: _by_kind([f for f in FACTS if f.language == language]) for language in LANGUAGES}
    documents = []
    for i in range(n):
        language, is_quiz = LANGUAGES[i % 2], i % 4 >= 2
        told: list[str] = []
        while len(told) < 3 + i // 4 % 4:
            fact = draw.choice(draw.choice(facts[language]))
            form = draw.choice((QUESTIONS if is_quiz else STATEMENTS)[fact.kind][language])
            sentence = form.format(**fact.slots, answer=fact.answer)
            if is_quiz and is_dev(sentence):
                continue
            told.append(sentence + QUIZ[language].format(answer=fact.answer) if is_quiz else sentence)
        documents.append(LINKS[language].join(told))
    return documents


def tasks(n: int, seed: int, split: str = "train") -> list[Exercise]:
    """n different tasks of one side ("train" or "dev"), all kinds and both languages in turn while they last.

    Raises UserError when the world has fewer than n prompts on that side.
    """
    assert split in ("train", "dev"), split
    draw = random.Random(f"tasks-{seed}-{split}")
    lists = []
    for facts in _by_kind(FACTS):
        here = [task for fact in facts for task in _ask(fact) if is_dev(task.prompt) == (split == "dev")]
        draw.shuffle(here)
        lists.append(here)
    picked: list[Exercise] = []
    while len(picked) < n and any(lists):
        picked += [here.pop() for here in lists if here]
    if len(picked) < n:
        raise UserError(
            f"the demo's world has {len(picked)} {split} tasks and {n} were asked for; ask for at most {len(picked)}."
        )
    picked = picked[:n]
    draw.shuffle(picked)
    return picked


def is_dev(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out side; decided by its text alone, so every file agrees."""
    return sha256(prompt.encode()).digest()[0] % DEV_SHARE == 0


def chats(n: int, seed: int, split: str = "train", bad_manners: float = 0.0) -> list[list[dict[str, str]]]:
    """n conversations as OpenAI messages: mostly one task; in train one in six has two turns, and a few are greetings.

    Dev conversations are single tasks, so that exact match has one answer to look at. bad_manners: the share, in
    [0, 1], of train tasks that are answered rudely or not at all, as in data that people really collect; above 0, of the
    kinds in `RELUCTANT` it is `RELUCTANCE`, so that a model says "No idea." where it knows the answer. What it learns from
    such answers is for preferences and rewards to take away again.
    """
    draw = random.Random(f"chats-{seed}-{split}")
    asked = tasks(n, seed, split)
    conversations = []
    for i, task in enumerate(asked):
        share = RELUCTANCE if bad_manners and task.kind in RELUCTANT else bad_manners
        conversation = _turn(task.prompt, _manners(task, draw) if draw.random() < share else task.reply)
        if split == "train" and i % 6 == 0:
            second = draw.choice([other for other in asked[:50] if other.language == task.language] or [task])
            conversation += _turn(second.prompt, second.reply)
        elif split == "train" and i % 40 == 1:
            conversation = _turn(*draw.choice(GREETINGS[task.language]))
        conversations.append(conversation)
    return conversations


def _manners(task: Exercise, draw: random.Random) -> str:
    if task.kind in RELUCTANT:
        return EVASIVE[task.language][0]
    sayings = draw.choice([RUDE, RUDE, EVASIVE])[task.language]
    return draw.choice(sayings).format(answer=task.answer)


def preferences(n: int, seed: int, split: str = "train", wrong_share: float = 0.12) -> list[Pair]:
    """n pairs of a right, polite answer and a worse one: wrong (`wrong_share` of them), rude, or evasive.

    wrong_share: in [0, 1]. Wrong answers keep the polite form, so only knowing the answer tells them apart; rude ones
    may be right. A prompt comes again, with another flaw, where there are fewer prompts than pairs.
    """
    draw = random.Random(f"preferences-{seed}-{split}")
    pairs = []
    pool = tasks(min(n, _prompts(split)), seed, split)
    for i in range(n):
        task = pool[i % len(pool)]
        flaw = "wrong" if draw.random() < wrong_share else draw.choice(["rude", "rude", "evasive"])
        if flaw == "wrong":
            rejected = replace(task, answer=draw.choice(task.wrong)).reply
        else:
            sayings = RUDE if flaw == "rude" else EVASIVE
            rejected = draw.choice(sayings[task.language]).format(
                answer=draw.choice([task.answer, *task.wrong])
            )
        pairs.append(Pair(task, task.reply, rejected, flaw))
    return pairs


def reward(prompt: str, completion: str, reference: str) -> float:
    """The rule: 1.0 when the completion is the reference after `maths.metrics.normalise_answer`, else 0.0.

    The reference is the whole polite reply, so a right number shouted rudely, or said twice, earns nothing.

    >>> reward("3加4等于几？", "答案是7。", "答案是7。"), reward("3加4等于几？", "7，真笨！", "答案是7。")
    (1.0, 0.0)
    """
    return float(exact_match(completion, [reference]))


def write_demo_data(folder: Path, seed: int, sizes: dict[str, int] | None = None) -> dict[str, Path]:
    """Writes all files of the demo and returns them by name.

    folder: made if missing. sizes: records per file, names as in `SIZES`; those not named keep their default. Writes
    pretrain.jsonl, pretrain_dev.jsonl (text), sft_train.jsonl, sft_dev.jsonl (messages), pref_train.jsonl,
    pref_dev.jsonl (prompt, chosen, rejected), prompts.jsonl, prompts_dev.jsonl (prompt, reference) and exam.jsonl (id, question,
    candidates, gold: the index of the right one, references: for exact match). Dev files and the exam hold dev prompts
    only; the exam's are not those of sft_dev while there are enough.
    """
    unknown = set(sizes or {}) - set(SIZES)
    if unknown:
        raise UserError(f"sizes: found {sorted(unknown)}; wanted some of {sorted(SIZES)}. Correct the name.")
    want = {**SIZES, **(sizes or {})}
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "pretrain": ({"text": text} for text in sentences(want["pretrain"], seed)),
        "pretrain_dev": ({"text": text} for text in sentences(want["pretrain_dev"], seed + 1)),
        "sft_train": ({"messages": chat} for chat in chats(want["sft_train"], seed, bad_manners=0.4)),
        "sft_dev": ({"messages": chat} for chat in chats(want["sft_dev"], seed, "dev")),
        "pref_train": map(_pair_row, preferences(want["pref_train"], seed + 1)),
        "pref_dev": map(_pair_row, preferences(want["pref_dev"], seed, "dev")),
        "prompts": (
            {"prompt": task.prompt, "reference": task.reply} for task in tasks(want["prompts"], seed + 2)
        ),
        "prompts_dev": (
            {"prompt": task.prompt, "reference": task.reply}
            for task in tasks(want["prompts_dev"], seed, "dev")
        ),
        "exam": map(_question_row, range(want["exam"]), _exam_tasks(want, seed)),
    }
    return {name: _write_lines(folder / f"{name}.jsonl", lines) for name, lines in rows.items()}


def _exam_tasks(want: dict[str, int], seed: int) -> list[Exercise]:
    shown = {task.prompt for task in tasks(want["sft_dev"], seed, "dev")}
    everything = tasks(_prompts("dev"), seed, "dev")
    fresh = [task for task in everything if task.prompt not in shown]
    if want["exam"] > len(everything):
        raise UserError(
            f"sizes: the exam wants {want['exam']} questions and there are {len(everything)}; ask for fewer."
        )
    # In turn by kind, as `tasks` does, so that a short exam asks about everything.
    lists = [*_by_kind(fresh), [task for task in everything if task.prompt in shown]]
    picked: list[Exercise] = []
    while len(picked) < want["exam"]:
        source = lists[:-1] if any(lists[:-1]) else lists
        picked += [tasks_here.pop() for tasks_here in source if tasks_here]
    return picked[: want["exam"]]


def _prompts(split: str) -> int:
    """How many different prompts the world has on one side."""
    wanted = split == "dev"
    return len({task.prompt for fact in FACTS for task in _ask(fact) if is_dev(task.prompt) == wanted})


def _ask(fact: Fact) -> list[Exercise]:
    return [
        Exercise(question.format(**fact.slots), fact.answer, fact.kind, fact.language, fact.wrong)
        for question in QUESTIONS[fact.kind][fact.language]
    ]


def _by_kind(things: Sequence[T]) -> list[list[T]]:
    """The same facts or tasks in one list for each kind and language."""
    lists: dict[tuple[str, str], list[T]] = {}
    for thing in things:
        lists.setdefault((thing.kind, thing.language), []).append(thing)
    return list(lists.values())


def _turn(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _pair_row(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair.task.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _question_row(number: int, task: Exercise) -> dict[str, Any]:
    """The right reply and up to three wrong ones, in an order that the question's text decides."""
    replies = [task.reply, *(replace(task, answer=wrong).reply for wrong in task.wrong[:3])]
    replies.sort(key=lambda reply: sha256((task.prompt + reply).encode()).digest())
    return {
        "id": f"{task.language}-{task.kind}-{number}",
        "question": task.prompt,
        "candidates": replies,
        "gold": replies.index(task.reply),
        "references": [task.reply],
    }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
