"""Results in the form of lm_eval's files, for whatever reads those: ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``.

Names of metrics are lm_eval's where it has one (acc, exact_match, f1). The library itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from espalier.engine import files

_NAMES = {"accuracy": "acc"}
_LOWER = ("perplexity", "bits_per_byte", "nats_per_token")


def write_lm_eval_files(out: Path, results: Mapping[str, Any]) -> Path:
    """Write a model's results below ``out/lm_eval/MODEL/``.

    Args:
        out: where ``TASK.jsonl`` lie.
        results: what results.json holds.

    Returns:
        The path of ``results_DATE.json``.
    """
    rows: Mapping[str, Mapping[str, Any]] = results["tasks"]
    folder = out / "lm_eval" / re.sub(r"[^\w.-]+", "__", results["model"]).strip("_")
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now()
    date = now.isoformat().replace(":", "-")
    whole = {
        "results": {name: {"alias": name, **_metrics(row)} for name, row in rows.items()},
        "group_subtasks": {name: [] for name in rows},
        "configs": {
            name: {"task": name, "num_fewshot": row["shots"], "metadata": row.get("about", {})}
            for name, row in rows.items()
        },
        "versions": {name: row.get("about", {}).get("prompts", 1) for name, row in rows.items()},
        "n-shot": {name: row["shots"] for name, row in rows.items()},
        "higher_is_better": {
            name: {short: not short.endswith(_LOWER) for short in _short(row)} for name, row in rows.items()
        },
        "n-samples": {name: {"original": row["n"], "effective": row["n"]} for name, row in rows.items()},
        "config": {
            "model": "espalier",
            "model_args": f"pretrained={results['model']},layout={results['layout']}",
            "model_dtype": results["dtype"],
            "limit": None,
        },
        "date": now.timestamp(),
        "model_source": f"espalier {version('espalier-llm')}",
        "model_name": results["model"],
        "model_name_sanitized": folder.name,
        "chat_template": results["template"],
        "total_evaluation_time_seconds": str(sum(row["seconds"] for row in rows.values())),
    }
    for name in rows:
        lines = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in _samples(out, name, results))
        files.write_text(folder / f"samples_{name}_{date}.jsonl", lines)
    path = folder / f"results_{date}.json"
    files.write_json(path, whole)
    return path


def _short(row: Mapping[str, Any]) -> list[str]:
    return [_NAMES.get(name, name) for name in row["metrics"] if not name.endswith("_stderr")]


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, value in row["metrics"].items():
        base, stderr = (name.removesuffix("_stderr"), "_stderr") if name.endswith("_stderr") else (name, "")
        metrics[f"{_NAMES.get(base, base)}{stderr},none"] = value
    return metrics


def _samples(out: Path, name: str, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    with (out / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for number, text in enumerate(lines):
            line = json.loads(text)
            if "left_out" in line:
                continue
            context = results["prefixes"].get(line.get("prefix"), "") + str(line.get("prompt", ""))
            if "scores" in line:
                arguments = [(context, candidate["text"]) for candidate in line["candidates"]]
                resps = [[[str(score), "False"]] for score in line["scores"]]
                target, numbers = line["gold"], {"acc": float(line["prediction"] == line["gold"])}
            else:
                arguments, resps = [(context, "")], [[line.get("text", "")]]
                target, numbers = line.get("references", line.get("target")), line.get("metrics", {})
            yield {
                "doc_id": number,
                "doc": {"id": line["id"]},
                "target": str(target),
                "arguments": {
                    f"gen_args_{i}": {"arg_0": before, "arg_1": after}
                    for i, (before, after) in enumerate(arguments)
                },
                "resps": resps,
                "filtered_resps": [each[0] for each in resps],
                "filter": "none",
                "metrics": list(numbers),
                "doc_hash": _hash(line["id"]),
                "prompt_hash": _hash(context),
                "target_hash": _hash(target),
                **numbers,
            }


def _hash(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()
