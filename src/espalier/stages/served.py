"""Rollouts that a server samples: its weights follow the policy's, and its logprobs are compared with the policy's own.

An engine of another precision and other kernels samples from a slightly other distribution than the one that is trained.
Truncated importance weights correct for it (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
RL training"; as in TRL's `vllm_importance_sampling_correction`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from espalier.config.option_set import OptionSet
from espalier.config.options import AdapterOptions, Options, RunOptions, option
from espalier.disk.writing import writing_to
from espalier.engine.whole import whole_model, whole_parameters
from espalier.errors import UserError
from espalier.models.adapters.adapter import is_adapted
from espalier.models.forward import TreeModel
from espalier.models.sampling.generate import Sampling
from espalier.models.saved import save_model
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup, answer_group, trained_mask
from espalier.rollout.server import SamplingServer
from espalier.stages.parts import Live
from espalier.stages.policy import IMPORTANCE
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.setup import Setup
from espalier.trees import Tree

SERVED = "served_logprobs"
"""The extra (B, A) with what the server said of the tokens that it sampled."""

FARTHEST = 0.5
"""Nats a token, in the mean, that server and policy may differ by before the first step. Engines in bf16 differ by a few
hundredths; other weights, or logprobs before the temperature, by far more."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Options):
    """Sampling on a server."""

    rollout_server: str | None = option(
        None, "Address of a vLLM server that samples here, such as http://gpu7:8000."
    )
    rollout_weights: str | None = option(
        None,
        "Where the policy's weights are written for the server, which must see it too; null: OUTPUT_DIR/NAME/rollout_weights.",
        same_result=True,
    )
    importance_cap: float = option(
        2.0, "A token counts by policy over server, and at most so many times; with rollout_server.", above=0
    )


def check_served(options: OptionSet) -> None:
    """Refuse what a server cannot do.

    Raises:
        UserError: a part of the distribution is cut off, so that its logprobs are not the policy's; an adapter that vLLM
            does not know.
    """
    if options[ServerOptions].rollout_server is None:
        return
    rolling, kind = options[RolloutOptions], options[AdapterOptions].finetuning_type
    if rolling.top_p < 1 or rolling.top_k:
        raise UserError(
            "rollout_server with top_p or top_k is not possible: the server's logprobs would be those of what is left, and "
            "not the policy's. Set top_p: 1 and top_k: 0."
        )
    if kind not in ("full", "freeze", "lora"):
        raise UserError(
            f"rollout_server with finetuning_type: {kind} is not possible: vLLM takes LoRA adapters and whole weights. Use "
            "lora, freeze or full."
        )


def served_sampling(setup: Setup, policy: TreeModel) -> ServedSampling | None:
    """The run's server, which follows the policy from now on; None where it samples by itself."""
    if ServerOptions not in setup.options or setup.option(ServerOptions).rollout_server is None:
        return None
    served = ServedSampling(setup, policy)
    setup.followers.append(served.refresh)
    return served


class ServedSampling:
    """The server of a run.

    Args:
        setup: of the run.
        policy: what the server samples from.
    """

    def __init__(self, setup: Setup, policy: TreeModel) -> None:
        options, run = setup.option(ServerOptions), setup.option(RunOptions)
        assert options.rollout_server is not None
        self._setup, self._policy, self._cap = setup, policy, options.importance_cap
        own = Path(run.output_dir) / (run.name or run.stage) / "rollout_weights"
        self.folder = Path(options.rollout_weights) if options.rollout_weights else own
        self.server = SamplingServer(options.rollout_server.rstrip("/").removesuffix("/v1"))
        self._number, self._compared = 0, False
        self.server.ready()

    def refresh(self, live: Live) -> None:
        """Give the server the policy's weights as they are now; every rank waits until it has them."""
        adapted = is_adapted(self._policy.lm)
        gathered = whole_parameters if adapted else whole_model  # an adapter's base is on the server already
        whole = gathered(live.accelerator, live.module)
        prefix = next((f"{n}." if n else "") for n, m in live.inner.named_modules() if m is self._policy)
        own = {name.removeprefix(prefix): t for name, t in whole.items() if name.startswith(prefix)}
        self._number += 1
        folder = self.folder / f"{self._number % 2}" if adapted else self.folder
        if self._setup.rank == 0:
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                save_model(folder, self._policy, None if adapted else self._setup.tokenizer, own)
            if not adapted:
                self.server.reload()
        live.accelerator.wait_for_everyone()
        if adapted:
            name = str(folder.absolute())
            if self._setup.rank == 0:
                self.server.load_adapter(name, self._number)
            else:
                self.server.model = f"espalier-{self._number}"
            live.accelerator.wait_for_everyone()

    def sample(
        self,
        asks: Sequence[Ask],
        sampling: Sampling,
        copies: int,
        seeds: Sequence[int],
        decode: Callable[[list[int]], str],
    ) -> list[AnswerGroup]:
        """Answers to each prompt, the server's logprobs on their trees."""
        found = self.server.sample([ask.tokens for ask in asks], sampling, copies=copies, seeds=seeds)
        groups = []
        for ask, answers in zip(asks, found, strict=True):
            group = answer_group(ask, answers, decode)
            logprobs = pad_sequence([torch.tensor(a.logprobs) for a in answers], batch_first=True)
            groups.append(replace(group, tree=group.tree.with_extras(**{SERVED: logprobs})))
        return groups

    def trusted(self, trees: Sequence[Tree]) -> list[Tree]:
        """Measured trees with the importance of each token: min(cap, policy / server).

        Raises:
            UserError: at the first rollout, where both should agree, they do not.
        """
        gaps = [(t.extras["old_logprobs"] - t.extras[SERVED])[trained_mask(t)] for t in trees]
        gap = float(torch.cat(gaps).abs().mean())
        if not self._compared and gap > FARTHEST:
            raise UserError(
                f"rollout_server: policy and server differ by {gap:.2f} nats a token before the first step, so the server "
                "samples from other weights, or gives logprobs from before the temperature. Start it from "
                f"{self.folder} (or the run's own base, for adapters), with --logprobs-mode processed_logprobs."
            )
        self._compared = True
        weighed = []
        for tree in trees:
            ratio = (tree.extras["old_logprobs"] - tree.extras[SERVED]).exp().clamp(max=self._cap)
            weight = torch.where(trained_mask(tree), ratio, torch.ones_like(ratio))
            weighed.append(tree.with_extras(**{IMPORTANCE: weight}))
        return weighed
