"""Held-out numbers of a run at an evaluation, and what its model says to held-out prompts."""

from __future__ import annotations

import json
import math

from espalier.config.better import better, plain_name
from espalier.config.options import EngineOptions, EvaluationOptions
from espalier.disk.writing import writing_to
from espalier.engine.finite import cause
from espalier.engine.group import over_ranks
from espalier.engine.strategy import SHARDED
from espalier.engine.track import Meter
from espalier.errors import UserError
from espalier.maths.ratio import Estimate
from espalier.models.load import context_length
from espalier.models.sampling.generate import Sampling, sample
from espalier.runs.catalogue import STAGES
from espalier.runs.judge import judged
from espalier.runs.resume import keeps_best, save
from espalier.runs.running import Running
from espalier.stages.rollout_options import RolloutOptions

SAMPLE_TOKENS = 64
"""Longest shown answer of a stage that does not sample itself."""


def validate(running: Running, step: int) -> dict[str, float]:
    """The numbers to log as ``eval_NAME``; the stage's own one is kept for the summary, with its error."""
    parts, live = running.parts, running.live
    running.setup.refresh_sampler(live, parts.main)
    with live.evaluating():
        units, numbers = parts.validate(live)
    meter = Meter()
    meter.add(numbers)
    logged = {f"eval_{k}": v for k, v in meter.means(lambda sums: over_ranks(live.accelerator, sums)).items()}
    estimate = judged(units, live.accelerator)
    if estimate is not None:
        name = f"eval_{parts.held_out.name}"
        error = {} if estimate.stderr is None else {f"{name}_stderr": estimate.stderr}
        logged = {name: estimate.value, **error} | logged | {name: estimate.value}
    _check_finite(running, logged, step)
    if estimate is not None:
        when = "before" if step == 0 else "after"
        running.held_out |= {
            "name": parts.held_out.name,
            "better": parts.held_out.better,
            when: estimate.value,
            f"stderr_{when}": estimate.stderr,
            "n": estimate.n,
        }
        _compare(running, step, estimate, logged)
    running.progress.evaluated = step
    for text in [] if parts.watch is None else parts.watch.look(step, _is_last(running, step)):
        running.start.warn(step, text)
    _show(running, step)
    return logged


def _is_last(running: Running, step: int) -> bool:
    """Whether no evaluation comes after this one."""
    patience = running.start.option(EvaluationOptions).early_stopping_patience
    enough = patience is not None and running.progress.worse >= patience
    return step > 0 and (enough or step >= running.feed.total_steps)


def _compare(running: Running, step: int, estimate: Estimate, logged: dict[str, float]) -> None:
    """Note an evaluation that is the best so far, and keep its weights where they are asked for in the end.

    Args:
        estimate: of the stage's own number.
        logged: all numbers, by ``eval_NAME``.

    Raises:
        UserError: `metric_for_best_model` is none of them.
    """
    progress, feed = running.progress, running.feed
    own = running.parts.held_out
    metric = plain_name(running.start.option(EvaluationOptions).metric_for_best_model or own.name)
    value = logged.get(f"eval_{metric}")
    if value is None and step == 0:
        there = ", ".join(sorted(plain_name(name) for name in logged if better(plain_name(name))))
        raise UserError(
            f"metric_for_best_model: {metric} is no number of this run's evaluations. There are: {there}."
        )
    if value is None or not step:
        return
    over = step >= feed.total_steps
    if keeps_best(running.start) and not over and not feed.resumable:
        return  # between two rollouts' steps there is nothing to go back to
    way = own.better if metric == own.name else better(metric)
    sign = 1 if way == "higher" else -1
    if progress.best and sign * value <= sign * progress.best["value"]:
        progress.worse += 1
        return
    best = {"step": step, **estimate._asdict()}
    if metric != own.name:
        error = logged.get(f"eval_{metric}_stderr")
        best |= {"metric": metric, "value": value, "stderr": error, "held_out": estimate._asdict()}
    progress.best, progress.worse = best, 0
    if keeps_best(running.start) and not over:
        save(running, step)


def _check_finite(running: Running, numbers: dict[str, float], step: int) -> None:
    """Numbers that are none are said with their step and cause, on every rank alike."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            look = "model_name_or_path" if step == 0 else "learning_rate"
            raise UserError(
                f"step {step}: {name} is {value} on the held-out data, so nothing was saved after it; earlier "
                f"checkpoints and models are kept. {cause(running.live.module)} Look at {look}, or at that data."
            )


def _show(running: Running, step: int) -> None:
    """Write what the model says; the first rank does it, the others have nothing to add."""
    start, parts, live = running.start, running.parts, running.live
    nobody_whole = start.option(EngineOptions).strategy in SHARDED and live.sampler is None
    if not parts.sample_prompts or not start.is_main or nobody_whole:
        return
    longest = start.option(RolloutOptions).max_new_tokens if STAGES[start.stage].samples else SAMPLE_TOKENS
    prompts = [prompt.tokens for prompt in parts.sample_prompts]
    room = context_length(parts.main.lm) - max(map(len, prompts))
    try:
        with live.accelerator.autocast():
            answers = sample(
                live.sampler or parts.main.lm,
                parts.main.traits,
                prompts,
                Sampling(max(1, min(longest, room)), 0.0, stop=running.setup.stop),
            )
    except UserError as broken:
        raise UserError(f"step {step}: {broken} {cause(live.module)}") from broken
    path = start.folder / "samples.jsonl"
    with writing_to(path), path.open("a", encoding="utf-8") as file:
        for prompt, (answer,) in zip(parts.sample_prompts, answers, strict=True):
            text = running.setup.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            row = {"step": step, "prompt": prompt.text, "completion": text, "reference": prompt.reference}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
