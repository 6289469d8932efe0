"""Keys of the data: what is read, how it is mixed and held out, and where it is kept once it is tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from espalier.config.option import Options, option


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The records to train and to judge on, and how they become rows."""

    dataset: list[str | dict[str, Any]] = option(
        [], "Files, globs, hub ids, or mappings {path, format, weight, split, columns, reader}.", names="data"
    )
    dataset_dir: str | None = option(
        None, "A folder whose dataset_info.json gives the names in dataset a meaning.", same_result=True
    )
    mix_strategy: Literal["concat", "first", "all"] = option(
        "concat",
        "Each source weight times (concat), or drawn by weight until one (first) or every one (all) is used up.",
    )
    interleave_probs: list[float] | None = option(
        None, "The weights of dataset's entries in their order, in place of each one's own."
    )
    data_split: list[float] | None = option(
        None, "Shares of the prompts for SFT, preferences and RL, such as 2,4,4; each stage takes its own."
    )
    eval_dataset: list[str | dict[str, Any]] = option(
        [], "Held-out records, in the same forms as dataset.", names="data"
    )
    val_size: float = option(
        0.0, "Hold out this share (below 1) or number (1 and more) of dataset's records.", min=0
    )
    cutoff_len: int = option(2048, "The most tokens in a row, and in any one path of a tree.", min=2)
    overlong: Literal["error", "drop", "trim"] = option(
        "error",
        "What happens to a record of more than cutoff_len tokens; drops and trims are counted and shown.",
    )
    packing: bool = option(True, "Several trees share a row without seeing each other (exact, and faster).")
    skip_bad: bool = option(
        False, "Go on after a bad record and write it to rejected.jsonl, instead of stopping."
    )
    max_samples: int | None = option(None, "Take at most so many records of each source.", min=1)

    def problems(self) -> list[str]:
        problems = (
            []
            if self.dataset
            else ["`dataset` is missing: name the file, the glob or the hub id to train on."]
        )
        if self.eval_dataset and self.val_size:
            problems.append("`eval_dataset` and `val_size` both choose the held-out records. Remove one.")
        return problems


@dataclass(frozen=True, kw_only=True)
class TokenizedOptions(Options):
    """How records are tokenised once, and where that is kept; it changes no result."""

    tokenized_path: str | None = option(
        None,
        "Where tokenised records are kept for the next run; null: output_dir/tokenized.",
        same_result=True,
    )
    preprocessing_num_workers: int | None = option(
        None,
        "At most so many processes tokenise; null: one a core, fewer for little data.",
        min=1,
        same_result=True,
    )


@dataclass(frozen=True, kw_only=True)
class TurnOptions(Options):
    """Which turns of a conversation are learned."""

    mask_history: bool = option(False, "Learn the last answer of each conversation only; the rest is read.")
    train_on_prompt: bool = option(False, "Learn everything that stands before the answers too.")

    def problems(self) -> list[str]:
        if self.mask_history and self.train_on_prompt:
            return [
                "`mask_history` reads what stands before an answer, `train_on_prompt` learns it. Remove one."
            ]
        return []
