"""`espalier inspect` as a user meets it: data with and without a model, configs, pages, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.runs.catalogue import STAGES
from tests.stages.conftest import options, run, world  # noqa: F401
from tests.test_cli import call

Make = Callable[..., dict[str, Any]]
NASTY = "<script>alert(1)</script>"


def file(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def yaml_file(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(json.dumps(content), "utf-8")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(STAGES))
def test_a_config_shows_what_its_run_will_find(
    stage: str,
    options: Make,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = options(stage, max_steps=1)
    summary = run(made)
    capsys.readouterr()
    assert call("inspect", yaml_file(tmp_path, made), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert sum(part["trained"] for part in shown[stage].pop("trained_parameters").values()) > 0
    assert shown == {stage: summary["preflight"]}
    assert summary["preflight"]["findings"] == []
    assert set(summary["preflight"]["parts"]) == {"train", "held out"}


def test_a_config_stays_yaml_and_a_fault_in_its_data_exits_2(
    options: Make,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = options("sft")
    assert call("inspect", yaml_file(tmp_path, made)) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["cutoff_len"] == 128
    assert "# sft: train: 48 records" in out and "█" in out and "# sft: nothing to warn of" in out
    assert call("inspect", yaml_file(tmp_path, made | {"cutoff_len": 40})) == 2
    said = capsys.readouterr()
    assert "cutoff_len: 40" in said.out and re.search(r"sft_train\.jsonl:\d+: \d+ tokens", said.err)


def test_a_pipeline_is_looked_at_before_any_model_is_there(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    pipeline = {
        "output_dir": str(tmp_path / "run"),
        "vocab_size": 300,
        "stages": [
            {
                "name": "one",
                "stage": "pretrain",
                "model_config": size,
                "dataset": str(world / "pretrain.jsonl"),
            },
            {
                "name": "two",
                "stage": "sft",
                "model_name_or_path": "run:one",
                "dataset": str(world / "sft_train.jsonl"),
            },
        ],
    }
    page = tmp_path / "pages" / "look.html"
    assert call("inspect", yaml_file(tmp_path, pipeline), "--json", "--html", str(page)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name]["parts"]["train"]["records"] for name in ("one", "two")] == [60, 48]
    assert not (tmp_path / "run").exists() and page.is_file()


def test_data_without_a_model_is_shown_by_a_templates_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = file(tmp_path, [{"instruction": f"问{i}", "output": f"答{i}"} for i in range(9)])
    assert call("inspect", data, "--template", "ziya", "--limit", "1") == 0
    out = capsys.readouterr().out
    assert "<human>:问0\n<bot>:答0</s>" in out and "问1" not in out and "characters" in out
    assert call("inspect", data, "--template", "zyia") == 2
    assert call("inspect", data, "--cutoff-len", "9") == 2
    assert call("inspect", data, "--as", "song") == 2


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "春眠"}, "text"),
        ({"instruction": "a", "output": "b"}, "chat"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        (
            {"prompt": "a", "answers": [{"answer": "b", "score": 1}, {"answer": "c", "score": 0}]},
            "preference",
        ),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
        ({"prompt": "a"}, "prompt"),
    ],
)
def test_the_kind_is_found(
    row: dict[str, Any], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", file(tmp_path, [row, {**row, "other": 1}, {"nothing": 1}]), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == kind and found["parts"]["train"]["records"] == 2
    assert found["findings"][0]["what"] == "bad record: missing column"


def test_data_of_no_known_kind_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", file(tmp_path, [{"nothing": 1}] * 3)) == 2
    assert "data.jsonl:1" in capsys.readouterr().err.replace("\n", "")


class Page(HTMLParser):
    """Collects the text of each kind of span, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "span":
            self._open.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.spans.setdefault(self._open[-1], []).append(data)


def test_the_page_escapes_loads_nothing_and_colours_what_is_trained(
    world: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"instruction": f"q {NASTY}", "output": f"a {NASTY}"}, {"instruction": "x", "output": "y " * 200}]
    data, page = file(tmp_path, rows), tmp_path / "look.html"
    model = str(world / "base")
    assert call("inspect", data, "--model", model, "--cutoff-len", "90", "--html", str(page)) == 0
    out = capsys.readouterr().out
    assert "trimmed: end of the answer" in out and "tokens" in out
    text = page.read_text("utf-8")
    assert NASTY not in text and "http://" not in text and "https://" not in text and "src=" not in text
    read = Page()
    read.feed(text)
    assert "script" not in read.tags and read.tags.count("rect") >= 1
    assert any(said.startswith(f"a {NASTY}") for said in read.spans["trained"])
    assert f"q {NASTY}" in "".join(read.spans["read"]) and "y y y" in "".join(read.spans["cut"])


def test_a_run_keeps_and_reports_its_preflight(
    options: Make,  # noqa: F811
    world: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    from espalier.report.page import write_report

    train = str(world / "sft_train.jsonl")
    made = options("sft", max_steps=1, eval_dataset=[train])
    run(made)
    said = capsys.readouterr().err
    assert "warning: 48 of 48 (100 %) of held out: held-out prompts that are trained on" in said
    summary = json.loads((Path(made["output_dir"]) / "sft" / "summary.json").read_text("utf-8"))
    assert summary["preflight"]["findings"][0]["place"] == f"{train}:1"
    page = write_report(Path(made["output_dir"])).read_text("utf-8")
    assert "held-out prompts that are trained on" in page and page.count("<rect") >= 4
