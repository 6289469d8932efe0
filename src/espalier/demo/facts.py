"""The small world of the demo: every fact that can be stated or asked, in Chinese and in English.

A fact knows the words that fill its phrasings, its right answer and some plausible wrong ones. `FACTS` lists all of them
(about three hundred), `QUESTIONS` and `STATEMENTS` say how each kind is asked and told. A question names its answer's kind
well enough that there is exactly one right answer. The numbers are small on purpose: a tiny model must meet each fact,
in most of its wordings, a few dozen times in a minute. Left out: drawing, splitting, and files (`data`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

ZH, EN = "zh", "en"
LANGUAGES = (ZH, EN)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so, in one language: `slots` fill a phrasing; `wrong` holds at least two wrong answers.

    >>> Fact("sum", "zh", {"a": "3", "b": "4"}, "7", ("6", "8")).answer
    '7'
    """

    kind: str
    language: str
    slots: dict[str, str]
    answer: str
    wrong: tuple[str, ...]


def words(line: str) -> list[str]:
    """The words of a line; long tables read better as lines."""
    return line.split()


WEEKDAYS = {
    ZH: ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"],
    EN: ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
}
MONTHS = {
    ZH: ["一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月"],
    EN: [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
}
OPPOSITES = {
    ZH: words("大小 高低 长短 快慢 冷热 多少 新旧"),
    EN: [
        *("big small", "tall short", "fast slow", "cold hot", "new old", "far near", "left right"),
    ],
}
GROUPS = {
    ZH: {
        "动物": words("猫 狗 马 牛"),
        "水果": words("苹果 香蕉 葡萄 西瓜"),
        "颜色": words("红色 黄色 蓝色 绿色"),
    },
    EN: {
        "animal": words("cat dog horse cow"),
        "fruit": words("apple banana grape melon"),
        "colour": words("red yellow blue green"),
    },
}
WORDS = {
    ZH: words("春天 太阳 月亮 大海 高山 花园 学校 老师"),
    EN: words("cat dog sun hat cup pen box bag"),
}
COMMA = {ZH: "、", EN: ", "}


def _near(n: int, low: int = 0) -> tuple[str, ...]:
    """Four numbers close to n and not n, none below `low`: the slips that people make."""
    return tuple(str(n + d) for d in (1, -1, 2, -2, 3, 4) if n + d >= low)[:4]


def _sums(language: str) -> Iterator[Fact]:
    for a in range(1, 5):
        for b in range(1, 5):
            yield Fact("sum", language, {"a": str(a), "b": str(b)}, str(a + b), _near(a + b))


def _differences(language: str) -> Iterator[Fact]:
    for a in range(2, 7):
        for b in range(1, a):
            yield Fact("difference", language, {"a": str(a), "b": str(b)}, str(a - b), _near(a - b))


def _comparisons(language: str) -> Iterator[Fact]:
    for a, b in permutations(range(1, 6), 2):
        slots = {"a": str(a), "b": str(b)}
        more, less = str(max(a, b)), str(min(a, b))
        stranger = next(str(n) for n in (5, 3, 1) if n not in (a, b))
        yield Fact("larger", language, slots, more, (less, stranger))
        yield Fact("smaller", language, slots, less, (more, stranger))


def _orders(language: str) -> Iterator[Fact]:
    for three in permutations(range(1, 5), 3):
        right = tuple(sorted(three))
        comma = COMMA[language]
        wrong = [order for order in permutations(right) if order != right]
        yield Fact(
            "order",
            language,
            {"list": comma.join(map(str, three))},
            comma.join(map(str, right)),
            tuple(comma.join(map(str, order)) for order in wrong),
        )


def _reversals(language: str) -> Iterator[Fact]:
    for word in WORDS[language]:
        turned = word[::-1]
        wrong = dict.fromkeys([word, word[1:] + word[0], turned + turned[-1], turned[1:] + turned[0]])
        wrong.pop(turned, None)
        yield Fact("reverse", language, {"word": word}, turned, tuple(wrong))


def _neighbours(kind: str, ring: dict[str, list[str]], language: str) -> Iterator[Fact]:
    names = ring[language]
    for i, name in enumerate(names):
        after, before = names[(i + 1) % len(names)], names[i - 1]
        far = names[(i + 3) % len(names)]
        yield Fact(f"{kind}_after", language, {"name": name}, after, (before, name, far))
        yield Fact(f"{kind}_before", language, {"name": name}, before, (after, name, far))


def _opposites(language: str) -> Iterator[Fact]:
    pairs = [tuple(pair) if language == ZH else tuple(pair.split()) for pair in OPPOSITES[language]]
    for i, (one, other) in enumerate(pairs):
        stranger = pairs[(i + 3) % len(pairs)]
        yield Fact("opposite", language, {"word": one}, other, (one, *stranger))
        yield Fact("opposite", language, {"word": other}, one, (other, *stranger))


def _groups(language: str) -> Iterator[Fact]:
    for group, members in GROUPS[language].items():
        others = tuple(name for name in GROUPS[language] if name != group)
        for member in members:
            yield Fact("group", language, {"word": member}, group, others)


def _weekdays(language: str) -> Iterator[Fact]:
    return _neighbours("day", WEEKDAYS, language)


def _months(language: str) -> Iterator[Fact]:
    return (fact for fact in _neighbours("month", MONTHS, language) if fact.kind == "month_after")


_MAKERS: list[Callable[[str], Iterator[Fact]]] = [
    *(_sums, _differences, _comparisons, _orders, _reversals),
    *(_weekdays, _months, _opposites, _groups),
]
FACTS: list[Fact] = [fact for language in LANGUAGES for make in _MAKERS for fact in make(language)]
KINDS: list[str] = list(dict.fromkeys(fact.kind for fact in FACTS))

QUESTIONS: dict[str, dict[str, list[str]]] = {
    "sum": {
        ZH: ["{a}加{b}等于几？", "{a}+{b}=？", "{a}与{b}的和是多少？"],
        EN: ["What is {a} plus {b}?", "{a} + {b} = ?", "What is the sum of {a} and {b}?"],
    },
    "difference": {
        ZH: ["{a}减{b}等于几？", "{a}-{b}=？", "从{a}里拿走{b}，还剩几？"],
        EN: ["What is {a} minus {b}?", "{a} - {b} = ?", "Take {b} away from {a}."],
    },
    "larger": {
        ZH: ["{a}和{b}哪个大？", "{a}与{b}中较大的是几？"],
        EN: ["Which is larger, {a} or {b}?", "Of {a} and {b}, which is more?"],
    },
    "smaller": {
        ZH: ["{a}和{b}哪个小？", "{a}与{b}中较小的是几？"],
        EN: ["Which is smaller, {a} or {b}?", "Of {a} and {b}, which is less?"],
    },
    "order": {
        ZH: ["把{list}从小到大排列。", "给{list}排序。"],
        EN: ["Sort {list}.", "Put {list} in order."],
    },
    "reverse": {
        ZH: ["把“{word}”倒过来写。", "反写{word}。", "“{word}”倒着念是什么？"],
        EN: ["Write {word} backwards.", "Reverse the word {word}.", "What is {word} in reverse?"],
    },
    "day_after": {
        ZH: ["{name}的后一天是星期几？", "今天是{name}，明天是星期几？", "{name}过后是哪天？"],
        EN: [
            "What day comes after {name}?",
            "Today is {name}. What is tomorrow?",
            "Which day follows {name}?",
        ],
    },
    "day_before": {
        ZH: ["{name}的前一天是星期几？", "今天是{name}，昨天是星期几？", "{name}之前是哪天？"],
        EN: [
            "What day comes before {name}?",
            "Today is {name}. What was yesterday?",
            "Which day precedes {name}?",
        ],
    },
    "month_after": {
        ZH: ["{name}的下一个月是几月？", "{name}过后是几月？", "现在是{name}，下个月是几月？"],
        EN: [
            "What month comes after {name}?",
            "Which month follows {name}?",
            "It is {name}. What is next month?",
        ],
    },
    "opposite": {
        ZH: ["“{word}”的反义词是什么？", "与“{word}”相反的是什么？", "不是{word}，那是什么？"],
        EN: ["What is the opposite of {word}?", "Name the opposite of {word}.", "Not {word}, but what?"],
    },
    "group": {
        ZH: ["{word}是动物、水果还是颜色？", "{word}属于哪一类？", "请给{word}分类。"],
        EN: [
            "Is {word} an animal, fruit or colour?",
            "What kind of thing is {word}?",
            "Put {word} in its group.",
        ],
    },
}

STATEMENTS: dict[str, dict[str, list[str]]] = {
    "sum": {
        ZH: ["{a}加{b}等于{answer}。", "{a}+{b}={answer}。", "{a}与{b}的和是{answer}。",
             "小明有{a}个苹果，又买了{b}个，一共有{answer}个。"],
        EN: ["{a} plus {b} is {answer}.", "{a} + {b} = {answer}.", "The sum of {a} and {b} is {answer}.",
             "Tom had {a} apples and got {b} more, so now he has {answer}."],
    },
    "difference": {
        ZH: ["{a}减{b}等于{answer}。", "{a}-{b}={answer}。", "从{a}里拿走{b}，还剩{answer}。",
             "树上有{a}只鸟，飞走了{b}只，还剩{answer}只。"],
        EN: ["{a} minus {b} is {answer}.", "{a} - {b} = {answer}.", "Take {b} away from {a} and {answer} is left.",
             "There were {a} birds, {b} flew away and {answer} stayed."],
    },
    "larger": {
        ZH: ["{a}和{b}，大的是{answer}。", "{a}与{b}中较大的是{answer}。"],
        EN: ["The larger of {a} and {b} is {answer}.", "Of {a} and {b}, {answer} is more."],
    },
    "smaller": {
        ZH: ["{a}和{b}，小的是{answer}。", "{a}与{b}中较小的是{answer}。"],
        EN: ["The smaller of {a} and {b} is {answer}.", "Of {a} and {b}, {answer} is less."],
    },
    "order": {
        ZH: ["{list}从小到大是{answer}。", "给{list}排序，得到{answer}。"],
        EN: ["Sort {list} to get {answer}.", "{list} in order is {answer}."],
    },
    "reverse": {
        ZH: ["“{word}”倒过来是{answer}。", "反写{word}，就是{answer}。"],
        EN: ["{word} backwards is {answer}.", "The word {word} in reverse is {answer}."],
    },
    "day_after": {
        ZH: ["{name}的后一天是{answer}。", "今天是{name}，明天是{answer}。"],
        EN: ["The day after {name} is {answer}.", "Today is {name}, so tomorrow is {answer}."],
    },
    "day_before": {
        ZH: ["{name}的前一天是{answer}。", "今天是{name}，昨天是{answer}。"],
        EN: ["The day before {name} is {answer}.", "Today is {name}, so yesterday was {answer}."],
    },
    "month_after": {
        ZH: ["{name}的下一个月是{answer}。", "过了{name}就是{answer}。"],
        EN: ["The month after {name} is {answer}.", "{name} is followed by {answer}."],
    },
    "opposite": {
        ZH: ["“{word}”的反义词是{answer}。", "不是{word}，就是{answer}。"],
        EN: ["The opposite of {word} is {answer}.", "If it is not {word}, it is {answer}."],
    },
    "group": {
        ZH: ["{word}是一种{answer}。", "我喜欢{word}，它属于{answer}。"],
        EN: ["The group of {word} is {answer}.", "I like {word}; its kind is {answer}."],
    },
}  # fmt: skip
