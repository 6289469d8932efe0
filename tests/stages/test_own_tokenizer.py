"""A qwen2 model from nothing, with the tokenizer that its own run trained: every later door encodes as that file says.

Transformers puts Qwen's own pre-tokenizer over the vocabulary of any folder of this architecture.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner

import espalier
from espalier import config
from espalier.cli import app
from espalier.models import load
from espalier.runs.train import run_stage
from tests.families.chain import encodes_as_written

pytestmark = pytest.mark.filterwarnings("ignore::espalier.errors.Notice")
QUESTIONS = [f"Tom has {n} apples and buys 12{n}  more, how many? 小明有{n}个。" for n in range(12)]
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(file)


def train(stage: str, folder: Path, **options: Any) -> Path:
    common = {"max_steps": 1, "per_device_train_batch_size": 4, "precision": "fp32", "save_steps": 0}
    out = folder / stage
    made = {"stage": stage, "output_dir": str(out), "cutoff_len": 128, "samples": 0, "val_size": 0}
    run_stage(config.RawConfig({**made, **common, **options}))
    return out / stage / "model"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base: pretrained from nothing; sft: trained further; adapter: LoRA on that."""
    folder = tmp_path_factory.mktemp("own")
    texts = lines(folder / "text.jsonl", [{"text": q} for q in QUESTIONS])
    base = train("pretrain", folder, model_config=SHAPE, dataset=[texts], vocab_size=400)
    asked = lines(folder / "sft.jsonl", [{"prompt": q, "completion": f"It is {len(q)}."} for q in QUESTIONS])
    sft = train("sft", folder, model_name_or_path=str(base), dataset=[asked])
    pairs = [{"prompt": q, "chosen": "12  a", "rejected": "7"} for q in QUESTIONS]
    data = [lines(folder / "dpo.jsonl", pairs)]
    lora: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": 2}
    adapter = train("dpo", folder, model_name_or_path=str(sft), dataset=data, **lora)
    return {"base": base, "sft": sft, "adapter": adapter}


def test_transformers_alone_would_encode_otherwise(chain: dict[str, Path]) -> None:
    """Else this file tests nothing; it may go once transformers reads such a folder as it is written."""
    with pytest.raises(AssertionError):
        encodes_as_written(AutoTokenizer.from_pretrained(str(chain["base"])), chain["base"])


@pytest.mark.parametrize("name", ["base", "sft", "adapter"])
def test_every_stage_reads_and_writes_the_same_tokenizer(chain: dict[str, Path], name: str) -> None:
    files = [json.loads((chain[folder] / "tokenizer.json").read_text("utf-8")) for folder in ("base", name)]
    assert files[0] == files[1]
    _, tokenizer = espalier.load_model(str(chain[name]), device="cpu")
    encodes_as_written(tokenizer, chain["base"])


@pytest.mark.slow
def test_merged_quantised_and_with_further_pieces(chain: dict[str, Path], tmp_path: Path) -> None:
    merged, few, more = (str(tmp_path / name) for name in ("merged", "few", "more"))
    text = lines(tmp_path / "more.jsonl", [{"text": "apples and pears " * 9}])
    for call in (
        ["merge", str(chain["adapter"]), merged],
        ["quantize", merged, few, "--method", "cpm", "--bits", "8"],
        ["vocab", "extend", merged, "--out", more, "--text", text, "--size", "10"],
    ):
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, (call, done.output, done.exception)
    for folder in (merged, few):
        encodes_as_written(load.load_tokenizer(folder), chain["base"])
    encodes_as_written(load.load_tokenizer(more), Path(more))


def test_an_exam_counts_the_tokens_of_the_file(chain: dict[str, Path], tmp_path: Path) -> None:
    candidates = ["12345  apples 60", "床前 1 2 明月光"]
    row = {"question": "7 12 ", "choices": candidates, "answer": candidates[0]}
    lines(tmp_path / "exam.jsonl", [row])
    task = {"name": "own", "data": "exam.jsonl", "question": "{{ question }}", "candidates": "choices"}
    said = {**task, "answer_prefix": "", "gold": "answer"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(said, allow_unicode=True), "utf-8")
    call = [
        "evaluate",
        str(chain["sft"]),
        "--tasks",
        str(tmp_path / "own.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "out" / "own.jsonl").read_text("utf-8").splitlines()[0])
    truth = Tokenizer.from_file(str(chain["base"] / "tokenizer.json"))
    prompt = found["prompt"]
    for candidate in found["candidates"]:
        whole = truth.encode(prompt + candidate["text"], add_special_tokens=False)
        start = len(prompt) + candidate["scored_from"]
        counted = sum(1 for _, end in whole.offsets if end > start)
        assert found["tokens"][found["candidates"].index(candidate)] == counted


def test_one_door() -> None:
    """Whoever else asked transformers for a tokenizer would get the replaced one."""
    source = Path(espalier.__file__).parent
    asks = re.compile(r"AutoTokenizer|AutoProcessor|Tokenizer\w*\.from_pretrained|TokenizersBackend\.")
    found = {
        str(file.relative_to(source)) for file in source.rglob("*.py") if asks.search(file.read_text("utf-8"))
    }
    # What a certificate compares is a GGUF file as transformers reads it.
    found.discard("models/certificate.py")
    assert found == {"models/tokenizers/load_tokenizer.py", "models/tokenizers/tokenizer_file.py"}
