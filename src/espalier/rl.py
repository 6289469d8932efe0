"""PPO and GRPO by hand: the pieces that the stages are made of, to be called one after the other.

    training = begin("grpo", model_name_or_path=…, dataset=…, reward_function="equals")
    for number, places in rollouts(training):
        answers = sample(training, places, number)      # what the policy says
        trees = score(training, answers)                # what that is worth
        trees = measure(training, trees)                # how likely each token was: policy, reference, critic
        trees = advantages(training, trees)             # better or worse than what was to be expected
        for part in minibatches(training, trees, number):
            numbers = update(training, part)            # one optimiser step

These loops are all of `stage: ppo` and `stage: grpo` but for their evaluations, logs and checkpoints; with the same
options they give the same numbers. Between any two lines stands a list of trees, a prompt with its answers each, on
which tensors ride (`Tree.extras`): what is put there, the next line uses.

B answers to a prompt, A tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from espalier.config.options import RunOptions
from espalier.data.preflight.findings import stop_at_errors
from espalier.data.preflight.text import lines
from espalier.engine import files
from espalier.engine.group import over_ranks
from espalier.engine.hardware import keep_freed_memory
from espalier.engine.loop import check_first
from espalier.engine.step import Hooks, Learner, Progress, Step
from espalier.engine.track import Meter
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.saved import save_model
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup
from espalier.rollout.feed import RolloutFeed
from espalier.runs.by_hand import options_by_hand
from espalier.runs.catalogue import STAGES
from espalier.runs.judge import judged
from espalier.runs.results import tokenizer_to_save
from espalier.runs.wiring import accelerator_of, schedule_of, wired
from espalier.stages.parts import Live, Parts, Pieces
from espalier.stages.positions import check_positions
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.rollouts import rollout_seed
from espalier.stages.setup import Setup
from espalier.trees import Tree

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """A policy that is trained by hand, with all that it takes; made by `begin`.

    Attributes:
        setup: tokenizer and data of the options.
        parts: models, objective and pieces of the stage.
        live: the prepared module.
        feed: the order of prompts and minibatches.
        stepper: makes the optimiser steps.
        say: is told in words what a run would say on the screen.
    """

    setup: Setup
    parts: Parts
    live: Live
    feed: RolloutFeed
    stepper: Step
    say: Say

    @property
    def tokenizer(self) -> Any:
        """Of the policy, as transformers has it."""
        return self.setup.tokenizer

    @property
    def policy(self) -> TreeModel:
        """The model that is trained; ``policy.lm`` is transformers' own."""
        return self.parts.main

    @property
    def critic(self) -> TreeModel | None:
        """PPO's second model; GRPO has none."""
        return self.parts.also_saved.get("critic")

    @property
    def prompts(self) -> Sequence[Ask]:
        """What is sampled from, by place."""
        return self.pieces.prompts

    @property
    def held_out(self) -> Sequence[Ask]:
        """Prompts that nothing is learned from."""
        return self.pieces.held_out

    @property
    def pieces(self) -> Pieces:
        """Of a rollout, as the stage has them."""
        assert self.parts.pieces is not None
        return self.parts.pieces

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.stepper.progress.step

    @property
    def total_steps(self) -> int:
        """Of `rollouts`; the learning rate follows them."""
        return self.feed.total_steps


def begin(stage: str, *, say: Say | None = None, **options: Any) -> Training:
    """Open everything that a stage trains with: policy, tokenizer, reference, critic, rewards, prompts, optimiser.

    Nothing is written but what a judge has said (into `output_dir`).

    Args:
        stage: "ppo" (Ouyang et al. 2022) or "grpo" (Shao et al. 2024 and its relatives).
        say: is given each line that a run would show, such as ``print``; None: nobody.
        options: the keys of docs/stages.md, but for those about logs, evaluations and checkpoints.

    Raises:
        UserError: anything wrong with the options or the data, all wrong options in one message.
    """
    if stage not in STAGES or not STAGES[stage].samples:
        can = " or ".join(name for name, one in STAGES.items() if one.samples)
        raise UserError(f"begin: {stage!r} does not learn from answers of its own; wanted {can}.")
    say = say or _silent
    chosen = options_by_hand(stage, options, say)
    keep_freed_memory()
    accelerator = accelerator_of(chosen)
    set_seed(chosen[RunOptions].seed)
    place = (accelerator.process_index, accelerator.num_processes, accelerator.device)
    setup = Setup(chosen, STAGES[stage].reads, *place, say, show=say)
    parts = STAGES[stage].build(setup)
    assert parts.pieces is not None
    if parts.pieces.unlike:
        raise UserError(
            f"{parts.pieces.unlike}, which no piece alone can do. Remove it, or use `espalier run`."
        )
    report = setup.preflight.report()
    for _, text in lines(report, whole=False):
        say(text)
    stop_at_errors(report.findings)
    check_positions(parts.main.lm, report.parts.values(), chosen[RolloutOptions].max_new_tokens, say)
    made = wired(stage, chosen, parts, accelerator)
    assert isinstance(made.feed, RolloutFeed)
    after, live = made.parts.after_step, made.live
    hooks = Hooks(
        save=lambda step: None,
        validate=lambda step: {},
        after_step=(lambda step: after(live, step)) if after is not None else (lambda step: None),
        learns=made.parts.learns,
    )
    learner = Learner(live.module, made.parts.objective, made.optimizer, accelerator)
    schedule = schedule_of(chosen, made.parts, made.feed.total_steps)
    live.module.train()
    return Training(setup, made.parts, live, made.feed, Step(learner, schedule, hooks, Progress()), say)


def _silent(text: str) -> None:
    """Nobody listens."""


def rollouts(training: Training) -> Iterator[tuple[int, list[int]]]:
    """The numbers of the rollouts from 0 on, each with the places of its prompts: shuffled epochs, by the seed."""
    for number in range(training.feed.rollouts):
        if training.steps >= training.total_steps:
            return
        yield number, training.feed.chosen(number)


def sample(training: Training, places: Sequence[int], number: int) -> list[AnswerGroup]:
    """Answers of the present policy, `group_size` to each prompt.

    Args:
        places: of prompts in `training.prompts`.
        number: of the rollout; answers follow from it, the seed and the weights alone.

    Returns:
        Of each prompt its answers: ``texts``, ``ended`` (whether by itself), ``ask``, and the ``tree`` of their tokens.
    """
    seed = rollout_seed(training.setup, number)
    return training.pieces.answered(training.live, list(places), seed)


def score(training: Training, answers: list[AnswerGroup]) -> list[Tree]:
    """What the run's rewards give to each answer.

    Rewards of your own need no file here: ``tree.with_extras(scores=…)``, and for PPO the same as ``shaped``.

    Returns:
        A tree for each prompt with the extras ``scores`` (B,), the weighted sum less the fines, ``reward/NAME`` (B,) of each
        reward, and in PPO ``shaped`` (B,), the scores as they are paid (`score_normalization`). Answers without a reward
        are left out where `on_reward_failure` is skip.

    Raises:
        UserError: a reward failed, and that stops a run; or no answer has one.
    """
    return training.pieces.scored(training.live, answers)


def measure(training: Training, trees: list[Tree]) -> list[Tree]:
    """How likely each sampled token is, by the same forward that is trained; without gradients.

    Args:
        trees: as `score` gives them.

    Returns:
        The trees with ``old_logprobs`` and ``ref_logprobs`` (B, A), nats at the temperature of sampling, of the policy and
        of the reference (the policy at step 0); in PPO ``old_values`` (B, A), of the states before the tokens; with a
        teacher ``teacher_kl`` (B, A).
    """
    return training.pieces.measured(training.live, _with(trees, "scores", "score"))


def advantages(training: Training, trees: list[Tree]) -> list[Tree]:
    """How much better an answer or a token is than what was to be expected, over all trees of a rollout together.

    In PPO: the KL from the reference is taken from the rewards, then GAE (Schulman et al. 2016, eq. 16), whitened; an
    adaptive `kl_coef` moves. In GRPO: an answer against its group, by the run's `advantages` (Shao et al. 2024, eq. 3 and
    its relatives).

    Args:
        trees: as `measure` gives them.

    Returns:
        The trees with ``advantages``, (B, A) in PPO and (B,) in GRPO; in PPO also ``returns`` and ``kl`` (B, A).
    """
    return training.pieces.compared(_with(trees, "old_logprobs", "measure"))


def minibatches(training: Training, trees: list[Tree], number: int) -> Iterator[list[Tree]]:
    """The trees of each optimiser step: all passes over a rollout, shuffled by the seed and the rollout's number.

    Ends early after `total_steps`.
    """
    for part in training.feed.chunks(trees, number):
        if training.steps >= training.total_steps:
            return
        yield part


def update(training: Training, trees: list[Tree]) -> dict[str, float]:
    """One optimiser step on these trees.

    The loss is divided by all trained tokens of the step (or what `loss_average` says), so it does not depend on how the
    trees are cut into micro-batches. With `ptx_dataset` some of its text is added. A step in which nothing says which way
    to go changes nothing.

    Args:
        trees: as `advantages` gives them.

    Returns:
        The means of the step, named as in ``metrics.jsonl``: loss, reward, kl (nats an answer), clip_fraction, …, and
        learning_rate and grad_norm (0: no step was taken).

    Raises:
        UserError: the loss or the gradient is no number; or the first step cannot be right: policy, reference and the one
            that sampled are not the same yet.
    """
    stepper, feed = training.stepper, training.feed
    progress, accelerator = stepper.progress, stepper.learner.accelerator
    batches = feed.micro_batches(_with(trees, "advantages", "advantages"), progress.step + 1)
    norm, _ = stepper.take(batches, False)
    numbers = stepper.meter.means(lambda sums: over_ranks(accelerator, sums))
    if progress.step == 1:
        check_first(stepper.learner.objective, numbers)
    rate = stepper.schedule.learning_rate(progress.step - 1)
    return {**numbers, "learning_rate": rate, "grad_norm": norm or 0.0}


def evaluate(training: Training) -> dict[str, float]:
    """The policy on the held-out prompts: the reward, what the reward does not see, KL, lengths, share ended.

    What the numbers of all evaluations so far give away (the reward up and the yardstick down, …) is told to `say`.

    Returns:
        The numbers that a run logs as ``eval_NAME`` without that prefix, ``reward`` and ``reward_stderr`` first.

    Raises:
        UserError: there are no held-out prompts.
    """
    if not training.held_out:
        raise UserError("evaluate: there are no held-out prompts. Give eval_dataset or val_size.")
    live, parts = training.live, training.parts
    with live.evaluating():
        units, numbers = parts.validate(live)
    meter = Meter()
    meter.add(numbers)
    means = meter.means(lambda sums: over_ranks(live.accelerator, sums))
    estimate = judged(units, live.accelerator)
    for text in [] if parts.watch is None else parts.watch.look(training.steps, False):
        training.say(text)
    if estimate is None:
        return means
    name = parts.held_out.name
    error = {} if estimate.stderr is None else {f"{name}_stderr": estimate.stderr}
    return {name: estimate.value, **error} | means


def save(training: Training, folder: str | Path) -> None:
    """Write the policy as a plain folder (an adapter as PEFT does) with its tokenizer, whole or not at all.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"save: {folder} exists already. Name another folder.")
    setup = training.setup
    with files.new_folder(folder) as made:
        save_model(made, training.policy, tokenizer_to_save(setup), ends=setup.stop)


def _with(trees: list[Tree], extra: str, giver: str) -> list[Tree]:
    for tree in trees:
        if extra not in tree.extras:
            raise UserError(
                f"a tree has no {extra!r} ({', '.join(tree.extras) or 'nothing'}); call `{giver}` first."
            )
    return trees
