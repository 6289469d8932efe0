"""From tokens, as they come, to text that can be shown: whole characters, nothing behind a stop text, thoughts apart."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

Kind = Literal["thoughts", "answer"]
OPENED, CLOSED = "<think>", "</think>"


class AnswerText:
    """The text of one answer.

    A tokenizer may write a token differently behind others, so each is read behind those before it, as far back as
    the last place where the text was whole.

    Args:
        tokenizer: of the model.
        stop: texts that end the answer.
        banned: words that end it too, in large letters or small; of letters beside them they are not part.

    Attributes:
        stopped: by what of these it was ended; "": by none.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), banned: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._banned = banned_words(tuple(banned))
        self._tokens: list[int] = []
        self._start = self._shown = 0  # where reading starts, and the first token that is not in the text yet
        self._held = ""  # what may be the beginning of a stop text or of a banned word
        self.stopped: Literal["", "stop", "banned"] = ""

    def push(self, token: int) -> str:
        """What can be shown more, now that this token has come."""
        self._tokens.append(token)
        before = self._decoded(self._tokens[self._start : self._shown])
        now = self._decoded(self._tokens[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return self._until_stop(now[len(before) :])

    def end(self) -> str:
        """What was held back; half a character is no text."""
        before = self._decoded(self._tokens[self._start : self._shown])
        now = whole_characters(self._decoded(self._tokens[self._start :]))
        return self._until_stop(now[len(before) :], last=True)

    def _decoded(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _until_stop(self, text: str, *, last: bool = False) -> str:
        if self.stopped or not (self._stop or self._banned):
            return "" if self.stopped else text
        text, self._held = self._held + text, ""
        found: list[tuple[int, Literal["stop", "banned"]]] = [
            (at, "stop") for stop in self._stop if (at := text.find(stop)) >= 0
        ]
        if self._banned and (word := self._banned.first(text, last)) is not None:
            found.append((word, "banned"))
        if found:
            at, self.stopped = min(found)
            return text[:at]
        if last:
            return text
        length = max((overlap(text, stop) for stop in self._stop), default=0)
        if self._banned:
            length = max(length, self._banned.begun(text))
        if length:
            text, self._held = text[:-length], text[-length:]
        return text


class BannedWords:
    """Words that no answer may have.

    A word of letters counts where no other letter stands beside it (`ass` is not in `class`); Chinese, which writes
    no spaces, has words wherever they stand.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [_lowered(word) for word in words]
        parts = [_bounded(word) for word in sorted(self._words, key=len, reverse=True)]
        self._pattern = re.compile("|".join(parts))

    def first(self, text: str, last: bool) -> int | None:
        """Where the first of them begins; one at the end of the text counts when nothing more comes (`last`)."""
        lowered = _lowered(text)
        for match in self._pattern.finditer(lowered):
            if last or match.end() < len(lowered) or not match.group()[-1].isascii():
                return match.start()
        return None

    def begun(self, text: str) -> int:
        """Characters at the end of a text that may be the beginning of one of them, and the letter before it."""
        lowered = _lowered(text)
        return max((n + 1 for word in self._words for n in [overlap(lowered, word + "\0")] if n), default=1)


def _lowered(text: str) -> str:
    """In small letters, and of the same length (the small form of a Turkish letter is two)."""
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def _bounded(word: str) -> str:
    letters = word[0].isascii() and word[0].isalpha(), word[-1].isascii() and word[-1].isalpha()
    before, behind = "(?<![a-z])" if letters[0] else "", "(?![a-z])" if letters[1] else ""
    return before + re.escape(word) + behind


@functools.lru_cache(maxsize=8)
def banned_words(words: tuple[str, ...]) -> BannedWords | None:
    """None where there are none; a list of thousands is compiled once."""
    return BannedWords(words) if words else None


class Thoughts:
    """An answer's text in its two parts, as it comes: what stands in `<think>…</think>` before it, and the answer.

    Args:
        inside: whether the prompt ends with the opening mark already.
    """

    def __init__(self, inside: bool = False) -> None:
        self._state: Literal["begin", "opened", "thoughts", "between", "answer"] = (
            "opened" if inside else "begin"
        )
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[Kind, str]]:
        """The parts of one more piece; what may be the beginning of a mark waits for the next one."""
        self._held += text
        if self._state == "begin":
            begun = self._held.lstrip()
            if begun.startswith(OPENED):
                self._state, self._held = "opened", begun[len(OPENED) :]
            elif OPENED.startswith(begun):
                return
            else:
                self._state = "answer"
        if self._state == "opened":
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = "thoughts"
        if self._state == "thoughts":
            thoughts, mark, rest = self._held.partition(CLOSED)
            if mark:
                self._state, self._held = "between", rest
                thoughts = thoughts.rstrip("\n")
            else:
                # Line breaks before the closing mark are not part of what is thought.
                kept = len(thoughts) - overlap(thoughts, CLOSED)
                kept = len(thoughts[:kept].rstrip("\n"))
                thoughts, self._held = thoughts[:kept], thoughts[kept:]
            if thoughts:
                yield "thoughts", thoughts
        if self._state == "between":
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = "answer"
        if self._state == "answer" and self._held:
            held, self._held = self._held, ""
            yield "answer", held

    def end(self) -> Iterator[tuple[Kind, str]]:
        """What was held back."""
        if self._held:
            yield "thoughts" if self._state == "thoughts" else "answer", self._held
        self._held = ""


def whole_characters(text: str) -> str:
    """Without the replacement marks at the end that stand for a character of which bytes are still to come."""
    return text.rstrip("\ufffd")


def overlap(text: str, mark: str) -> int:
    """Characters at the end of a text that a mark may begin with.

    >>> overlap("a </thi", "</think>"), overlap("a b", "</think>")
    (5, 0)
    """
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
