"""A tree gives back exactly the branches that it was made of, and shares what may be shared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.trees import Path, Tree

# Few kinds of tokens, so that branches agree often; the first flag is dropped to False below.
branch = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([False, False, True])), min_size=1, max_size=9)


def as_path(pairs: list[tuple[int, bool]]) -> Path:
    return [token for token, _ in pairs], [i > 0 and flag for i, (_, flag) in enumerate(pairs)]


def first_trained(path: Path) -> int:
    return list(path[1]).index(True) if any(path[1]) else len(path[1])


def expected_tokens(paths: list[Path]) -> int:
    """Distinct (prefix) or, from the first trained token on, (branch, depth): what must be laid out."""
    kept = set()
    for i, path in enumerate(paths):
        for depth in range(len(path[0])):
            shared = depth < first_trained(path)
            kept.add((-1, tuple(path[0][: depth + 1])) if shared else (i, depth))
    return len(kept)


@pytest.mark.slow
@given(st.lists(branch, min_size=1, max_size=7))
@settings(max_examples=300, deadline=None)
def test_join_then_paths_is_the_identity_and_shares_all_that_may_be_shared(
    drawn: list[list[tuple[int, bool]]],
) -> None:
    paths = [as_path(pairs) for pairs in drawn]
    tree = Tree.join(paths)
    found = tree.paths()
    assert [(t.tolist(), f.tolist()) for t, f in found] == [(list(t), list(f)) for t, f in paths]
    assert tree.n_tokens == expected_tokens(paths)
    assert tree.n_path_tokens == sum(len(t) for t, _ in paths)
    assert tree.n_trained == sum(sum(f) for _, f in paths)
    assert tree.n_branches == len(paths)
    assert tree.longest_path == max(len(t) for t, _ in paths)
    for node, depth in tree.nodes():
        assert len(node.tokens) == len(node.trained)
        assert len(node.tokens) > 0 or (depth == 0 and node.tokens is tree.tokens)
        if node.trained.any():
            assert len(node.ends) == 1, "a trained token belongs to one branch"
            assert not node.children


def test_sharing_stops_before_the_first_trained_token_of_any_branch() -> None:
    prompt, answer = [7, 8], [1, 2, 3]
    tree = Tree.join([(prompt + answer, [False] * 2 + [True] * 3), (prompt + answer, [False] * 5)])
    assert tree.tokens.tolist() == prompt
    assert [child.tokens.tolist() for child in tree.children] == [answer, answer]


def test_a_third_branch_still_shares_with_the_untrained_one() -> None:
    trained: Path = ([7, 1, 2, 3], [False, True, True, True])
    plain: Path = ([7, 1, 2, 4], [False] * 4)
    tree = Tree.join([plain, trained, ([7, 1, 2, 5], [False] * 4)])
    assert tree.tokens.tolist() == [7]
    assert [child.tokens.tolist() for child in tree.children] == [[1, 2], [1, 2, 3]]
    assert [leaf.tokens.tolist() for leaf in tree.children[0].children] == [[4], [5]]


def test_identical_branches_without_trained_tokens_are_one_node() -> None:
    tree = Tree.join([([1, 2, 3], [False] * 3)] * 4)
    assert tree.children == ()
    assert tree.ends == (0, 1, 2, 3)
    assert (tree.n_tokens, tree.n_path_tokens, tree.n_branches) == (3, 12, 4)


def test_a_branch_that_is_a_prefix_of_another_ends_inside() -> None:
    tree = Tree.join([([1, 2, 3, 4], [False, False, False, True]), ([1, 2], [False, False])])
    assert tree.tokens.tolist() == [1, 2]
    assert tree.ends == (1,)
    assert tree.children[0].tokens.tolist() == [3, 4]
    assert tree.children[0].ends == (0,)


def test_without_a_common_prefix_only_the_root_is_empty() -> None:
    tree = Tree.join([([1, 2], [False, True]), ([3, 4], [False, True])])
    assert len(tree.tokens) == 0
    assert tree.ends == ()
    assert [child.tokens.tolist() for child in tree.children] == [[1, 2], [3, 4]]


def test_branch_numbers_follow_the_order_given_whatever_the_order_in_the_row() -> None:
    paths: list[Path] = [([1, 2, 9], [False] * 3), ([5], [False]), ([1, 2, 8], [False] * 3)]
    tree = Tree.join(paths)
    in_row = [b for node, _ in tree.nodes() for b in node.ends]
    assert in_row == [0, 2, 1]
    assert [tokens.tolist() for tokens, _ in tree.paths()] == [[1, 2, 9], [5], [1, 2, 8]]


def test_from_path_keeps_source_and_takes_arrays() -> None:
    tree = Tree.from_path(np.array([4, 5, 6]), np.array([False, True, False]), source="a.jsonl:3")
    assert tree.source == "a.jsonl:3"
    assert tree.ends == (0,)
    assert tree.n_trained == 1


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([], "no branch"),
        ([([1], [False]), ([], [])], "branch 1: no tokens"),
        ([([1, 2, 3], [False, True])], "3 tokens but 2 trained flags"),
        ([([1, 2], [True, True])], "no parent that could predict it"),
    ],
)
def test_errors_say_what_and_where(paths: list[Path], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Tree.join(paths, source="train.jsonl:12")
    assert "train.jsonl:12" in str(caught.value)
