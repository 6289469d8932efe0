"""A preflight's report as lines for a terminal, each with a style: "" (plain), "warning" or "error"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espalier.data.preflight.findings import TRAIN, Finding
from espalier.data.preflight.look import Part
from espalier.data.preflight.run import PreflightReport

Line = tuple[str, str]
"""(style, text)"""

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


def lines(report: PreflightReport, *, whole: bool) -> list[Line]:
    """What a person reads of a report.

    whole: every source, order of turns and a bar for each range of lengths; else a few lines a run, lengths as one
    row of blocks.
    """
    shown = _sources(report, whole)
    for name, part in report.parts.items():
        shown += _part(name, part, report.cutoff_len, whole)
    warned = {finding.what for finding in report.findings}
    asked_for = [cause for cause in report.left_out if cause.cause not in warned]
    shown += [("", f"left out: {c.count:,} ({share(c.share)}) {c.cause}") for c in asked_for]
    shown += [(finding.level, sentence(finding)) for finding in report.findings]
    if not report.findings:
        shown.append(("", "nothing to warn of"))
    return shown


def sentence(finding: Finding) -> str:
    """A finding in one line: how many of how many, what, where first, what to do."""
    of = max(finding.of, 1)
    part = f" of {finding.part}" if finding.part else ""
    place = f"; the first at {finding.place}" if finding.place else ""
    count = f"{finding.count:,} of {finding.of:,} ({share(finding.count / of)}){part}"
    return f"{finding.level}: {count}: {finding.what}{place}: {finding.advice}".rstrip(": ")


def share(value: float) -> str:
    """A share of 1 for people: never 0 % or 100 % where it is not quite so."""
    if 0 < value < 0.001:
        return "under 0.1 %"
    if 0.999 < value < 1:
        return "over 99.9 %"
    return f"{100 * value:.1f} %".replace(".0 %", " %")


def spoken(languages: Mapping[str, float], most: int = 4) -> str:
    """Scripts with their shares, most frequent first."""
    named = [f"{name or 'no letters'} {share(value)}" for name, value in languages.items()]
    return ", ".join(named[:most]) + (", …" if len(named) > most else "")


def blocks(histogram: Sequence[Sequence[int]]) -> str:
    """Counts as a row of blocks of eight heights; a range without records is a space.

    >>> blocks([(0, 10, 1), (10, 20, 8), (20, 30, 0)])
    '▁█ '
    """
    top = max((count for _, _, count in histogram), default=0)
    return "".join(_BLOCKS[(8 * count - 1) // top] if count else " " for _, _, count in histogram)


def _sources(report: PreflightReport, whole: bool) -> list[Line]:
    sources = list(report.sources.items())
    shown = sources if whole else sources[:4]
    lines = []
    for path, source in shown:
        formats = ", ".join(
            f"{name}{f' {count:,}' if len(source.formats) > 1 else ''}"
            for name, count in source.formats.items()
        )
        lines.append(("", f"{path}: {source.records:,} records ({formats or 'no format'})"))
    if len(shown) < len(sources):
        lines.append(("", f"… and {len(sources) - len(shown)} more sources"))
    return lines


def _part(name: str, part: Part, cutoff_len: int | None, whole: bool) -> list[Line]:
    lengths = part.lengths
    head = f"{name}: {part.records:,} records"
    if not lengths:
        return [("", head)]
    if part.trees != part.records:
        head += f", {part.trees:,} trees"
    unit = part.unit
    head += f", {part.tokens:,} {unit}"
    if part.trained_tokens:
        head += f", {part.trained_tokens:,} trained"
    spans = ", ".join(f"{key} {value:,}" for key, value in lengths.items())
    lines = [("", f"{head}; {spoken(part.languages)}")]
    whole = whole and name == TRAIN  # the other parts are compared at a glance
    limit = f" of cutoff_len {cutoff_len:,}" if cutoff_len and unit == "tokens" else ""
    row = "" if whole else f" |{blocks(part.histogram)}|"
    lines.append(("", f"  {unit}: {spans}{limit}{row}"))
    if whole:
        lines += [("", f"  {bar}") for bar in _bars(part.histogram)]
        lines += [("", f"  {count:,} x {order}") for order, count in part.roles.items()]
    return lines


def _bars(histogram: Sequence[Sequence[int]]) -> list[str]:
    top = max((count for _, _, count in histogram), default=1)
    names = [f"{low:,}-{high - 1:,}" if high - low > 1 else f"{low:,}" for low, high, _ in histogram]
    wide = max((len(name) for name in names), default=0)
    return [
        f"{name:>{wide}} {'█' * max(round(_WIDTH * count / top), int(count > 0)):<{_WIDTH}} {count:,}"
        for name, (_, _, count) in zip(names, histogram, strict=True)
    ]
