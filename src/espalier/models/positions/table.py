"""Models with a row a position: how long their texts can be at all."""

from __future__ import annotations

from torch import nn


def table_length(lm: nn.Module) -> int | None:
    """The most tokens of a row that a model has learned positions for; None where it has no such table.

    Behind it there is no row to look up, whatever the configuration says.
    """
    lengths = []
    for name, module in lm.named_modules():
        leaf = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("position" in leaf or leaf == "wpe"):
            continue
        before = vars(module).get("offset", 0)  # OPT's and BART's first rows stand for no position
        if module.padding_idx is not None:  # RoBERTa counts from behind its padding's row
            before = max(before, module.padding_idx + 1)
        lengths.append(module.num_embeddings - before)
    return min(lengths, default=None)
