"""`espalier quantize` as a user meets it: the folder works everywhere, the table is there, faults exit with 2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import espalier
from espalier.models import load
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head, save_model
from espalier.trees import Tree, lay_out_padded
from tests.test_cli import call

SIZES = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
METHODS = [("cpm", 8), ("cpm", 4), ("bnb", 8), ("bnb", 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    tokenizer = load.train_tokenizer(["the quick brown fox jumps", "你好，世界"] * 3, 320)
    torch.manual_seed(0)
    lm = load.new_lm(SIZES, len(tokenizer), {"eos_token_id": tokenizer.eos_token_id})
    for name, head in (("plain", None), ("judge", ScalarHead(64))):
        (found / name).mkdir()
        save_model(found / name, TreeModel(lm, probe(lm), head), tokenizer)
    chats = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "fox " * (i + 1)}]}
             for i in range(6)]  # fmt: skip
    (found / "chat.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats), "utf-8")
    (found / "text.jsonl").write_text(
        "".join(json.dumps({"text": "the fox " * 9}) + "\n" for _ in "abc"), "utf-8"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_a_written_folder_loads_and_answers(
    method: str, bits: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if method == "bnb" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (extra `quant`)")
    out = tmp_path / "out"
    arguments = ["--method", method, "--bits", str(bits), "--data", str(folder / "chat.jsonl"), "--json"]
    assert call("quantize", str(folder / "plain"), str(out), *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["tokens"] > 20
        and 0 < found["kl"] < 0.1
        and found["disk_bytes_after"] < 0.7 * found["disk_bytes"]
    )
    assert abs(found["perplexity_after"] / found["perplexity"] - 1) < 0.05
    assert f"int{bits}" in found["memory_bytes_after"] and found["layout"].startswith("tree")
    model, tokenizer = espalier.load_model(str(out), device="cpu")
    assert len(espalier.generate(model, tokenizer, ["the fox"], max_new_tokens=5, stop=())[0][0].tokens) <= 5
    ((total, n),) = espalier.score(model, tokenizer, "the quick", [" brown"])
    plain, _ = espalier.load_model(str(folder / "plain"), device="cpu")
    assert abs(total - espalier.score(plain, tokenizer, "the quick", [" brown"])[0][0]) < 0.1 * n
    capsys.readouterr()
    assert call("inspect", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["quantisation"].startswith(f"{method}, {bits} bits")


@pytest.mark.slow
def test_the_table_and_our_own_sentences(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("quantize", str(folder / "plain"), str(tmp_path / "a"), "--bits", "4") == 0
    out = capsys.readouterr().out
    for line in (
        "weights on disk",
        "int4",
        "tokens/s, reading",
        "tokens/s, writing",
        "perplexity",
        "KL",
        "layout",
    ):
        assert line in out
    arguments = ["--bits", "8", "--no-measure", "--json"]
    assert call("quantize", str(folder / "plain"), str(tmp_path / "b"), *arguments) == 0
    assert "perplexity" not in json.loads(capsys.readouterr().out)
    assert (
        call("quantize", str(folder / "plain"), str(tmp_path / "c"), "--data", str(folder / "text.jsonl"))
        == 0
    )


@pytest.mark.slow
def test_calibration_lowers_the_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--bits", "4", "--data", str(folder / "text.jsonl"), "--json"]
    errors = []
    for name, more in (("a", []), ("b", ["--calibration", str(folder / "text.jsonl")])):
        assert call("quantize", str(folder / "plain"), str(tmp_path / name), *data, *more) == 0
        errors.append(json.loads(capsys.readouterr().out)["kl"])
    assert errors[1] < 0.7 * errors[0]
    assert call("quantize", str(folder / "plain"), str(tmp_path / "c"), "--method", "bnb", *data, *more) == 2


def test_a_reward_model_keeps_its_head(folder: Path, tmp_path: Path) -> None:
    assert call("quantize", str(folder / "judge"), str(tmp_path / "small"), "--no-measure") == 0
    batch, want = (
        lay_out_padded([Tree.from_path([4, 9, 16, 25], [False] * 4)]),
        Want(logprobs=False, scores=True),
    )
    found = []
    for name in (folder / "judge", tmp_path / "small"):
        lm = load.load_lm(str(name))
        found.append(
            TreeModel(lm, probe(lm, wanted="padded"), read_scalar_head(str(name))).eval()(batch, want).scores
        )
    assert abs(float(found[0]) - float(found[1])) < 0.05


def test_faults_are_said_before_anything_is_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = str(folder / "plain"), str(tmp_path / "x")
    for arguments, line in (
        (["--method", "gptq", "--bits", "4"], "GPTQModel"),
        (["--method", "cpm", "--bits", "2"], "torchao"),
        (["--method", "bnb", "--bits", "4", "--type", "int4"], "nf4 or fp4"),
        (["--data", str(tmp_path / "none.jsonl")], "none.jsonl"),
    ):
        assert call("quantize", plain, out, *arguments) == 2
        assert line in capsys.readouterr().err.replace("\n", " ") and not Path(out).exists()
    assert call("quantize", plain, plain) == 2
    assert call("quantize", plain, out, "--no-measure") == 0
    assert call("quantize", out, str(tmp_path / "y"), "--no-measure") == 2
    assert "quantised already" in capsys.readouterr().err.replace("\n", " ")
