"""How weights may be stored in few bits: the methods, what each can do, and what it needs to be installed.

Three run on a CPU from end to end (quantise, save, load, train adapters on top): ``cpm`` (ours), ``bnb`` (bitsandbytes)
and ``torchao``. Folders that other tools have made (GPTQ, AWQ, …) are read by transformers where the library that it
wants is installed. Calibration texts are optional, and cpm's alone (`calibrated`).
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError

BITS = {"bnb": (4, 8), "cpm": (4, 8), "torchao": (2, 3, 4, 8)}
"""The methods, and how many bits each can store a weight in."""

ELSEWHERE = {
    "gptq": "Quantise with GPTQModel itself; the folder it writes loads here once gptqmodel is installed.",
    "awq": "Quantise with GPTQModel or llm-compressor; their folders load here once gptqmodel is installed.",
    "hqq": "torchao stores 2, 3 and 4 bits too.",
    "eetq": "cpm stores the same row-wise int8, on any device.",
    "gguf": "`espalier export` writes GGUF files, q8_0 among them.",
}
"""Methods that people know from other tools, and what to do instead."""

_NEEDS = {
    "bitsandbytes": ("bitsandbytes", "pip install 'espalier-llm[quant]'"),
    "torchao": ("torchao", "pip install 'espalier-llm[torchao]'"),
    "gptq": ("gptqmodel", "pip install gptqmodel (it compiles its kernels for your GPU)"),
    "awq": ("gptqmodel", "pip install gptqmodel (it compiles its kernels for your GPU)"),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "hqq": ("hqq", "pip install hqq"),
}
"""What config.json calls the method: the library that reads it, and how to get that."""


@dataclass(frozen=True)
class Quantisation:
    """How linear layers are stored; the embeddings and the head stay as they are.

    Attributes:
        method: one of `BITS`.
        bits: of one weight.
        kind: bnb's 4 bits: nf4 (levels of a normal distribution; Dettmers et al. 2023) or fp4.
        double: bnb's 4 bits: the scales are quantised in their turn.
        group_size: torchao's 2 to 4 bits: so many weights of a row share a scale; None: 32.
    """

    method: str
    bits: int
    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    group_size: int | None = None

    def __str__(self) -> str:
        text = f"{self.method}, {self.bits} bits"
        if self.method == "bnb" and self.bits == 4:
            text += f" ({self.kind}{', double quantisation' if self.double else ''})"
        return text


def problem(wanted: Quantisation) -> str | None:
    """A whole sentence about what the method cannot do, or None."""
    method, bits = wanted.method, wanted.bits
    if method not in BITS:
        instead = ELSEWHERE.get(method, "")
        return f"quantisation method {method} is not offered; there are {', '.join(BITS)}. {instead}".rstrip()
    if bits not in BITS[method]:
        able = ", ".join(name for name, known in BITS.items() if bits in known)
        has = " or ".join(map(str, BITS[method]))
        cure = f"for {bits} bits there is {able}" if able else "choose one of these"
        return f"{method} stores weights in {has} bits, not in {bits}; {cure}."
    if wanted.group_size is not None and (method != "torchao" or bits == 8):
        return f"a group size belongs to torchao's 2, 3 and 4 bits; {method} with {bits} bits has its own. Remove it."
    return None


def settings(wanted: Quantisation) -> Any:
    """The same as transformers takes it.

    Raises:
        UserError: something the method cannot do, or whose library is not installed.
    """
    reason = problem(wanted)
    if reason is not None:
        raise UserError(reason[0].upper() + reason[1:])
    if wanted.method == "cpm":
        from espalier.models.quantise.cpm_transformers import CpmConfig

        return CpmConfig(wanted.bits)
    require({"bnb": "bitsandbytes"}.get(wanted.method, wanted.method), str(wanted))
    if wanted.method == "bnb":
        import torch
        from transformers import BitsAndBytesConfig

        if wanted.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=wanted.kind,
            bnb_4bit_use_double_quant=wanted.double,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return _torchao(wanted)


def _torchao(wanted: Quantisation) -> Any:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    if wanted.bits == 8:
        return TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    number = getattr(torch, f"int{wanted.bits}")
    group = PerGroup(wanted.group_size or 32)
    return TorchAoConfig(quant_type=IntxWeightOnlyConfig(weight_dtype=number, granularity=group))


def require(method: str, what: str) -> None:
    """Stop where the library is missing that a method (as config.json calls it) needs.

    Raises:
        UserError: naming what needs it and how to install it.
    """
    library, install = _NEEDS.get(method, (None, ""))
    if library is not None and importlib.util.find_spec(library) is None:
        raise UserError(f"{what}: needs {library}, which is not installed. {install}")


def entry_of(folder: str) -> dict[str, Any] | None:
    """What a folder's config.json says of its quantised weights; None where it says nothing."""
    entry = object_or_nothing(Path(folder) / "config.json").get("quantization_config")
    return entry if isinstance(entry, dict) else None


def described(entry: dict[str, Any]) -> str:
    """`entry_of` in a few words."""
    method = str(entry.get("quant_method"))
    if method == "bitsandbytes":
        if entry.get("load_in_8bit"):
            return "bnb, 8 bits"
        double = ", double quantisation" if entry.get("bnb_4bit_use_double_quant") else ""
        return f"bnb, 4 bits ({entry.get('bnb_4bit_quant_type')}{double})"
    bits = entry.get("bits")
    if method == "torchao":
        kind = json.dumps(entry.get("quant_type"))
        bits = next((n for n in (2, 3, 4) if f"int{n}" in kind), 8)
    return method if bits is None else f"{method}, {bits} bits"


def check_readable(folder: str) -> None:
    """Whether what a quantised folder needs is installed; says nothing of a folder that is not quantised.

    Raises:
        UserError: naming the library.
    """
    entry = entry_of(folder)
    if entry is not None:
        require(str(entry.get("quant_method")), f"{folder} (quantised with {described(entry)})")
