"""Whether a policy is getting better or is fooling its reward: what an evaluation shows, said in words.

The evaluations of a run ask the same held-out prompts, so they are compared prompt by prompt. A change counts where it is
larger than 2 standard errors of the paired difference. That is the bound of the last evaluation; those on the way, of which
one of many would show something by luck, and the best of many, which is high by luck, must show more (Bonferroni), and so
must few prompts (Student). What is known to go wrong is told by the numbers that give it away: a yardstick that falls while the reward rises (Gao, Schulman & Hilton 2023), a distance from the
reference at which people liked the answers less (Stiennon et al. 2020, figure 5), a reward that pays for length (Singhal et
al. 2023), answers that never end or are all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist, fmean
from typing import Any

from espalier.maths.metrics import paired_difference
from espalier.maths.ratio import ratio_error

ERRORS = 2.0
"""A single change counts beyond so many standard errors."""

PAYS_FOR_LENGTH = 0.5
"""From this correlation with length within prompts on, a reward goes with length: a quarter of its variance and more."""

CLEARLY_LONGER = 0.1
"""A mean length that has moved by this share, beyond its error, has moved clearly."""

ENDS_LESS = 0.1
"""So much of the share of answers that end must be lost."""

MOSTLY_SAME = 0.5
"""From this share of pairs on, answers to a prompt are mostly the same."""

MUCH_CLIPPED = 0.25
"""From this share of scores beyond `reward_clip` on, the reward is mostly a sign."""


def errors_wanted(n: int, looks: int) -> float:
    """How many standard errors a mean difference of n pairs must have, where it is the largest of so many looks.

    2 for one look at many pairs: a one-sided chance of 2.3 % in all. Student's quantile follows from the normal one by
    its expansion (Abramowitz & Stegun 1964, 26.7.5). n: 2 or more. looks: 1 or more.

    >>> (
    ...     round(errors_wanted(10_000, 1), 3),
    ...     round(errors_wanted(12, 1), 2),
    ...     round(errors_wanted(10_000, 10), 2),
    ... )
    (2.0, 2.25, 2.84)
    """
    z = -NormalDist().inv_cdf(NormalDist().cdf(-ERRORS) / looks)
    free = n - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation has found.

    Attributes:
        step: of the run.
        prompts: name -> a number for each held-out prompt, in their order.
        numbers: name -> a number about all of them.
    """

    step: int
    prompts: Mapping[str, Sequence[float]]
    numbers: Mapping[str, float]

    def mean(self, name: str) -> float:
        return fmean(self.prompts[name])


@dataclass(frozen=True)
class Named:
    """What the yardsticks of a run are called, and their bounds.

    Attributes:
        yardstick: the rule's name; None where there is none.
        own: whether the reward is that very rule, which then proves nothing.
        kl_bound: nats an answer; None: any distance is right.
    """

    yardstick: str | None
    own: bool
    kl_bound: float | None


@dataclass
class Watch:
    """Compares the evaluations of a run and keeps what it has warned of; a `Controller` and a `Watcher` of `parts`.

    Attributes:
        warnings: {"step", "kind", "text"} of each, in order; each kind comes once.
    """

    named: Named
    warnings: list[dict[str, Any]] = field(default_factory=list)
    first: Evaluation | None = None
    best: dict[str, Evaluation] = field(default_factory=dict)
    looks: int = 0
    pays: float = 0.0
    over: bool = False
    _latest: tuple[Mapping[str, Sequence[float]], Mapping[str, float]] | None = None

    def note(self, prompts: Mapping[str, Sequence[float]], numbers: Mapping[str, float]) -> None:
        """What the present evaluation has found; see `Evaluation`."""
        self._latest = prompts, numbers

    def look(self, step: int, over: bool = False) -> list[str]:
        """Compare what was noted last with what was seen before; returns the warnings that are new, whole sentences.

        Args:
            over: whether it is the run's last evaluation.
        """
        if self._latest is None:
            return []
        self.over = over
        now, self._latest = Evaluation(step, *self._latest), None
        correlation = now.numbers.get("length_correlation", 0.0)
        self.pays = correlation if abs(correlation) > abs(self.pays) else self.pays
        said = []
        for kind, check in CHECKS.items():
            known = any(warning["kind"] == kind for warning in self.warnings)
            text = None if known else check(self, now)
            if text is not None:
                self.warnings.append({"step": step, "kind": kind, "text": text})
                said.append(text)
        self.first = self.first or now
        for name in ("yardstick", "yardstick_greedy"):
            if name in now.prompts and (name not in self.best or now.mean(name) > self.best[name].mean(name)):
                self.best[name] = now
        self.looks += 1
        return said

    def moved(self, before: Evaluation | None, now: Evaluation, name: str) -> int:
        """1 where a number has clearly risen between two evaluations, -1 where it has fallen, else 0."""
        if before is None or not {name} <= before.prompts.keys() & now.prompts.keys():
            return 0
        if len(now.prompts[name]) < 2 or len(before.prompts[name]) != len(now.prompts[name]):
            return 0
        chosen = name in self.best and before.step == self.best[name].step and not self.begins(before)
        return self.sign(before.prompts[name], now.prompts[name], chosen=chosen)

    def sign(self, before: Sequence[float], after: Sequence[float], *, chosen: bool = False) -> int:
        """The same of two lists of numbers by prompt, two prompts or more; `chosen`: for the first was the best of all."""
        change = paired_difference(before, after)
        # Look t on the way has the share 1 / (2 t)^2 of one look's chance; all together have 0.4 of it, and the last one 1.
        looks = max(1, self.looks)
        shares = (1 if self.over else (2 * looks) ** 2) * (looks if chosen else 1)
        if abs(change.value) <= errors_wanted(change.n, shares) * change.stderr:
            return 0
        return (change.value > 0) - (change.value < 0)

    def begins(self, seen: Evaluation) -> bool:
        """Whether it is the first evaluation of the run."""
        return self.first is not None and seen.step == self.first.step

    def better(self, now: Evaluation) -> bool:
        """Whether the yardstick has clearly risen since the start: then other changes are what it took."""
        return self.moved(self.first, now, "yardstick") > 0

    def state(self) -> dict[str, Any]:
        seen = {
            "first": self.first and asdict(self.first),
            "best": {k: asdict(v) for k, v in self.best.items()},
        }
        return {**seen, "looks": self.looks, "pays": self.pays, "warnings": self.warnings}

    def restore(self, state: dict[str, Any]) -> None:
        self.first = Evaluation(**state["first"]) if state["first"] else None
        self.best = {name: Evaluation(**seen) for name, seen in state["best"].items()}
        self.looks, self.pays, self.warnings = state["looks"], state["pays"], list(state["warnings"])


CURE = (
    "take the weights before it (load_best_model_at_end with metric_for_best_model: yardstick), raise kl_coef, lower "
    "learning_rate, or mend the reward"
)


def _fooled(name: str) -> Callable[[Watch, Evaluation], str | None]:
    """Reward up, yardstick down: against the yardstick's best evaluation so far, and against the start."""

    def check(watch: Watch, now: Evaluation) -> str | None:
        for before in (watch.best.get(name), watch.first):
            if watch.named.own or before is None or watch.moved(before, now, name) >= 0:
                continue
            if watch.moved(before, now, "reward") > 0:
                return (
                    f"the reward rose and the yardstick fell: since step {before.step} reward "
                    f"{_from_to(before, now, 'reward')}, {_yardstick(watch, before, now, name)}; it turned at step "
                    f"{before.step}. The reward is being exploited: {CURE}"
                )
        return None

    return check


def _harmed(name: str) -> Callable[[Watch, Evaluation], str | None]:
    """Yardstick down since the start, and nothing won for it."""

    def check(watch: Watch, now: Evaluation) -> str | None:
        before = watch.first
        if watch.named.own or before is None or watch.moved(before, now, name) >= 0:
            return None
        if watch.moved(before, now, "reward") > 0:
            return None
        return (
            f"the yardstick fell and the reward did not clearly rise: since step {before.step} "
            f"{_yardstick(watch, before, now, name)}. The steps do harm: lower learning_rate, or raise kl_coef"
        )

    return check


def _yardstick(watch: Watch, before: Evaluation, now: Evaluation, name: str) -> str:
    how = "greedy" if name.endswith("_greedy") else "sampled"
    return f"{watch.named.yardstick} {_from_to(before, now, name)} on {how} answers to {len(now.prompts[name])} prompts"


def _prefers_worse(watch: Watch, now: Evaluation) -> str | None:
    """Of several answers the one that the reward likes best is worse than any one."""
    best = max((name for name in now.prompts if name.startswith("yardstick_best_of_")), key=_n, default=None)
    if best is None or watch.named.own or len(now.prompts[best]) < 2:
        return None
    if watch.sign(now.prompts["yardstick"], now.prompts[best]) >= 0:
        return None
    return (
        f"the reward prefers worse answers: of {_n(best)} answers to a prompt the best by the reward has "
        f"{watch.named.yardstick} {now.mean(best):.3g} in the mean, and any one {now.mean('yardstick'):.3g}. What it is "
        "optimised for is not what is wanted: mend the reward"
    )


def _far(watch: Watch, now: Evaluation) -> str | None:
    bound, kl = watch.named.kl_bound, now.prompts.get("kl")
    if bound is None or kl is None or len(kl) < 2:
        return None
    mean = fmean(kl)
    error = ratio_error(math.fsum((x - mean) ** 2 for x in kl), len(kl), len(kl)) or 0.0
    if mean - errors_wanted(len(kl), 1) * error <= bound:
        return None
    return (
        f"the policy has gone far from the reference: KL {mean:.3g} ± {error:.2g} nats an answer, past kl_bound {bound:g}. "
        "Rewards are seldom right so far away: read the samples, raise kl_coef, or set kl_bound to what is wanted"
    )


def _pays_for_length(watch: Watch, now: Evaluation) -> str | None:
    """The reward rose, lengths went its way, and nothing says that the answers are better for it."""
    before, way = watch.first, 1 if watch.pays > 0 else -1
    if (
        before is None
        or abs(watch.pays) < PAYS_FOR_LENGTH
        or watch.moved(before, now, "answer_tokens") != way
    ):
        return None
    old, new = before.mean("answer_tokens"), now.mean("answer_tokens")
    if abs(new - old) < CLEARLY_LONGER * old or watch.moved(before, now, "reward") <= 0 or watch.better(now):
        return None
    return (
        f"the reward goes with length: its correlation with an answer's length is {watch.pays:+.2f} within prompts, and since "
        f"step {before.step} answers went from {old:.3g} to {new:.3g} tokens and the reward "
        f"{_from_to(before, now, 'reward')}. It may be paying for length alone: judge answers of equal length, or let the "
        "reward take length into account"
    )


def _no_end(watch: Watch, now: Evaluation) -> str | None:
    before = watch.first
    if before is None or watch.moved(before, now, "ended") >= 0:
        return None
    if before.mean("ended") - now.mean("ended") < ENDS_LESS:
        return None
    return (
        f"answers no longer end: {before.mean('ended'):.0%} did at step {before.step}, {now.mean('ended'):.0%} do now, the "
        "others are cut at max_new_tokens. Set missing_eos_penalty, or raise max_new_tokens where answers need it"
    )


def _same(watch: Watch, now: Evaluation) -> str | None:
    before, name = watch.first, "duplicates"
    if before is None or watch.moved(before, now, name) <= 0 or now.mean(name) < MOSTLY_SAME:
        return None
    if watch.better(now):
        return None
    return (
        f"the answers to a prompt have become the same: {now.mean(name):.0%} of the pairs, {before.mean(name):.0%} at step "
        f"{before.step}, with no clear gain by a yardstick. There is little left to learn from: raise kl_coef or temperature, "
        "or stop earlier"
    )


def _clipped(watch: Watch, now: Evaluation) -> str | None:
    share = now.numbers.get("score_clipped", 0.0)
    if share < MUCH_CLIPPED:
        return None
    return (
        f"{share:.0%} of the scores are beyond reward_clip and count as equal: raise it, scale the reward, or set "
        "reward_clip: null"
    )


CHECKS: dict[str, Callable[[Watch, Evaluation], str | None]] = {
    "yardstick": _fooled("yardstick"),
    "yardstick_greedy": _fooled("yardstick_greedy"),
    "harm": _harmed("yardstick"),
    "harm_greedy": _harmed("yardstick_greedy"),
    "prefers_worse": _prefers_worse,
    "kl": _far,
    "length": _pays_for_length,
    "ended": _no_end,
    "duplicates": _same,
    "score_clipped": _clipped,
}
"""Kind of warning -> what looks for it."""


def _n(name: str) -> int:
    return int(name.rpartition("_")[2])


def _from_to(before: Evaluation, now: Evaluation, name: str) -> str:
    return f"{before.mean(name):.3g} -> {now.mean(name):.3g}"
