"""A model earns the tree layout: one tiny tree through both layouts, compared in float32 or in its dtype.

Names of architectures are not enough: some take a custom mask and are silently wrong (ALiBi), some lose
their sliding window, some refuse. What passes here is right on any tree; what fails runs padded, and the
run says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from espalier.errors import UserError
from espalier.models.attention import NAME, Method
from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.forward import Outputs, Traits, TreeModel, Want
from espalier.models.quiet import first_line
from espalier.models.tokenizers.marks import needs_marks
from espalier.trees.batch import lay_out_padded, lay_out_tree
from espalier.trees.tree import Tree

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of two logprobs, in nats, that is rounding; 0.1 for 16-bit models."""


@torch.no_grad()
def probe(lm: nn.Module, *, wanted: str = "auto", attention: str = "auto") -> Traits:
    """Find out how this model takes trees.

    Args:
        lm: a causal language model of transformers (or one wrapped by PEFT), in any mode; left as found.
        wanted: "auto", "tree" (an error if it cannot), or "padded" (nothing but the head is tried).
        attention: "auto", or the one implementation of transformers' that the model is to have.

    Raises:
        ValueError: the tree layout is demanded and the model cannot take it.
        UserError: the attention that was asked for does not work with this model or on this machine.
    """
    training = lm.training
    lm.eval()
    try:
        if attention != "auto":
            _set_attention(lm, attention)
        return _probe(lm, wanted, attention)
    finally:
        lm.train(training)


def _set_attention(lm: Any, attention: str) -> None:
    try:
        lm.set_attn_implementation(attention)
    except (ImportError, ValueError, KeyError) as error:
        raise UserError(
            f"attn_implementation: {attention} does not work here: {first_line(error)}. Use auto, sdpa or eager."
        ) from error


def _probe(lm: nn.Module, wanted: str, attention: str) -> Traits:
    config: Any = lm.config
    windows = sliding_windows(config)
    plain = _head_is_plain(lm)
    own = config._attn_implementation
    if wanted == "padded":
        return Traits("padded", plain, windows, "padded layout, as asked")
    if needs_marks(lm):
        why = f"{config.model_type} reads its prompts both ways, which is no tree"
        if is_encoder_decoder(lm):
            why = f"{config.model_type} is an encoder-decoder; equal prompts of a batch are encoded once"
        if wanted == "tree":
            raise ValueError(f"layout: tree was asked for, but {why}. Use layout: auto or padded.")
        return Traits("padded", plain, windows, f"padded layout: {why}")
    device = next(lm.parameters()).device
    trees = _tiny_trees(config)
    truth = _logprobs(lm, Traits("padded", plain, windows, ""), trees)
    failures = []
    first: Method = "blocks" if device.type == "cuda" else "pieces"
    methods: tuple[tuple[Method, str], ...] = ((first, NAME), ("dense", own), ("dense", "eager"))
    if attention != "auto":
        methods = (("dense", attention),)
    for method, implementation in methods:
        try:
            lm.set_attn_implementation(implementation)  # type: ignore[operator]
            logprobs = _logprobs(lm, Traits(method, plain, windows, ""), trees)
        except Exception as error:  # whatever a foreign model raises means that it cannot
            failures.append(f"{method}: {type(error).__name__}")
            continue
        worst = float((logprobs - truth).abs().max())
        if worst <= TOLERANCE.get(logprobs.dtype if truth.dtype == logprobs.dtype else truth.dtype, 0.1):
            return Traits(method, plain, windows, f"tree layout ({method}), probe off by {worst:.1e}")
        failures.append(f"{method}: off by {worst:.1e}")
    lm.set_attn_implementation(own)  # type: ignore[operator]
    reason = f"padded layout: {config.model_type} does not take trees exactly ({'; '.join(failures)})"
    if wanted == "tree":
        raise ValueError(f"layout: tree was asked for, but {reason}. Use layout: auto or padded.")
    return Traits("padded", plain, windows, reason)


def _answer_begins(config: Any) -> tuple[int, int]:
    """What stands between a question and its answer in a row of an encoder-decoder."""
    ends = config.eos_token_id
    return ends if isinstance(ends, int) else ends[0], config.decoder_start_token_id


def sliding_windows(config: Any) -> dict[str, int | None]:
    """Sliding window by layer type; ``{"": w}`` where all layers are of one kind."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    if len(kinds) > 1:
        return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
    if kinds == {"full_attention"}:
        window = None
    return {"": window}


def _tiny_trees(config: Any) -> list[Tree]:
    """A forest whose paths are longer than a short sliding window, with branches below branches."""
    vocabulary = int(config.get_text_config().vocab_size)
    maker = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(min(3, vocabulary - 1), vocabulary, (n,), generator=maker).tolist()

    window = max((w for w in sliding_windows(config).values() if w), default=0)
    # A window that no path outgrows has no effect; probing thousands of tokens for it would be slow.
    trunk = tokens(9 + (window if window <= 256 else 0))
    question = tokens(4)
    paths = []
    for prefix in (trunk, trunk + question):
        for n in (3, 5):
            answer = tokens(n)
            paths.append((prefix + answer, [False] * len(prefix) + [True] * n))
    lone = tokens(7)
    return [Tree.join(paths), Tree.from_path(lone, [False] + [True] * 6)]


def _logprobs(lm: nn.Module, traits: Traits, trees: list[Tree]) -> torch.Tensor:
    batch = (lay_out_padded if traits.method == "padded" else lay_out_tree)(trees)
    outputs: Outputs = TreeModel(lm, traits)(batch.to(next(lm.parameters()).device), Want())
    assert outputs.logprobs is not None
    dtype: torch.dtype = torch.promote_types(next(lm.parameters()).dtype, torch.bfloat16)
    return outputs.logprobs.to(dtype)


def _head_is_plain(lm: nn.Module) -> bool:
    """Whether the logits are the output embeddings applied to what they are given, and nothing more.

    A soft-cap bends large logits only, and a fresh model's are small; a bias is lost beside large ones.
    """
    dtype = next(lm.parameters()).dtype
    small = 1e-5 if dtype in TOLERANCE else 1e-2
    return _same_as_head(lm, 1.0, small) and _same_as_head(lm, 1000.0, 1e-2)


def _same_as_head(lm: nn.Module, factor: float, tolerance: float) -> bool:
    """The same, with what the head is given enlarged, and differences relative to the largest logit."""
    head = lm.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no output embeddings: it is not a causal language model")
    taken: list[torch.Tensor] = []

    def enlarge(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        taken.append(args[0] * factor)
        return (taken[0],)

    handle = head.register_forward_pre_hook(enlarge)
    try:
        asked = [1, 2, 3] if not is_encoder_decoder(lm) else [3, *_answer_begins(lm.config), 3]
        ids = torch.tensor([asked], device=next(lm.parameters()).device)
        logits = lm(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    expected = head(taken[0])
    return bool((logits - expected).abs().max() <= tolerance * expected.abs().max())
