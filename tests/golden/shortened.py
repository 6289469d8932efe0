"""A real tokenizer with its first pieces only: BPE of so many merges less, so a model of it costs a tenth."""

from __future__ import annotations

import copy
import json
from typing import Any

from tokenizers import Tokenizer


def shortened(tokenizer: Any, pieces: int) -> Any:
    """A byte-level BPE tokenizer cut off after so many pieces, its special tokens behind them.

    The pieces of a BPE stand in the order in which they were made, so the first of them are what its training would
    have found had it stopped there; every text is cut as that tokenizer would cut it.
    """
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [token["content"] for token in made["added_tokens"]]
    known = made["model"]["vocab"]
    kept = {text: number for text, number in known.items() if number < pieces and text not in special}
    kept = {text: number for number, text in enumerate(sorted(kept, key=kept.__getitem__))}
    for token in made["added_tokens"]:
        token["id"] = kept[token["content"]] = len(kept)
    made["model"]["vocab"] = kept
    made["model"]["merges"] = [pair for pair in made["model"]["merges"] if "".join(pair) in kept]
    numbers = {token["content"]: token["id"] for token in made["added_tokens"]}
    for entry in ((made["post_processor"] or {}).get("special_tokens") or {}).values():
        entry["ids"] = [numbers[text] for text in entry["tokens"]]
    found = copy.deepcopy(tokenizer)
    found._tokenizer = Tokenizer.from_str(json.dumps(made))
    assert len(found) == len(kept) < len(tokenizer)
    return found
