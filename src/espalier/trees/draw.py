"""A tree or a batch as text, for people and for error messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from espalier.trees.tree import Tree


def draw_tree(tree: Tree, decode: Callable[[Sequence[int]], str], width: int = 60) -> str:
    """One line a node, indented below its parent; trained text stands between «».

    Example::

        What is 2 + 3? (9 tokens)
        ├─ «5<eos>» (2 tokens, branch 0)
        └─ «6<eos>» (2 tokens, branch 1)
    """
    lines: list[str] = []

    def walk(node: Tree, lead: str, below: str) -> None:
        text = _clip(_marked(node, decode), width)
        notes = [f"{len(node.tokens)} tokens", *(f"branch {b}" for b in node.ends)]
        lines.append(f"{lead}{text} ({', '.join(notes)})")
        for i, child in enumerate(node.children):
            last = i == len(node.children) - 1
            walk(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))

    walk(tree, "", "")
    return "\n".join(lines)


def _marked(node: Tree, decode: Callable[[Sequence[int]], str]) -> str:
    parts, start, flags = [], 0, node.trained.tolist()
    for at in range(1, len(flags) + 1):
        if at == len(flags) or flags[at] != flags[start]:
            text = decode(node.tokens[start:at].tolist())
            parts.append(f"«{text}»" if flags[start] else text)
            start = at
    return "".join(parts)


def _clip(text: str, width: int) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= width else f"{text[: width // 2]} … {text[-width // 2 :]}"
