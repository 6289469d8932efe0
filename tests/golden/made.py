"""A tiny checkpoint of each old family in its original layout, with what the module it was written from says.

The folders have the form of the recorded ones (config.json, model.safetensors, golden.json, golden.npz), so the
same tests read either. What the made ones hold: names, layouts, tables to pass over, configurations, inputs
with masks and two-channel positions (written out here in plain Python), conversion, and every use of a model
that was read so. What they do not hold: whether the module computes what the original code computed; its
numbers are the module's own. That truth is in the recorded folders, and for the pieces that are a family's
own (ALiBi, heads of unit rows, NTK) in `tests/models/legacy/test_variants.py` and `test_native_variants.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from espalier.models.legacy.families import conversion_of
from tests.golden.configs import CONFIGS
from tests.golden.original import original

NEW = 12
"""Tokens of a generated answer."""


def module_of(family: str, config: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """A module with random weights, and the state dict that its original code would have saved.

    The head of Baichuan2 counts by the direction of its rows; its files hold rows of any length.
    """
    made = conversion_of(config)
    torch.manual_seed(0)
    model: Any = made.model(made.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    if family == "baichuan2_7b":
        with torch.no_grad():
            model.lm_head.weight.copy_(nn.functional.normalize(state["lm_head.weight"]))
    return model, original(family, state, config)


def make(family: str, folder: Path) -> Path:
    """The folder of one family, written."""
    config = CONFIGS[family]
    model, state = module_of(family, config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    save_file({name: t.clone().contiguous() for name, t in state.items()}, folder / "model.safetensors")
    if family == "glm":  # ids that the original's config.json does not name
        model.config.bos_token_id, model.config.blank_token_ids = 246, [243, 248, 249]
    record = Record(model)
    if family in ("glm", "chatglm"):
        _prefix_cases(record, glm=family == "glm")
    else:
        _causal_cases(record, batched=family not in ("baichuan_13b", "qwen_v0"), positions=family == "pangu")
    np.savez(folder / "golden.npz", **record.arrays)
    (folder / "golden.json").write_text(json.dumps({"model": family, "cases": record.cases}), "utf-8")
    return folder


@dataclass
class Record:
    """Cases in the form of a golden.json, and the arrays that they name."""

    model: Any
    cases: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, what: str, tensor: Tensor) -> str:
        self.arrays[f"{name}.{what}"] = tensor.detach().numpy()
        return f"{name}.{what}"

    @torch.no_grad()
    def forward(
        self, name: str, inputs: dict[str, Tensor], labels: Tensor | None, real: Tensor | None
    ) -> None:
        """One call: logits (B, T, V) and, with labels, the loss."""
        found = self.model(**inputs, labels=labels)
        case: dict[str, Any] = {
            "name": name,
            "type": "forward",
            "logits": self.keep(name, "logits", found.logits),
        }
        case["inputs"] = {key: self.keep(name, key, tensor) for key, tensor in inputs.items()}
        if labels is not None:
            case |= {"labels": self.keep(name, "labels", labels), "loss": float(found.loss)}
        if real is not None:
            case["compare_mask"] = self.keep(name, "compare_mask", real)
        self.cases.append(case)

    @torch.no_grad()
    def generate(self, name: str, given: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        """The likeliest tokens, each from the whole row anew, without any cache.

        Args:
            name: of the case.
            given: what `generate` is called with.
            whole: masks and positions over the prompt and the answer, of which each call gets its beginning.
        """
        ids, steps = given["input_ids"], []
        for length in range(ids.shape[1], ids.shape[1] + NEW):
            at = {key: t[..., :length] for key, t in whole.items()}
            if "attention_mask" in at and at["attention_mask"].dim() == 4:
                at["attention_mask"] = at["attention_mask"][:, :, :length]
            steps.append(self.model(input_ids=ids, **at).logits[:, -1])
            ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], 1)
        case: dict[str, Any] = {"name": name, "type": "generate", "max_new_tokens": NEW}
        case["inputs"] = {key: self.keep(name, key, tensor) for key, tensor in given.items()}
        case["new_tokens"] = self.keep(name, "new_tokens", ids[:, -NEW:])
        case["step_logits"] = self.keep(name, "step_logits", torch.stack(steps, 1))
        self.cases.append(case)


def tokens(n: int, seed: int) -> list[int]:
    """Ids without special meaning in any family."""
    return torch.randint(10, 230, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def _labels(ids: Tensor, real: Tensor | None = None) -> Tensor:
    labels = ids.clone()
    labels[:, :2] = -100
    return labels if real is None else labels.masked_fill(~real.bool(), -100)


def _causal_cases(record: Record, *, batched: bool, positions: bool) -> None:
    for n in (7, 19, 33):
        ids = torch.tensor([tokens(n, n)])
        record.forward(f"seq{n}", {"input_ids": ids}, _labels(ids), None)
    ids = torch.tensor([tokens(8, 1)])
    record.generate("generate", {"input_ids": ids}, {})
    if not batched:  # their own code takes no mask of padding
        record.generate("generate_short", {"input_ids": ids[:, :3]}, {})
        return
    for side in ("left", "right"):
        rows, masks = [], []
        for row, missing in ((tokens(9, 2), 0), (tokens(6, 3), 3)):
            pads, ones = [0] * missing, [1] * len(row)
            rows.append(pads + row if side == "left" else row + pads)
            masks.append(pads + ones if side == "left" else ones + pads)
        ids, mask = torch.tensor(rows), torch.tensor(masks)
        inputs = {"input_ids": ids, "attention_mask": mask.bool() if positions else mask}
        if positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        record.forward(f"batch_{side}", inputs, _labels(ids, mask), mask)


def prefix_inputs(
    rows: list[list[int]], blank: list[int], sop: int, width: int, pad: int
) -> dict[str, Tensor]:
    """Positions (B, 2, T) and who sees whom (B, 1, T, T) of prompts that are read both ways, token by token.

    Args:
        rows: ids, shorter than `width`: on their left come pads.
        blank: ids that may be the blank.
        sop: id that begins the answer. All before it see each other.
        width: T.
        pad: id of the padding.
    """
    ids = torch.full((len(rows), width), pad)
    positions = torch.zeros(len(rows), 2, width, dtype=torch.long)
    seen = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
    for b, row in enumerate(rows):
        first = width - len(row)
        start = row.index(sop)
        filled = next(i for i, token in enumerate(row) if token in blank)
        for i, token in enumerate(row):
            ids[b, first + i] = token
            positions[b, 0, first + i] = i if i < start else filled
            positions[b, 1, first + i] = 0 if i < start else i - start + 1
            for j in range(len(row)):
                seen[b, 0, first + i, first + j] = j <= i or j < start
    return {"input_ids": ids, "position_ids": positions, "seen": seen}


def _prefix_cases(record: Record, *, glm: bool) -> None:
    sop, pad = (246, 240) if glm else (244, 3)
    blanks = {"gmask": 249, "mask": 243, "smask": 248} if glm else {"gmask": 241, "mask": 240}

    def inputs(rows: list[list[int]], width: int) -> dict[str, Tensor]:
        """As the original code takes them: a GLM's mask is 1 where seen, a ChatGLM's true where hidden."""
        made = prefix_inputs(rows, list(blanks.values()), sop, width, pad)
        seen = made.pop("seen")
        return made | {"attention_mask": seen.long() if glm else ~seen}

    def row(n: int, blank: str, answer: int = 0, seed: int = 0) -> list[int]:
        ids = tokens(n, n + seed)
        return [*ids[: n // 2], blanks[blank], *ids[n // 2 :], sop, *tokens(answer, answer + 50)]

    for n in (7, 19, 33):
        if glm:
            plain = torch.tensor([tokens(n, n)])
            record.forward(f"seq{n}_causal", {"input_ids": plain}, plain.roll(-1, 1), None)
        else:
            made = inputs([row(n - 6, "gmask", 4)], n)
            record.forward(f"seq{n}", made, _labels(made["input_ids"]), None)
    for blank in blanks:
        asked = row(8, blank)
        record.forward(f"gen_{blank}", inputs([asked], len(asked)), None, None)
        whole = inputs([[*asked, *[0] * NEW]], len(asked) + NEW)
        given = {"input_ids": whole.pop("input_ids")[:, : len(asked)]}
        if glm:
            given |= {"position_ids": whole["position_ids"]}
            given |= {"generation_attention_mask": whole["attention_mask"]}
        record.generate(f"generate_{blank}", given, whole)
    made = inputs([row(6, "gmask", 5, seed=1)], 13)
    record.forward("train", made, _labels(made["input_ids"]), None)
    if not glm:  # a GLM's own code pads between the prompt and the answer, and hides those places
        rows = [row(9, "mask", 4, seed=2), row(5, "gmask", 4, seed=3)]
        made = inputs(rows, 15)
        real = torch.tensor([[False] * (15 - len(r)) + [True] * len(r) for r in rows])
        record.forward("batch_left", made, _labels(made["input_ids"], real), real)
    record.forward("pair", inputs([row(6, "mask", 3, seed=4), row(6, "mask", 3, seed=5)], 11), None, None)
