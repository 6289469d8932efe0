"""chinese-poetry against a reading of its own: every book, its prompts, its wrong works."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission
from espalier.corpora.prepare.books import BOOKS, FIVE, SEVEN, book_of, genre_of, metre
from espalier.corpora.prepare.poetry import poetry
from espalier.errors import UserError

ALL = Division(dev=0)


def make(folder: Path, name: str, works: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(works, ensure_ascii=False), encoding="utf-8")


def made(where: Path, division: Division = ALL) -> dict[str, CorpusRecord]:
    return {
        thing.source.split(str(where))[1].lstrip("/"): thing
        for thing in poetry(where, division)
        if isinstance(thing, CorpusRecord)
    }


@pytest.fixture(scope="module")
def real(shared: Path) -> list[CorpusRecord | Omission]:
    return list(poetry(shared / "data/chinese_poetry", ALL))


def test_the_table_knows_present_and_older_folders() -> None:
    for old, new in (("shi", "全唐诗"), ("json", "全唐诗")):
        assert book_of(Path(old, "poet.tang.0.json")) == book_of(Path(new, "poet.tang.0.json")) != None  # noqa: E711
    for path, name in (
        ("wudai/huajianji/huajianji-0-preface.json", None),
        ("wudai/huajianji/huajianji-3-juan.json", "花间集"),
        ("ci/ci.song.1000.json", "词"),
        ("ci/author.song.json", None),
        ("sishuwujing/mengzi.json", "孟子"),
        ("lunyu/lunyu.json", "论语"),
        ("全唐诗/表面结构字.json", None),
        ("蒙学/三字经.json", None),
    ):
        book = book_of(Path(path))
        assert (book.name if book else None) == name, path


def test_letters_elsewhere_in_the_path_do_not_matter(tmp_path: Path) -> None:
    """The predecessor looked for "shi" and "ci" anywhere in the path, and kept the last author where none was found."""
    works = [
        {"title": "菩萨蛮 其一", "paragraphs": ["小山重叠金明灭。"], "author": "温庭筠", "rhythmic": "菩萨蛮"}
    ]
    for place in ("shi/ci/lunyu", "plain"):
        make(tmp_path / place, "五代诗词/huajianji/huajianji-1-juan.json", works)
        make(
            tmp_path / place,
            "曹操诗集/caocao.json",
            [{"title": "龟虽寿", "paragraphs": ["神龟虽寿，犹有竟时。"]}],
        )
    found, plain = (made(tmp_path / place) for place in ("shi/ci/lunyu", "plain"))
    assert [thing.row for thing in found.values()] == [thing.row for thing in plain.values()]
    assert [thing.row["prompt"] for thing in found.values()] == [
        "以温庭筠的风格，写一首词，题为菩萨蛮 其一",
        "以曹操的风格，写一首古体诗，题为龟虽寿",
    ]


@pytest.mark.parametrize(
    ("file", "work", "prompt", "text"),
    [
        ("论语/lunyu.json", {"chapter": "学而篇", "paragraphs": ["子曰。", "有子曰。"]}, "以孔子的风格，写一篇经书，题为学而篇", "子曰。有子曰。"),
        ("四书五经/mengzi.json", {"chapter": "梁惠王上", "paragraphs": ["孟子見梁惠王。"]}, "以孟子的风格，写一篇经书，题为梁惠王上", "孟子见梁惠王。"),
        ("四书五经/daxue.json", {"chapter": "大學", "paragraphs": ["大學之道，"]}, "以曾子的风格，写一篇经书，题为大学", "大学之道，"),
        ("四书五经/zhongyong.json", {"chapter": "中庸", "paragraphs": ["天命之謂性，"]}, "以孔伋的风格，写一篇经书，题为中庸", "天命之谓性，"),
        ("诗经/shijing.json", {"title": "关雎", "chapter": "国风", "section": "周南", "content": ["关关雎鸠。"]}, "以诗经的风格，写一首古体诗，题为国风-周南-关雎", "关关雎鸠。"),
        ("楚辞/chuci.json", {"title": "云中君", "section": "九歌", "author": "屈原", "content": ["浴兰汤兮。"]}, "以屈原的风格，写一篇楚辞，题为九歌-云中君", "浴兰汤兮。"),
        ("宋词/ci.song.0.json", {"author": "和岘", "rhythmic": "导引", "paragraphs": ["气和玉烛。"]}, "以和岘的风格，写一首词，题为导引", "气和玉烛。"),
        ("纳兰性德/纳兰性德诗集.json", {"title": "长相思", "para": ["山一程", "风一更"], "author": "纳兰性德"}, "以纳兰性德的风格，写一首词，题为长相思", "山一程\n风一更"),
        ("五代诗词/nantang/poetrys.json", {"title": "", "paragraphs": ["一钩初月。"], "author": "李璟", "rhythmic": "应天长"}, "以李璟的风格，写一首词，题为应天长", "一钩初月。"),
        ("元曲/yuanqu.json", {"dynasty": "yuan", "author": "关汉卿", "paragraphs": ["半世为人。"], "title": "诈妮子"}, "以关汉卿的风格，写一首曲，题为诈妮子", "半世为人。"),
        ("全唐诗/poet.tang.0.json", {"author": "太宗皇帝", "paragraphs": ["秦川雄帝宅，函谷壯皇居。"], "title": "帝京篇"}, "以太宗皇帝的风格，写一首五言诗，题为帝京篇", "秦川雄帝宅，函谷壮皇居。"),
        ("shi/poet.song.0.json", {"author": "宋太祖", "paragraphs": ["欲出未出光辣達，千山萬山如火發。"], "title": "日詩"}, "以宋太祖的风格，写一首七言诗，题为日诗", "欲出未出光辣达，千山万山如火发。"),
    ],
)  # fmt: skip
def test_each_book_says_what_it_should(tmp_path: Path, file: str, work: Any, prompt: str, text: str) -> None:
    make(tmp_path, file, work if "四书" in file and "meng" not in file else [work])
    [thing] = made(tmp_path).values()
    assert thing.row == {"prompt": prompt, "answers": [{"answer": text, "score": 1.0}], "prefix": ""}


def test_the_real_books_are_all_there(real: list[CorpusRecord | Omission]) -> None:
    files = Counter(
        thing.source.rsplit(":", 1)[0].rsplit("/", 1)[1] for thing in real if isinstance(thing, CorpusRecord)
    )
    assert files == {
        "poet.tang.0.json": 1000, "poet.song.0.json": 1000, "ci.song.0.json": 1000, "yuanqu.json": 983,
        "shijing.json": 305, "纳兰性德诗集.json": 257, "huajianji-1-juan.json": 50, "huajianji-2-juan.json": 50,
        "chuci.json": 65, "poetrys.json": 45, "caocao.json": 26, "lunyu.json": 20, "mengzi.json": 14,
        "daxue.json": 1, "zhongyong.json": 1,
    }  # fmt: skip
    assert Counter(thing.cause for thing in real if isinstance(thing, Omission)) == {
        "no text": 17,
        "no title": 2,
    }


def test_the_real_poems_read_by_themselves(shared: Path, real: list[CorpusRecord | Omission]) -> None:
    """An independent reading of the simplified books: title, author and text of every record in order."""
    folder = shared / "data/chinese_poetry"
    got = defaultdict(list)
    for thing in real:
        if isinstance(thing, CorpusRecord):
            got[thing.source.rsplit(":", 1)[0].rsplit("/", 1)[1]].append(thing.row)
    for path, genre in ((folder / "宋词/ci.song.0.json", "词"), (folder / "元曲/yuanqu.json", "曲")):
        works = [work for work in json.loads(path.read_text("utf-8")) if work["paragraphs"]]
        for work, row in zip(works, got[path.name], strict=True):
            title = work.get("rhythmic", work.get("title"))
            assert row["prompt"] == f"以{work['author']}的风格，写一首{genre}，题为{title.strip()}"
            [gold] = [answer["answer"] for answer in row["answers"] if answer["score"] == 1]
            assert gold.replace("\n", "") == "".join(work["paragraphs"]).replace("\n", "")


def test_wrong_works_are_what_their_scores_say(real: list[CorpusRecord | Omission], by_score: Any) -> None:
    things = [thing for thing in real if isinstance(thing, CorpusRecord)]
    by: dict[str, set[tuple[str, str]]] = defaultdict(set)  # text -> (author, genre) of all its works
    for thing in things:
        author = thing.row["prompt"].split("的风格")[0][1:]
        by[by_score(thing.row)[1][0]].add((author, thing.group))
    authors = Counter(thing.row["prompt"].split("的风格")[0][1:] for thing in things)
    for thing in things:
        answers, author = by_score(thing.row), thing.row["prompt"].split("的风格")[0][1:]
        assert [len(found) for found in answers.values()] == [1] * len(answers)
        assert len({answer["answer"] for answer in thing.row["answers"]}) == len(thing.row["answers"])
        if 0 in answers:
            assert any(a == author for a, _ in by[answers[0][0]])
        if -1 in answers:
            assert any(a != author and g == thing.group for a, g in by[answers[-1][0]])
        assert any(a != author and g != thing.group for a, g in by[answers[-2][0]])
        if authors[author] == 1:
            assert 0 not in answers
    with_all = sum(len(thing.row["answers"]) == 4 for thing in things)
    assert with_all > 0.9 * len(things)


def test_a_work_of_the_same_title_is_no_wrong_answer(tmp_path: Path, by_score: Any) -> None:
    works = [{"author": "李白", "title": "杂诗", "paragraphs": [f"{n}床前明月光。"]} for n in "一二三"]
    make(
        tmp_path,
        "元曲/yuanqu.json",
        [*works, {"author": "李白", "title": "别", "paragraphs": ["故人西辞。"]}],
    )
    for thing in made(tmp_path).values():
        if "杂诗" in thing.row["prompt"]:
            assert by_score(thing.row)[0] == ["故人西辞。"]


@pytest.mark.slow
def test_dev_shares_nothing_with_train(shared: Path) -> None:
    division = Division(seed=3, dev=0.2)
    texts: dict[str, set[str]] = {TRAIN: set(), DEV: set()}
    prompts: dict[str, set[str]] = {TRAIN: set(), DEV: set()}
    for thing in made(shared / "data/chinese_poetry", division).values():
        part = division.part(thing.key)
        prompts[part].add(thing.row["prompt"])
        texts[part] |= {answer["answer"] for answer in thing.row["answers"]}
    assert len(prompts[DEV]) > 500
    assert not prompts[TRAIN] & prompts[DEV] and not texts[TRAIN] & texts[DEV]


def test_metre_names_what_the_old_rule_does_not() -> None:
    [shi] = [book for book in BOOKS if book.name == "诗"]
    ten, twelve = "於穆清廟，肅雍顯相。", "秦川雄帝宅，函谷壮皇居。"
    assert (genre_of(shi, ten), genre_of(shi, twelve)) == (SEVEN, FIVE)
    assert (metre(shi, ten), metre(shi, twelve), metre(shi, "噫吁嚱。")) == ("四言诗", FIVE, "杂言诗")


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "other/poems.json", [{"title": "x"}])
    with pytest.raises(
        UserError, match="none of the books of chinese-poetry is here; wanted folders such as 论语"
    ):
        list(poetry(tmp_path, ALL))
