"""How many bytes a model's weights take, in memory by type and on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import Tensor, nn

from espalier.models.quantise.cpm_linear import CpmLinear

Sizes = dict[str, int]
"""Type of number (float32, bfloat16, int8, int4, …) to bytes."""


def held_bytes(lm: nn.Module) -> Sizes:
    """What the parameters and saved buffers of a model take in memory; tied ones count once.

    Scales and other tables of quantised layers count under their own type; what is packed two a byte is int4.
    """
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    for module in lm.modules():
        packed = 4 if isinstance(module, CpmLinear) and module.bits == 4 else 8
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or name in module._non_persistent_buffers_set or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            for kind, size in _parts(tensor, packed):
                sizes[kind] += size
    return dict(sizes)


def _parts(tensor: Tensor, packed: int) -> list[tuple[str, int]]:
    kind = str(tensor.dtype).removeprefix("torch.")
    own = tensor.numel() * tensor.element_size()
    owner = type(tensor).__module__
    if owner.startswith("torchao."):  # a tensor made of others
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return [part for name in names for part in _parts(getattr(tensor, name), 8)]
    if owner.startswith("bitsandbytes."):
        if kind == "uint8":
            state = tensor.quant_state  # type: ignore[attr-defined]
            tables = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            return [("int4", own), *(part for table in tables for part in _parts(table, 8))]
        scales = tensor.SCB  # type: ignore[attr-defined]
        return [(kind, own), *(_parts(scales, 8) if scales is not None else [])]
    return [("int4" if kind == "int8" and packed == 4 else kind, own)]


def disk_bytes(folder: str | Path) -> int | None:
    """What the weights of a folder take on disk; None where it is no folder on this machine."""
    place = Path(folder)
    kinds = ("*.safetensors", "*.bin", "*.pth")
    files = [file for kind in kinds for file in place.glob(kind)] if place.is_dir() else []
    for kind in kinds:
        of_kind = [file for file in files if file.match(kind)]
        if of_kind:
            return sum(file.stat().st_size for file in of_kind)
    return None
