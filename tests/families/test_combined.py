"""Adapters, few bits, new pieces and longer contexts, where they meet encoder-decoders and prefix models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import espalier
from espalier.cli import app
from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters import adapter as adapters
from tests.families.chain import SAID, examined, options, run, write_lines
from tests.families.test_families import FAMILIES, saved
from tests.families.test_marked import MODELS


def command(*parts: Any) -> str:
    done = CliRunner().invoke(app, list(map(str, parts)))
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def scores(folder: Path) -> list[float]:
    lm, tokenizer = espalier.load_model(str(folder), device="cpu")
    return [s for s, _ in espalier.score(lm, tokenizer, SAID[0][0], [SAID[0][1], SAID[0][2]])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("t5", "adalora", {}),
        ("t5", "ia3", {}),
        ("bart", "lora", {"use_dora": True, "lora_target": ["auto"]}),
        ("bart", "ia3", {}),
        ("t5", "lora", {"quantization_method": "cpm", "quantization_bit": 4}),
        ("chatglm", "ia3", {}),
        ("chatglm", "lora", {"quantization_method": "cpm", "quantization_bit": 4}),
    ],
)
def test_an_adapter_is_learned_loaded_and_merged(
    name: str, kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    base = MODELS[name](tmp_path)
    made = run(options("sft", base, tmp_path, finetuning_type=kind, learning_rate=0.05, **changes))
    task = json.loads((made / "adapter_config.json").read_text("utf-8"))["task_type"]
    assert task == ("CAUSAL_LM" if name == "chatglm" else "SEQ_2_SEQ_LM")
    on_top = adapters.load_adapter(load.load_lm(str(base)), str(made), trainable=False).eval()
    tokenizer = load.load_tokenizer(str(made))
    choices = [SAID[0][1], SAID[0][2]]
    before = [s for s, _ in espalier.score(on_top, tokenizer, SAID[0][0], choices)]
    assert before != pytest.approx(scores(base), abs=1e-6), "nothing was learned"
    command("merge", made, tmp_path / "merged")
    assert scores(tmp_path / "merged") == pytest.approx(before, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_in_few_bits(name: str, tmp_path: Path) -> None:
    """Measured by questions with answers, within what the model reads; examined; trained by an adapter."""
    base, small = MODELS[name](tmp_path), tmp_path / "small"
    facts = json.loads(command("quantize", base, small, "--bits", 8, "--json"))
    assert 0 <= facts["kl"] < 1e-3 and facts["tokens"] > 20
    examined(small, tmp_path)
    assert scores(small) == pytest.approx(scores(base), abs=0.05)
    run(options("sft", small, tmp_path, finetuning_type="lora"))
    bare = write_lines(tmp_path / "bare.jsonl", [{"text": "一段没有问答的文字。"}])
    with pytest.raises(UserError, match="questions with answers"):
        command("quantize", base, tmp_path / "other", "--data", bare)
    with pytest.raises(UserError, match="quantised already"):
        command("quantize", small, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_characters_that_a_t5_does_not_know_become_pieces(tmp_path: Path) -> None:
    base, text = MODELS["t5"](tmp_path), tmp_path / "text.txt"
    text.write_text("\n".join(["春天的梨树开满了花。", "秋天的孩子在树下等梨。"] * 40), "utf-8")
    assert "read as unknown" in command(
        "vocab", "extend", base, "--text", text, "--size", 40, "--out", tmp_path / "v"
    )
    old, new = (load.load_tokenizer(str(folder)) for folder in (base, tmp_path / "v"))
    line = "梨树开花"
    assert old.unk_token_id in old(line).input_ids
    assert old.unk_token_id not in new(line).input_ids
    assert new.decode(new(line).input_ids, skip_special_tokens=True) == line
    assert new(SAID[2][0]).input_ids == old(SAID[2][0]).input_ids
    lm: Any = load.load_lm(str(tmp_path / "v"))
    rows, unknown = lm.get_input_embeddings().weight, load.load_lm(str(base)).get_input_embeddings().weight  # type: ignore[operator]
    torch.testing.assert_close(rows[new.convert_tokens_to_ids("梨")], unknown[old.unk_token_id])
    run(options("sft", tmp_path / "v", tmp_path, finetuning_type="lora"))


def test_what_an_encoder_decoder_has_not_is_refused(tmp_path: Path) -> None:
    base = MODELS["t5"](tmp_path)
    with pytest.raises(UserError, match="no rotary positions"):
        run(options("sft", base, tmp_path, rope_scaling="linear:2"))
    with pytest.raises(UserError, match="cannot be written as GGUF"):
        command("export", base, tmp_path / "model.gguf")


@pytest.mark.slow
def test_longer_positions_go_along_into_whatever_is_made(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "llama", FAMILIES["llama"])
    made = run(
        options("sft", base, tmp_path, finetuning_type="lora", rope_scaling="yarn:4", learning_rate=1e-2)
    )
    command("merge", made, tmp_path / "merged")
    command("quantize", made, tmp_path / "small", "--no-measure")
    settings = []
    for folder in (made, tmp_path / "merged", tmp_path / "small"):
        config: Any = espalier.load_model(str(folder), device="cpu")[0].config
        settings.append((config.max_position_embeddings, dict(config.rope_parameters)))
    assert settings[0] == settings[1] == settings[2]
    assert settings[0][0] == 4 * 128 and settings[0][1]["factor"] == 4
    facts = json.loads(command("inspect", made, "--json"))
    assert facts["context_length"] == 512
    assert facts["linear_layers"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_reward_model_on_few_bits_judges_ppo(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "llama", FAMILIES["llama"])
    bits = {"finetuning_type": "lora", "quantization_method": "cpm", "quantization_bit": 4}
    judge = run(options("reward", base, tmp_path, **bits))
    sampled = {"max_prompt_length": 32, "max_new_tokens": 5, "reward_model": str(judge)}
    for kind in ({"finetuning_type": "prompt", "num_virtual_tokens": 3}, bits):
        run(
            options(
                "ppo", base, tmp_path, **sampled, **kind, output_dir=str(tmp_path / kind["finetuning_type"])
            )
        )
        file = tmp_path / kind["finetuning_type"] / "ppo" / "metrics.jsonl"
        first = next(row for row in map(json.loads, file.read_text("utf-8").splitlines()) if "ratio" in row)
        assert first["ratio"] == pytest.approx(1, abs=1e-4) and first["kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["quantize", "merge", "convert"])
def test_a_file_in_the_place_of_the_folder_to_write(name: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "llama", FAMILIES["llama"])
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"is a file|no adapter_config"):
        command(name, base, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for parts in (
        ("quantize", "/none", tmp_path / "out"),
        ("vocab", "extend", "/none", "--text", tmp_path / "x.txt", "--out", tmp_path / "out"),
        ("evaluate", "/none", "--tasks", "clue", "--out", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="/none: there is no such folder"):
            command(*parts)
