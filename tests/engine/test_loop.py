"""The one loop: a step depends on its trees alone, what is due happens when it is due, and bad numbers stop it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.engine.loop import Stopped, run_loop
from espalier.engine.signals import StopSignal
from espalier.engine.step import Hooks, Learner, Progress, Schedule
from espalier.engine.strategy import make_accelerator
from espalier.engine.track import Numbers, Tracker
from espalier.errors import UserError
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.screen import Screen
from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree

VOCABULARY = 7
RATE = 0.5


class Bigram(nn.Module):
    """logits of the next token = a row of a table, so that gradients are known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=torch.manual_seed(0)))

    def forward(self, batch: Batch, want: Want) -> Outputs:
        parents = batch.input_ids.flatten()[batch.read_at]
        logprobs = self.table[parents].log_softmax(-1).gather(1, batch.labels[:, None])[:, 0]
        return Outputs(logprobs=batch.grid(logprobs))


class Likelihood:
    want = Want()

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        self.checked: list[dict[str, float]] = []
        self._spoil = spoil

    def count(self, batch: Batch) -> float:
        return float(batch.n_trained)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        total = self._spoil(-masked_sum(outputs.logprobs, batch.mask))
        return total, {"loss": (total.detach(), batch.n_trained)}

    def check(self, first: dict[str, float]) -> None:
        self.checked.append(first)


class Steps:
    """A feed of given steps."""

    def __init__(self, steps: Sequence[list[Batch]], resumable: Sequence[bool] = ()) -> None:
        self._steps, self._resumable = steps, list(resumable) or [True] * len(steps)
        self.total_steps, self.epoch, self.resumable = len(steps), 0.0, True

    def steps(self) -> Iterator[list[Batch]]:
        for step, resumable in zip(self._steps, self._resumable, strict=True):
            self.resumable = resumable
            yield step

    def place(self) -> dict[str, Any]:
        return {}

    def restore(self, place: dict[str, Any]) -> None: ...


def trees() -> list[Tree]:
    """Six trees of unequal numbers of trained tokens: 1 to 9 of them, in one or two branches."""
    maker = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(VOCABULARY, (n,), generator=maker).tolist()

    made = []
    for n in (1, 2, 3, 4, 5, 6):
        prompt = ids(2)
        paths = [(prompt + ids(k), [False] * 2 + [True] * k) for k in ((n,) if n % 2 else (n, n // 2))]
        made.append(Tree.join(paths))
    return made


def one_step(cut: Sequence[int]) -> list[Batch]:
    """All trees as one step, cut into micro-batches of so many trees."""
    everything, batches = trees(), []
    for size in cut:
        batches.append(lay_out_tree(everything[:size]))
        everything = everything[size:]
    assert not everything
    return batches


class Run:
    """A loop over SGD with what it has logged, saved and validated."""

    def __init__(self, folder: Path, **schedule: Any) -> None:
        self.folder = folder
        self.accelerator: Accelerator = make_accelerator("fp32", cpu=True)
        self.model = Bigram()
        made = torch.optim.SGD(self.model.parameters(), lr=123.0)
        self.module, self.optimizer = self.accelerator.prepare(self.model, made)
        self.objective = Likelihood()
        self.schedule = Schedule(
            **{"learning_rate": lambda step: RATE, "max_grad_norm": 0.0, "logging_steps": 1} | schedule
        )
        self.happened: list[tuple[str, int]] = []
        self.stop = StopSignal()

    def go(self, feed: Steps, progress: Progress | None = None) -> Progress:
        def note(what: str) -> Callable[[int], Any]:
            return lambda step: (self.happened.append((what, step)), {"eval_loss": 1.0})[1]

        hooks = Hooks(save=note("save"), validate=note("validate"), after_step=note("after"))
        quiet = Screen(quiet=True)
        with Tracker(self.folder, "run", feed.total_steps, console=quiet) as tracker:
            return run_loop(
                Learner(self.module, self.objective, self.optimizer, self.accelerator),
                feed, self.schedule, hooks, tracker, progress or Progress(), self.stop,
            )  # fmt: skip

    @property
    def table(self) -> Tensor:
        return self.model.table.detach()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def gradient() -> tuple[Tensor, float, int]:
    """By a plain loop over every trained token of every tree: gradient and value of the mean nll, and the count."""
    table = Bigram().table.detach()
    total, nll, count = torch.zeros_like(table), 0.0, 0
    for tree in trees():
        for tokens, trained in tree.paths():
            for i in range(1, len(tokens)):
                if trained[i]:
                    probs = table[tokens[i - 1]].softmax(0)
                    nll -= float(probs[tokens[i]].log())
                    total[tokens[i - 1]] += probs
                    total[tokens[i - 1], tokens[i]] -= 1
                    count += 1
    return total / count, nll / count, count


CUTS = [(6,), (3, 3), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1)]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_loss_is_divided_by_the_trained_tokens_of_the_whole_step(tmp_path: Path, cut: tuple[int]) -> None:
    run = Run(tmp_path)
    run.go(Steps([one_step(cut)]))
    slope, loss, count = gradient()
    assert count > 20 and len({t.n_trained for t in trees()}) > 4, "equal counts would hide a mean of means"
    torch.testing.assert_close(run.table, Bigram().table.detach() - RATE * slope, rtol=0, atol=1e-6)
    (row,) = run.rows
    assert row["loss"] == pytest.approx(loss, abs=1e-6)
    assert row["grad_norm"] == pytest.approx(float(slope.norm()), abs=1e-6)


def test_padded_rows_and_a_filler_change_nothing(tmp_path: Path) -> None:
    everything = trees()
    filler = lay_out_tree(everything[:1]).as_filler()
    run = Run(tmp_path)
    run.go(Steps([[lay_out_padded(everything[:2]), filler, lay_out_padded(everything[2:]), filler]]))
    slope, loss, _ = gradient()
    torch.testing.assert_close(run.table, Bigram().table.detach() - RATE * slope, rtol=0, atol=1e-6)
    assert run.rows[0]["loss"] == pytest.approx(loss, abs=1e-6)


def test_no_gradient_is_left_over_for_the_next_step(tmp_path: Path) -> None:
    run = Run(tmp_path, learning_rate=lambda step: RATE if step == 0 else 0.0)
    run.go(Steps([one_step((6,)), one_step((2, 4)), one_step((6,))]))
    slope, _, _ = gradient()
    torch.testing.assert_close(run.table, Bigram().table.detach() - RATE * slope, rtol=0, atol=1e-6)
    # The second and third step see the same weights and the same trees.
    first, second, third = (row["grad_norm"] for row in run.rows)
    assert second == pytest.approx(third, abs=1e-6) and second != pytest.approx(first, abs=1e-3)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_logged(tmp_path: Path) -> None:
    slope, _, _ = gradient()
    limit = float(slope.norm()) / 3
    run = Run(tmp_path, max_grad_norm=limit)
    run.go(Steps([one_step((2, 4))]))
    moved = Bigram().table.detach() - run.table
    torch.testing.assert_close(moved, RATE * slope / 3, rtol=1e-4, atol=1e-6)
    assert run.rows[0]["grad_norm"] == pytest.approx(3 * limit, rel=1e-5)


def test_the_rate_is_a_function_of_the_step_also_after_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, learning_rate=lambda step: 0.1 * (step + 1))
    progress = run.go(Steps([one_step((6,))] * 2), Progress(step=5, tokens=1000))
    assert [row["learning_rate"] for row in run.rows] == pytest.approx([0.6, 0.7])
    assert progress.step == 7 and run.rows[0]["tokens"] > 1000
    assert run.objective.checked == [], "only the very first step is checked"


def test_the_first_step_is_checked_once_with_its_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path, logging_steps=2)
    run.go(Steps([one_step((6,))] * 4))
    assert [row["step"] for row in run.rows] == [1, 2, 4]
    (first,) = run.objective.checked
    assert first["loss"] == pytest.approx(gradient()[1], abs=1e-6)


def test_a_first_step_that_cannot_be_right_is_refused_with_the_objectives_words(tmp_path: Path) -> None:
    class Suspicious(Likelihood):
        def check(self, first: dict[str, float]) -> None:
            raise ValueError("the loss must be 42. Check the dropout.")

    run = Run(tmp_path)
    run.objective = Suspicious()
    with pytest.raises(UserError, match=r"refused after its first step: the loss must be 42\. Check"):
        run.go(Steps([one_step((6,))] * 3))
    assert not (tmp_path / "metrics.jsonl").exists(), "nothing of a refused step is logged"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused_and_nothing_is_trained(tmp_path: Path, value: float) -> None:
    run = Run(tmp_path)
    run.objective = Likelihood(lambda loss: loss * value)
    with pytest.raises(
        UserError, match=r"step 1, rank 0: the loss is (nan|inf)\. Lower learning_rate.*checkpoint is kept"
    ):
        run.go(Steps([one_step((6,))]))
    assert torch.equal(run.table, Bigram().table.detach())


def test_a_gradient_that_is_no_number_is_refused_and_nothing_is_trained(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.objective = Likelihood(lambda loss: loss + (loss - loss.detach()).sqrt())  # value 0, slope infinite
    with pytest.raises(UserError, match=r"step 1, rank 0: the gradient norm is (nan|inf)\..*precision: fp32"):
        run.go(Steps([one_step((6,))]))
    assert torch.equal(run.table, Bigram().table.detach())


def test_a_step_without_trained_tokens_is_an_error(tmp_path: Path) -> None:
    empty = lay_out_tree([Tree.from_path([1, 2, 3], [False] * 3)])
    with pytest.raises(UserError, match=r"step 1: no token in it is trained\. .*espalier inspect"):
        Run(tmp_path).go(Steps([[empty]]))


def test_what_is_due_happens_then_and_only_where_a_checkpoint_may_be_written(tmp_path: Path) -> None:
    run = Run(tmp_path, save_steps=2, eval_steps=3)
    run.go(Steps([one_step((6,))] * 8, resumable=[True, False, False, True, True, True, True, True]))
    # Step 2 is in the middle of a rollout, so its checkpoint waits for step 4; the last step saves the model itself.
    assert [step for what, step in run.happened if what == "save"] == [4, 6]
    assert [step for what, step in run.happened if what == "validate"] == [3, 6]
    assert [step for what, step in run.happened if what == "after"] == list(range(1, 9))


def test_a_signal_ends_the_run_after_a_checkpoint_of_the_next_resumable_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.stop.asked = True
    with pytest.raises(Stopped) as stopped:
        run.go(Steps([one_step((6,))] * 4, resumable=[False, True, True, True]))
    assert stopped.value.step == 2
    assert [(what, step) for what, step in run.happened if what == "save"] == [("save", 2)]
