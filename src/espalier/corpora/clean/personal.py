"""Chinese phone numbers, e-mail addresses and identity numbers -> a word that says what stood there.

Only what has the form of a real one goes: a mobile number's first digits, an area code, an identity number's date
and its last digit, which is a checksum (GB 11643-1999). Names and addresses are left, since no rule tells them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Any

from espalier.corpora.made import CorpusRecord, Outcomes

SHOWN = 20

_FREE, _END = r"(?<![\dA-Za-z.])", r"(?![\dA-Za-z])"
_ID = re.compile(rf"{_FREE}[1-9]\d{{5}}(?:18|19|20)\d{{2}}[01]\d[0-3]\d\d{{3}}[\dXx]{_END}")
_MOBILE = re.compile(rf"{_FREE}(?:(?:\+|00)?86[- ]?)?1[3-9]\d(?:\d{{8}}|[- ]\d{{4}}[- ]\d{{4}}){_END}")
_LANDLINE = re.compile(
    rf"{_FREE}(?:(?:\+|00)86[- ]?)?(?:\(0\d{{2,3}}\)|（0\d{{2,3}}）|0(?:10|2\d|[3-9]\d{{2}}))[- ]?[2-8]\d{{6,7}}{_END}"
)
_MAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]*@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2,}", re.ASCII)

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_LAST = "10X98765432"


def is_identity_number(text: str) -> bool:
    """Whether 18 characters are an identity number: a real date, and the last the checksum of the others.

    >>> is_identity_number("11010519491231002X"), is_identity_number("110105194912310021")
    (True, False)
    """
    if len(text) != 18 or not text[:17].isdigit():
        return False
    try:
        date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text, _WEIGHTS, strict=False))
    return _LAST[total % 11] == text[17].upper()


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("身份证号", _ID, is_identity_number),
    ("邮箱", _MAIL, lambda text: True),
    ("手机号", _MOBILE, lambda text: True),
    ("电话", _LANDLINE, lambda text: True),
)
KINDS = tuple(name for name, _, _ in _KINDS)


def masked(text: str) -> tuple[str, Counter[str]]:
    """The text with a word in brackets for each find, and how many of each kind there were.

    >>> masked("电话13812345678，邮箱 li.lei@example.com")[0]
    '电话[手机号]，邮箱 [邮箱]'
    """
    counts: Counter[str] = Counter()
    for name, pattern, check in _KINDS:

        def put(match: re.Match[str], name: str = name, check: Callable[[str], bool] = check) -> str:
            if not check(match.group()):
                return match.group()
            counts[name] += 1
            return f"[{name}]"

        text = pattern.sub(put, text)
    return text, counts


def without_personal_data(outcomes: Outcomes, account: dict[str, Any]) -> Outcomes:
    """Masks all texts of all rows; nothing is left out. The account shows what stands around, never what stood there."""
    account.update(records=0, masked=dict.fromkeys(KINDS, 0), examples=[])
    for thing in outcomes:
        if not isinstance(thing, CorpusRecord):
            yield thing
            continue
        counts: Counter[str] = Counter()
        row = _masked(thing.row, counts)
        if not counts:
            yield thing
            continue
        account["records"] += 1
        for name, count in counts.items():
            account["masked"][name] += count
        if len(account["examples"]) < SHOWN:
            account["examples"].append({"source": thing.source, "around": _around(row)})
        key = masked(thing.key)[0]
        yield CorpusRecord(row, key, thing.source, thing.group, thing.part)


def _masked(value: Any, counts: Counter[str]) -> Any:
    if isinstance(value, str):
        text, masks = masked(value)
        counts.update(masks)
        return text
    if isinstance(value, list):
        return [_masked(item, counts) for item in value]
    if isinstance(value, dict):
        return {name: _masked(item, counts) for name, item in value.items()}
    return value


def _around(value: Any) -> str:
    """The first place of a row that was masked, with what stands around it."""
    if isinstance(value, str):
        place = re.search("|".join(rf"\[{name}\]" for name in KINDS), value)
        return value[max(0, place.start() - 20) : place.end() + 20] if place else ""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((text for item in inner if (text := _around(item))), "")
