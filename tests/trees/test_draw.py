"""Trees and batches as text."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.trees import Tree
from espalier.trees.draw import draw_tree


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(t) for t in tokens)


def path(prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    return [ord(c) for c in prompt + answer], [False] * len(prompt) + [True] * len(answer)


def test_a_node_a_line_with_its_branches_and_its_trained_text() -> None:
    tree = Tree.join([path("2+3=", "5."), path("2+3=", "6."), path("2+3=?", "no")])
    assert draw_tree(tree, letters).split("\n") == [
        "2+3= (4 tokens)",
        "├─ «5.» (2 tokens, branch 0)",
        "├─ «6.» (2 tokens, branch 1)",
        "└─ ?«no» (3 tokens, branch 2)",
    ]


def test_deeper_nodes_are_indented_below_their_parent() -> None:
    tree = Tree.join([path("ab1", "x"), path("ab1", "y"), path("ac", "z")])
    assert draw_tree(tree, letters).split("\n") == [
        "a (1 tokens)",
        "├─ b1 (2 tokens)",
        "│  ├─ «x» (1 tokens, branch 0)",
        "│  └─ «y» (1 tokens, branch 1)",
        "└─ c«z» (2 tokens, branch 2)",
    ]


def test_long_text_is_cut_in_the_middle_and_line_breaks_stay_on_the_line() -> None:
    text = draw_tree(Tree.from_path(*path("a\nb" + "x" * 100 + "end", "")), letters, width=20)
    assert text.startswith("a⏎bxxx")
    assert " … " in text
    assert "end (106 tokens, branch 0)" in text
    assert "\n" not in text
