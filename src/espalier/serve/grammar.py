"""Answers that must be JSON, or JSON of a schema: which tokens may come next, by llguidance.

llguidance is behind the extra `serve`, and is imported when the first grammar is asked for.

V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from espalier.errors import UserError

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Between the parts of an answer; a weak model would else write white space without end."""


def json_grammar(schema: Mapping[str, Any] | None = None) -> str:
    """The grammar of a JSON schema, of any JSON object without one.

    Raises:
        UserError: llguidance is not installed, or cannot keep to the schema; what is wrong with it.
    """
    matcher = _library().LLMatcher
    try:
        grammar = str(matcher.grammar_from_json_schema(json.dumps(schema or {"type": "object"}), COMPACT))
    except ValueError as error:
        raise UserError(f"the JSON schema cannot be kept to: {error}") from None
    if wrong := matcher.validate_grammar(grammar):
        raise UserError(f"the JSON schema cannot be kept to: {str(wrong).splitlines()[0]}")
    return grammar


class Grammars:
    """Grammars over one model's tokens.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._made: Any = None

    def start(self, grammar: str, ends: Iterable[int], size: int) -> Following:
        """The state before the first token.

        Args:
            grammar: from `json_grammar`.
            ends: tokens that end an answer; they may come where the answer is complete.
            size: V, of the model's logits.

        Raises:
            UserError: the tokenizer is none that llguidance can read.
        """
        if self._made is None:
            self._made = self._tokens()
        return Following(_library().LLMatcher(self._made, grammar), sorted(ends), size)

    def _tokens(self) -> Any:
        if not self._tokenizer.is_fast:
            raise UserError(
                "response_format: answers of this model cannot be kept to JSON, since its tokenizer is a slow one. "
                "Ask in words."
            )
        backend = self._tokenizer.backend_tokenizer
        return _library().LLTokenizer(backend.to_str(), eos_token=self._tokenizer.eos_token_id)


class Following:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, ends: list[int], size: int) -> None:
        self._matcher, self._ends, self._size = matcher, ends, size
        self._bits = torch.zeros(-(-size // 32), dtype=torch.int32)

    def mask(self) -> Tensor:
        """(V,) bool, True for tokens that may come next; nothing but the end where the answer is complete."""
        self._bits.zero_()
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        places = torch.arange(32, dtype=torch.int32)
        allowed = ((self._bits[:, None] >> places) & 1).bool().flatten()[: self._size]
        # An end token may stand in a JSON string as text for no model: it ends the answer.
        allowed[self._ends] = bool(self._matcher.is_accepting() or self._matcher.is_stopped())
        return allowed

    def take(self, token: int) -> None:
        """This token has come."""
        if token not in self._ends and not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "response_format: keeping answers to JSON needs llguidance: pip install 'espalier-llm[serve]'."
        ) from None
    return llguidance
