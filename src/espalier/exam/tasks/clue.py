"""The exams of CLUE and FewCLUE that choose, a value each: files, classes, and the wordings of both prompt sets."""

from __future__ import annotations

from espalier.exam.tasks import items
from espalier.exam.tasks.clue_exam import ClueExam, idiom_answers
from espalier.exam.tasks.items import Read, classes, classified
from espalier.exam.tasks.wording import Fields, Wording, pangu, scored_after, template

_RELATIONS = ("entailment", "neutral", "contradiction")
_INFERENCE = classified(_RELATIONS, "sentence1", "sentence2", leave="-")
_INFERENCE_PLAIN = Wording(
    template("前提：{sentence1}\n假设：{sentence2}\n前提与假设的关系（蕴含、中立、矛盾）："), ("蕴含", "中立", "矛盾")
)  # fmt: skip
_INFERENCE_PANGU = pangu(template("{sentence1}?"), scored_after("，", "{sentence2}"), ("Yes", "Maybe", "No"))

_SAME = classified(("0", "1"), "sentence1", "sentence2")
_SAME_PLAIN = Wording(
    template("句子一：{sentence1}\n句子二：{sentence2}\n两句话的意思相同还是不同？答："), ("不同", "相同")
)
_SAME_PANGU = pangu(
    template("下面两个句子语义"), scored_after("：", "“{sentence1}”；“{sentence2}”"), ("不同", "相同")
)


def _many(task: str) -> Read:
    return classified([label for label, _ in classes(task)], "sentence")


def _labels(task: str) -> tuple[str, ...]:
    return tuple(label for label, _ in classes(task))


def _names(task: str) -> tuple[str, ...]:
    return tuple(name for _, name in classes(task))


# --- prompts that are more than a template ------------------------------------------------------------


def _csl_plain(f: Fields) -> str:
    return f"摘要：{f['abst']}\n关键词：{'、'.join(f['keyword'])}\n这些都是这篇摘要的关键词吗？（是、否）答："


def _csl_span(f: Fields, word: str) -> tuple[str, int]:
    """Every token is scored, so the whole text is the candidate."""
    return f"摘要：{f['abst']},关键词：{','.join(f['keyword'])}{word}真实关键词", 0


def _wsc_span(f: Fields, word: str) -> tuple[str, int]:
    return {"false": f["pronoun"], "true": f["noun"]}[word] + f["after"], 0


def _c3_kind(f: Fields) -> str:
    return "对话" if f["dialogue"] else "文章"


def _c3_plain(f: Fields) -> str:
    text = "\n".join(f["sentences"])
    return f"{_c3_kind(f)}：{text}\n问题：{f['question']}\n答案："


def _c3_span(f: Fields, word: str) -> tuple[str, int]:
    head = f"{word}\n该答案来自{_c3_kind(f)}: "
    return head + "".join(f["sentences"]), len(head)


def _chid_plain(f: Fields) -> str:
    passage = "……".join(f["before"]) + "____" + "……".join(f["after"])
    return f"短文：{passage}\n横线处应填的成语："


def _chid_before(f: Fields) -> str:
    """The passage's other blanks are left out."""
    return "".join(f["before"])


def _chid_span(f: Fields, word: str) -> tuple[str, int]:
    return word + "".join(f["after"]), 0


def _c3_files(split: str) -> tuple[tuple[str, ...], ...]:
    return (f"d-{split}.json", f"m-{split}.json"), (f"c3-d-{split}.json", f"c3-m-{split}.json")


# --- the exams ----------------------------------------------------------------------------------------

EXAMS: dict[str, ClueExam] = {
    "ocnli": ClueExam(("ocnli", "ocnli_public"), _INFERENCE, _INFERENCE_PLAIN, _INFERENCE_PANGU, _RELATIONS),
    "cmnli": ClueExam(("cmnli", "cmnli_public"), _INFERENCE, _INFERENCE_PLAIN, _INFERENCE_PANGU, _RELATIONS),
    "chid": ClueExam(
        ("chid", "chid_public", "chid_fewclue"),
        items.read_chid,
        Wording(_chid_plain),
        pangu(_chid_before, _chid_span),
        write=idiom_answers,
    ),
    "cluewsc2020": ClueExam(
        ("cluewsc2020", "cluewsc", "cluewsc2020_public"),
        items.read_wsc,
        Wording(
            template("{before}_{pronoun}_{after}\n文中的“_{pronoun}_”指的是“{noun}”吗？（是、否）答："),
            ("否", "是"),
        ),
        pangu(template("{before}"), _wsc_span, ("false", "true")),
        ("false", "true"),
    ),
    "c3": ClueExam(
        ("c3", "c3_public"),
        items.read_c3,
        Wording(_c3_plain, normalise="mean"),
        pangu(template("问: {question}\n答:"), _c3_span),
        evaluation=_c3_files("dev"),
        train=_c3_files("train"),
        test=("test.json", *_c3_files("test")),
    ),
    "afqmc": ClueExam(("afqmc", "afqmc_public"), _SAME, _SAME_PLAIN, _SAME_PANGU, ("0", "1")),
    "csl": ClueExam(
        ("csl", "csl_public"),
        classified(("0", "1"), "abst", "keyword"),
        Wording(_csl_plain, ("否", "是")),
        pangu(template(""), _csl_span, ("不是", "是")),
        ("0", "1"),
    ),
    "iflytek": ClueExam(
        ("iflytek", "iflytek_public"),
        _many("iflytek"),
        Wording(template("应用描述：{sentence}\n应用类别："), _names("iflytek")),
        pangu(
            template("这是关于"),
            scored_after("的应用程序：", "{sentence}"),
            _names("iflytek"),
            longest=("sentence", 25),
        ),
        _labels("iflytek"),
    ),
    "tnews": ClueExam(
        ("tnews", "tnews_public"),
        _many("tnews"),
        Wording(template("新闻标题：{sentence}\n新闻类别："), _names("tnews")),
        pangu(
            template("这是关于"),
            scored_after("的文章：", "{sentence}"),
            _names("tnews"),
            longest=("sentence", 150),
        ),
        _labels("tnews"),
    ),
    "bustm": ClueExam(("bustm",), _SAME, _SAME_PLAIN, _SAME_PANGU, ("0", "1")),
    "eprstmt": ClueExam(
        ("eprstmt",),
        classified(("Negative", "Positive"), "sentence"),
        Wording(template("评论：{sentence}\n这条评论是好评还是差评？答："), ("差评", "好评")),
        pangu(template("这是一条"), scored_after("：", "{sentence}"), ("差评", "好评")),
        ("Negative", "Positive"),
    ),
    "csldcp": ClueExam(
        ("csldcp",),
        items.read_csldcp,
        Wording(template("论文摘要：{content}\n所属学科：")),
        pangu(template("这是关于"), scored_after("的论文：", "{content}")),
        items.csldcp_labels,
    ),
}
