"""A model's folder as something to ask: its weights, its tokenizer and its scalar head, opened in one way.

Everything that takes the name of a model comes through here, but training, which chooses its tokenizer first
(`stages.setup`), and `convert`, which keeps the file's own precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from espalier.models.adapters import adapter as adapters
from espalier.models.dtypes import dtype_to_use
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.hub_reach import check_reachable
from espalier.models.load import Scaling, has_tokenizer, load_tokenizer
from espalier.models.load_adapted import base_of, load_with_adapter, plain_base
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation, entry_of
from espalier.models.quantise.turn import is_quantised
from espalier.models.run_folder import find_model
from espalier.models.saved import read_scalar_head


@dataclass(frozen=True)
class OpenModel:
    """What a model's or an adapter's folder holds.

    Attributes:
        name: the folder or hub id.
        lm: the language model, evaluating.
        tokenizer: the folder's own, else that of the model below an adapter; None where neither has one.
        scalar_head: of a reward model; None for others.
    """

    name: str
    lm: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    scalar_head: ScalarHead | None

    @property
    def required_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, for what cannot do without one.

        Raises:
            UserError: there is none.
        """
        # Loading it once more says where it was looked for.
        return load_tokenizer(self.name) if self.tokenizer is None else self.tokenizer

    def tree_model(self, layout: str = "auto") -> TreeModel:
        """The model as it takes trees, evaluating; `layout` as in `probe`."""
        head = self.scalar_head
        if head is not None:
            head = head.to(next(self.lm.parameters()).device)
        return TreeModel(self.lm, probe(self.lm, wanted=layout), head).eval()


def open_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    rope_scaling: Scaling | None = None,
    quantisation: Quantisation | None = None,
) -> OpenModel:
    """A folder (a run's, too: `find_model`) or hub id; an adapter is merged into its base, virtual tokens stay on top (`load_with_adapter`).

    Args:
        name: the folder or hub id.
        device: such as "cuda:0"; "auto" is the first GPU, else the CPU.
        dtype: float32, bfloat16, float16, or auto (`dtype_to_use`); what is stored in few bits stays as it was saved.
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights in .bin files too, through torch's safe loader (tensors only).
        rope_scaling: for longer texts than the model was made for, such as ``"yarn:4"``.
        quantisation: store the linear layers in few bits.

    Raises:
        UserError: the folder cannot be read as a model, or its tokenizer's files are broken.
    """
    name = find_model(name)
    check_reachable(name)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    wanted = dtype_to_use(dtype, plain_base(name), place)
    in_few_bits = quantisation is not None or entry_of(name) is not None
    lm = load_with_adapter(
        name,
        dtype=torch.float32 if in_few_bits else wanted,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        rope_scaling=rope_scaling,
        quantisation=quantisation,
    ).eval()
    # What is stored in few bits has no dtype to change, and what it multiplies comes as it is.
    lm = lm.to(place) if is_quantised(lm) else lm.to(place, wanted)
    tokenizer = find_tokenizer(name, trust_remote_code=trust_remote_code)
    return OpenModel(name, lm, tokenizer, read_scalar_head(name, allow_pickle=allow_pickle))


def find_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or hub id, else of the model below an adapter; None where there is none."""
    name = find_model(name)
    while Path(name).exists() and not has_tokenizer(Path(name)):
        if not adapters.is_adapter(name):
            return None
        name = base_of(name)
    return load_tokenizer(name, trust_remote_code=trust_remote_code)
