"""What must hold when PPO and GRPO begin: the models are apart, and the first step finds the policy that sampled."""

from __future__ import annotations

from torch import nn

SHIFT: dict[str, float] = {"fp32": 1e-4, "bf16": 16 * 2**-8, "fp16": 16 * 2**-11}
"""Nats by which the logprob of a token may differ between two forwards of one model, on average over tokens.

In float32 other shapes of the same product differ by some 1e-6. In 16 bits a logit is rounded to the unit of its size
(2^-8 in bf16, 2^-11 in fp16), and the large logits of trained models lie near 16.
"""


def check_first_step(first: dict[str, float], precision: str) -> None:
    """At the first step the policy is still the one that sampled, and still the reference.

    It is the mean of |difference| that is looked at: the mean ratio of any two policies is 1 over tokens that one of
    them has sampled.

    Args:
        first: the numbers of the first step: logprob_shift (nats a token), kl (nats an answer), answer_tokens.
        precision: fp32, bf16 or fp16; of the products.

    Raises:
        ValueError: the logprobs are not the same, or the KL is not 0, with what may have caused it.
    """
    shift = SHIFT[precision]
    if not first["logprob_shift"] <= shift:
        raise ValueError(
            f"the first step's logprobs differ by {first['logprob_shift']:.2g} nats a token from those that the rollout "
            f"was measured with (rounding in {precision} explains {shift:.2g}): the forward that trains and the one that "
            "measured disagree. Check dropout and precision."
        )
    if not abs(first["kl"]) <= shift * max(1.0, first["answer_tokens"] / 10):
        raise ValueError(
            f"the first step's KL from the reference is {first['kl']:.2g} nats an answer and must be 0: policy "
            "and reference are not the same model at the start."
        )


def check_apart(**models: nn.Module | None) -> None:
    """Policy, critic, reference and reward model never share a weight that is trained.

    Raises:
        ValueError: two of them do, named.
    """
    owner: dict[int, str] = {}
    for name, model in models.items():
        for parameter in model.parameters() if model is not None else ():
            if parameter.numel() == 0:
                continue
            first = owner.setdefault(parameter.data_ptr(), name)
            if first != name and any(
                p.requires_grad and p.data_ptr() == parameter.data_ptr()
                for other in (models[first], model)
                if other is not None
                for p in other.parameters()
            ):
                raise ValueError(
                    f"{first} and {name} share a trainable weight of shape {tuple(parameter.shape)}"
                )
