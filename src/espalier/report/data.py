"""A preflight (`espalier.data.preflight`, as summary.json keeps it) as the report and the page of `inspect` draw it.

Any key may be missing: a summary of another version must not break the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.report.plots import number, percent

HEIGHT = 64
"""Of the histogram's bars, in the units of its own box (100 wide)."""


def data_view(preflight: Mapping[str, Any]) -> dict[str, Any] | None:
    """Sources, parts with their histograms, what was left out, and findings; None where nothing was looked at."""
    parts = [_part(name, part) for name, part in _items(preflight.get("parts"))]
    sources = [
        (path, number(source.get("records")), ", ".join(map(str, source.get("formats") or {})))
        for path, source in _items(preflight.get("sources"))
    ]
    if not parts and not sources:
        return None
    findings = [_finding(finding) for finding in preflight.get("findings") or []]
    warned = {finding["what"] for finding in findings}
    return {
        "sources": sources,
        "parts": parts,
        "findings": findings,
        "left_out": [
            (str(entry.get("cause", "")), number(entry.get("count")), _share(entry.get("share")))
            for entry in preflight.get("left_out") or []
            if entry.get("cause") not in warned
        ],
    }


def _items(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(str(k), v) for k, v in value.items() if isinstance(v, dict)] if isinstance(value, dict) else []


def _part(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    bins = [tuple(entry) for entry in part.get("histogram") or [] if len(entry) == 3]
    top = max((count for _, _, count in bins), default=0) or 1
    wide = 100 / max(len(bins), 1)
    return {
        "name": name,
        "records": number(part.get("records")),
        "tokens": number(part.get("tokens")),
        "trained": number(part.get("trained_tokens")) or None,
        "unit": str(part.get("unit", "tokens")),
        "lengths": [(key, number(value)) for key, value in (part.get("lengths") or {}).items()],
        "bars": [
            {
                "x": round(i * wide, 2),
                "width": round(wide * 0.9, 2),
                "y": round(HEIGHT * (1 - count / top), 2) if count else HEIGHT,
                "height": max(round(HEIGHT * count / top, 2), 0.8) if count else 0,
                "hint": f"{low:,} to {high - 1:,}: {count:,}",
            }
            for i, (low, high, count) in enumerate(bins)
        ],
        "from": bins[0][0] if bins else None,
        "to": bins[-1][1] - 1 if bins else None,
        "languages": [
            (lang or "no letters", _share(value), percent(number(value) or 0.0))
            for lang, value in (part.get("languages") or {}).items()
        ],
        "roles": [(str(order), number(count)) for order, count in (part.get("roles") or {}).items()],
    }


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    count, of = number(finding.get("count")) or 0.0, number(finding.get("of")) or 0.0
    return {
        "level": "error" if finding.get("level") == "error" else "warning",
        "what": str(finding.get("what", "")),
        "count": count,
        "of": of,
        "share": _share(count / of if of else 0.0),
        "part": str(finding.get("part", "")),
        "place": str(finding.get("place", "")),
        "advice": str(finding.get("advice", "")),
    }


def _share(value: Any) -> str:
    share = number(value) or 0.0
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")
