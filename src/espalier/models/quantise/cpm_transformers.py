"""The cpm scheme made known to transformers: `from_pretrained` quantises while it loads, and reads what was saved.

The entry in config.json is ``"quantization_config": {"quant_method": "cpm", "bits": 4, …}``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from espalier.models.quantise.cpm_linear import CpmLinear

METHOD = "cpm"


@register_quantization_config(METHOD)
class CpmConfig(QuantizationConfigMixin):
    """What config.json says of a quantised folder.

    Args:
        bits: 8 or 4.
        skipped: names of linear layers that are kept as they are; None leaves the head alone as it is.
    """

    def __init__(self, bits: int = 8, skipped: list[str] | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.bits = bits
        self.skipped = skipped


@register_quantizer(METHOD)
class CpmQuantizer(HfQuantizer):
    """Puts `CpmLinear` in place of every linear layer but the head, before the weights are read."""

    requires_calibration = False

    @property
    def quantized_element_size(self) -> float:
        config: Any = self.quantization_config
        return float(config.bits / 8)

    @property
    def _config(self) -> CpmConfig:
        config: Any = self.quantization_config
        return config  # type: ignore[no-any-return]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        config = self._config
        if config.skipped is None:
            config.skipped = kept_layers(model)
        modules: list[tuple[str, Any]] = list(model.named_modules())
        for name, module in modules:
            # On the way from floats each layer is replaced when its weight has been read: until then it says where.
            if self.pre_quantized and self._is_quantised(name, module):
                model.set_submodule(name, empty_like(module, config.bits).to(module.weight.device))
        return model

    def _is_quantised(self, name: str, module: Any) -> bool:
        return is_linear(module) and name not in (self._config.skipped or ())

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        owner, last = param_name.rpartition(".")[::2]
        return last == "weight" and owner != "" and self._is_quantised(owner, model.get_submodule(owner))

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self)

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, CpmLinear):
                model.set_submodule(name, module.dequantised())
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _Quantise(ConversionOps):
    """One weight, as it is read: its layer is replaced by a quantised one."""

    def __init__(self, quantizer: CpmQuantizer) -> None:
        self._quantizer = quantizer

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Any],
        full_layer_name: str | None = None,
        model: Any = None,
        missing_keys: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            owner = name.rpartition(".")[0]
            old = model.get_submodule(owner)
            config: Any = self._quantizer.quantization_config
            made = empty_like(old, config.bits)
            made.store(weight.t() if isinstance(old, Conv1D) else weight)
            made.bias = old.bias
            model.set_submodule(owner, made)
            missing_keys.discard(name)
        return {}


def empty_like(layer: Any, bits: int) -> CpmLinear:
    """A quantised layer of the same shape as a Linear or Conv1D, on the meta device."""
    turned = isinstance(layer, Conv1D)
    rows, columns = (layer.nf, layer.nx) if turned else (layer.out_features, layer.in_features)
    with torch.device("meta"):
        return CpmLinear(columns, rows, bits, bias=layer.bias is not None).requires_grad_(False)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is a product with a matrix and nothing more; Falcon has a class of its own for that."""
    return type(module) in (nn.Linear, Conv1D) or type(module).__name__ == "FalconLinear"


def kept_layers(model: Any) -> list[str]:
    """Names of the linear layers that are not quantised: the head, and what the architecture keeps in float32."""
    head = model.get_output_embeddings()
    precise = tuple(model._keep_in_fp32_modules or ())
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and (module is head or any(part in precise for part in name.split(".")))
    ]
