"""AdaLoRA's decision which singular values stay, after each step (Zhang et al. 2023), over PEFT's allocator.

A singular value is as important as it and its two vectors are: the mean of |weight * gradient| and of how much that
varies. The budget of values falls by a cubic curve from all to the target, the least important are set to 0, and at
last the choice is fixed. Everything that the decision depends on is in the run's checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from espalier.errors import UserError


def adalora_models(module: nn.Module) -> list[PeftModel]:
    """The models in a module whose AdaLoRA is trained."""
    return [
        m
        for m in module.modules()
        if isinstance(m, PeftModel)
        and m.active_peft_config.peft_type == PeftType.ADALORA
        and not m.active_peft_config.inference_mode
    ]


def orthogonality(lm: PeftModel) -> Tensor:
    """How far the singular vectors are from orthogonal, times the adapter's weight for it: to be added to the loss.

    The mean over all A (r, in) and B (out, r) of the Frobenius norms of ``A A^T - I`` and ``B^T B - I`` (equation 4 of
    the paper, with the norm not squared, as PEFT and the authors' code have it).
    """
    settings: Any = lm.active_peft_config
    norms = []
    for name, parameter in lm.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            norms.append(torch.linalg.norm(square - torch.eye(len(square), device=square.device)))
    return float(settings.orth_reg_weight) * torch.stack(norms).mean()


class RankAllocation(nn.Module):
    """The allocator of one model; its parameters are the running means of importance, so that they are saved.

    An adapter that goes on from an earlier run has its ranks already, and keeps them.

    Args:
        lm: with an AdaLoRA that is trained.
        first, last: steps before the budget falls, and after it has fallen; None: a tenth and a fifth of all.
        every: steps between two decisions.
    """

    def __init__(self, lm: PeftModel, *, first: int | None, last: int | None, every: int) -> None:
        super().__init__()
        self._wishes = (first, last, every)
        self._model: tuple[Any] = (lm.base_model,)  # in a tuple, so that it is no part of this module
        self._settings: Any = lm.active_peft_config
        self.decided = self._settings.rank_pattern is not None
        self._names = [n for n, _ in self._weights()]
        zeros = [torch.zeros_like(p, requires_grad=False) for _, p in self._weights()]
        self.importance = nn.ParameterList(nn.Parameter(z, requires_grad=False) for z in zeros)
        self.variation = nn.ParameterList(nn.Parameter(z.clone(), requires_grad=False) for z in zeros)

    def begin(self, total_steps: int) -> None:
        """Fix the schedule, once the run's length is known.

        Raises:
            UserError: no step is left between the first and the last ones.
        """
        first, last, every = self._wishes
        first = total_steps // 10 if first is None else first
        last = total_steps // 5 if last is None else last
        if first + last >= total_steps:
            raise UserError(
                f"adalora_tinit {first} and adalora_tfinal {last} leave no step of {total_steps} in which ranks are "
                "given away. Lower them, or train longer."
            )
        self._settings.tinit, self._settings.tfinal = first, last
        self._settings.total_step, self._settings.deltaT = total_steps, every

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Weigh and decide, after optimiser step number `step` (1 is the first), while its gradients are there."""
        if self.decided:
            return
        (tuner,) = self._model
        allocator = tuner.rankallocator
        state = list(zip(self._names, self.importance, self.variation, strict=True))
        allocator.ipt = {name: importance.data for name, importance, _ in state}
        allocator.exp_avg_ipt = {name: importance.data for name, importance, _ in state}
        allocator.exp_avg_unc = {name: variation.data for name, _, variation in state}
        tuner.update_and_allocate(step)
        for name, importance, variation in state:
            if name in allocator.exp_avg_ipt:  # PEFT forgets them once all is decided
                importance.copy_(allocator.exp_avg_ipt[name])
                variation.copy_(allocator.exp_avg_unc[name])

    def state(self) -> dict[str, Any]:
        """Which singular values stay, by layer (JSON)."""
        return {"ranks": self._settings.rank_pattern}

    def restore(self, state: dict[str, Any]) -> None:
        self._settings.rank_pattern = state["ranks"]

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        """What the allocator weighs, by the names that it has for it."""
        (tuner,) = self._model
        adapter = tuner.trainable_adapter_name
        return [(n, p) for n, p in tuner.model.named_parameters() if "lora_" in n and adapter in n]
