"""New tokens under LoRA: their rows are learned, alone, and stay so when the folder is read, merged and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.load import load_lm, load_tokenizer, new_lm
from espalier.models.load_adapted import load_with_adapter
from espalier.models.merging import merged_stack, stack_of
from espalier.models.probe import probe
from espalier.models.saved import save_model
from tests.stages.conftest import TINY, rows, run

pytestmark = pytest.mark.slow
Make = Callable[..., dict[str, Any]]
NEW = ["<|calm|>", "<|mad|>", "<|steer|>"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def grown(request: pytest.FixtureRequest, world: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run of a base whose tokenizer knows three tokens more than it does."""
    tokenizer = load_tokenizer(str(world / "base"))
    torch.manual_seed(0)
    lm = new_lm({**TINY, "tie_word_embeddings": request.param}, len(tokenizer), {"eos_token_id": 0})
    for name in ("base", "words"):
        (tmp_path / name).mkdir()
    save_model(tmp_path / "base", TreeModel(lm, probe(lm)), None)
    tokenizer.add_tokens(NEW)
    tokenizer.save_pretrained(str(tmp_path / "words"))
    records = [{"prompt": f"say {token}", "completion": f"{token} {token}"} for token in NEW] * 4
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), "utf-8")
    return {
        "model_name_or_path": str(tmp_path / "base"), "tokenizer": str(tmp_path / "words"), "eval_dataset": [],
        "dataset": [str(tmp_path / "data.jsonl")], "val_size": 0, "finetuning_type": "lora", "learning_rate": 0.05,
        "max_steps": 20, "lora_rank": 2,
    }  # fmt: skip


def ends(lm: Any) -> tuple[Tensor, Tensor]:
    return lm.get_input_embeddings().weight.detach(), lm.get_output_embeddings().weight.detach()


def test_only_their_rows_change_and_a_merged_folder_has_them(options: Make, grown: dict[str, Any]) -> None:
    chosen = options("sft", **grown)
    summary = run(chosen)
    assert any(
        "3 new tokens (<|calm|>, <|mad|>, <|steer|>, …): their embeddings are trained" in n
        for n in summary["notes"]
    )
    assert summary["final"]["loss"] < 4.0, "6.0 at the first step"
    folder = Path(chosen["output_dir"]) / "sft" / "model"
    before, after = load_lm(grown["model_name_or_path"]), load_with_adapter(str(folder))
    for old, new in zip(ends(before), ends(after), strict=True):
        known = len(old)
        assert torch.equal(new[:known], old) and len(new) == known + 3
        spread = new[known:] - old.mean(0)
        assert float(spread.abs().min(1).values.max()) > 1e-3 and not torch.allclose(
            new[known], new[known + 1]
        )
    merged = merged_stack(stack_of([str(folder)], None))
    ids = torch.tensor([[5, len(old), 7]])
    torch.testing.assert_close(merged(input_ids=ids).logits, after.eval()(input_ids=ids).logits)
    again = options("sft", **grown, name="again", adapter_name_or_path=[str(folder)])
    run(again)
    assert next(row["loss"] for row in rows(again) if "loss" in row) < 4.0, "it goes on from what was learned"


def test_named_modules_are_trained_whole_and_unknown_ones_are_named(
    options: Make, grown: dict[str, Any]
) -> None:
    chosen = options("sft", **grown, additional_target="embed_tokens,lm_head")
    run(chosen)
    before = load_lm(grown["model_name_or_path"])
    after = load_with_adapter(str(Path(chosen["output_dir"]) / "sft" / "model"))
    for old, new in zip(ends(before), ends(after), strict=True):
        assert float((new[: len(old)] - old).abs().max()) > 1e-3
    with pytest.raises(
        UserError, match=r"modules_to_save: embed_token is no module.* Did you mean embed_tokens\?"
    ):
        run(options("sft", **grown, name="typo", modules_to_save=["embed_token"]))


def test_what_leaves_them_at_their_start_says_so(options: Make, grown: dict[str, Any]) -> None:
    summary = run(options("sft", **grown | {"finetuning_type": "ia3", "max_steps": 1}))
    assert any("3 new tokens" in n and "stay at their first embeddings" in n for n in summary["notes"])


def test_a_folder_that_does_not_fit_is_one_message(grown: dict[str, Any], options: Make) -> None:
    """Rows of tokens alone, without the table they belong to, as PEFT writes them where nothing has grown."""
    chosen = options("sft", **grown | {"max_steps": 1})
    run(chosen)
    folder = Path(chosen["output_dir"]) / "sft" / "model"
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["trainable_token_indices"] = {name: [9999] for name in settings["trainable_token_indices"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="this adapter does not fit the model"):
        load_with_adapter(str(folder))
