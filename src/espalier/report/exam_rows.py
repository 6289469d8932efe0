"""What a reader must know of an exam: its metrics, what did not fit, what was left out, and what can be done about it.

Read from a task's row of results.json, whole or not: rows of earlier versions lack some keys.
"""

from __future__ import annotations

from espalier.report.plots import number
from espalier.report.read import Row, mapping

_LONGER = "take a model with a longer context (--rope-scaling)"


def metrics_of(row: Row) -> list[str]:
    """The metrics of a task that people read, the most important first.

    >>> metrics_of({"metrics": {"bleu": 0.5, "bleu_stderr": 0.1, "nats_per_token": 2.0, "perplexity": 7.4}})
    ['bleu', 'perplexity']
    """
    metrics = mapping(row.get("metrics"))
    hidden = ("_stderr", "nats_per_token")
    return [name for name in metrics if not name.endswith(hidden) and number(metrics[name]) is not None]


def shots_shown(row: Row) -> str:
    """Solved examples before a question: asked for, and where not all fitted, how many there were on average.

    >>> shots_shown({"shots": 3}), shots_shown({"shots": 3, "mean_shots": 0.4})
    ('3', '3→0.4')
    """
    wanted, mean = number(row.get("shots")) or 0.0, number(row.get("mean_shots"))
    return f"{wanted:g}" if mean is None or mean == wanted else f"{wanted:g}→{_below(mean, wanted)}"


def _below(mean: float, wanted: float) -> str:
    """One digit, or as many as it takes to differ from what was wanted."""
    texts = (f"{mean:.{digits}f}" for digits in range(1, 17))
    return next((text for text in texts if float(text) != wanted), repr(mean))


def exam_notes(row: Row) -> list[str]:
    """A sentence for each thing that the number alone does not say; [] where there is none.

    >>> exam_notes({"n": 5, "shots": 0, "without_answer": 2})
    ['2 questions have no right answer that an answer could be compared with; they are not in n']
    """
    notes = _too_long(row, int(_count(row, "n") + _count(row, "without_answer")))
    if without := _count(row, "without_answer"):
        notes.append(
            f"{without:g} questions have no right answer that an answer could be compared with; they are not in n"
        )
    sure = mapping(row.get("calibration"))
    if (error := number(sure.get("error"))) is not None:
        notes.append(
            f"a pair's chance by the model (the sigmoid of its margin) and how often it is right differ by {error:.3f} in the "
            f"mean over {number(sure.get('pairs')) or 0:g} pairs (expected calibration error)"
        )
    notes += [f"{rows} rows are left out: {cause}" for cause, rows in mapping(row.get("left_out")).items()]
    return notes + _of_answers(row)


def _count(row: Row, key: str) -> float:
    return number(row.get(key)) or 0.0


def _too_long(row: Row, asked: int) -> list[str]:
    """What was done to questions that do not fit."""
    short, context = mapping(row.get("shortened")), _count(row, "context")
    reason = f"because they do not fit into the model's context{f' of {context:g} tokens' * (context > 0)}"
    leave = f"{reason}: {_LONGER}, or leave them out (--overlong leave_out)"
    notes = []
    if fewer := _count(short, "fewer_shots"):
        how, cure = "without some of their earlier turns", ""
        if row.get("shots"):
            how = f"with fewer solved examples than asked for ({shots_shown(row)} on average)"
            cure = "ask with fewer (--shots), or "
        notes.append(f"{fewer:g} of {asked} questions were asked {how}, {reason}: {cure}{_LONGER}")
    if cut := _count(short, "cut"):
        notes.append(f"{cut:g} of {asked} questions lost their beginning, {leave}")
    if lost := _count(short, "candidates_cut"):
        notes.append(f"the candidates of {lost:g} of {asked} questions lost their end, all alike, {leave}")
    if out := _count(short, "too_long"):
        first = f"the first is {row.get('first_too_long')}, TASK.jsonl names all"
        notes.append(f"{out:g} questions are left out, {reason} ({first}): {_LONGER}")
    return notes


def _of_answers(row: Row) -> list[str]:
    """What there is to say of written answers."""
    notes = []
    longest, wanted = _count(row, "max_new_tokens"), _count(row, "wanted_new_tokens")
    if longest < wanted:
        notes.append(
            f"answers have at most {longest:g} tokens, half of the model's context, instead of {wanted:g}"
        )
    if unended := _count(row, "unended"):
        notes.append(f"{unended:g} answers have no end within {longest:g} tokens (--max-new-tokens)")
    if lost := _count(mapping(row.get("shortened")), "perplexity_left_out"):
        notes.append(f"{lost:g} right answers are longer than the context, and not in the perplexity")
    if lost := _count(row, "not_comparable"):
        notes.append(
            f"{lost:g} answers could not be compared with the right one in time; they count as wrong"
        )
    return notes
