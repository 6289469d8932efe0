"""Records -> trees: whole paths, exact flags, nothing too long and nothing unaccounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder, encode, encode_all
from espalier.data.read.sources import DatasetSpec
from espalier.data.records import Message, Messages, Record
from espalier.errors import UserError
from espalier.trees.tree import Tree
from tests.conftest import Vocabulary
from tests.data.listed import encode_prompts, load_records

LONG = 10**6


def encoder(tokenizer: Any, cutoff_len: int = LONG, **options: Any) -> Encoder:
    return Encoder(tokenizer, choose_template(tokenizer), cutoff_len, **options)


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, prefix: str = "") -> Messages:
    return (Message("assistant", text, prefix),)


def trained(tokenizer: Any, tree: Tree) -> list[str]:
    """The trained text of each branch."""
    return [tokenizer.decode(tokens[flags]) for tokens, flags in tree.paths()]


def whole(tokenizer: Any, tree: Tree) -> list[str]:
    return [tokenizer.decode(tokens) for tokens, _ in tree.paths()]


PAIR = Record.preference((user("树怎么说？"),), said("It is a tree."), said("It is a cat."), "p.jsonl:3")


def test_a_chat_trains_every_answer(aquila: Any) -> None:
    chat = Record.chat((user("2+3=?"), *said("5"), user("And 1+1?"), *said("2")), "c.jsonl:9")
    [tree] = encode(chat, encoder(aquila))
    assert (tree.n_branches, tree.source) == (1, "c.jsonl:9")
    assert trained(aquila, tree) == ["5<|im_end|>2<|im_end|>"]


def test_a_pair_is_two_whole_branches_that_share_the_prompt(aquila: Any) -> None:
    [tree] = encode(PAIR, encoder(aquila))
    assert trained(aquila, tree) == ["It is a tree.<|im_end|>", "It is a cat.<|im_end|>"]
    prompt = "<|im_start|>user\n树怎么说？<|im_end|>\n<|im_start|>assistant\n"
    assert whole(aquila, tree) == [
        f"{prompt}{answer}<|im_end|>\n" for answer in ("It is a tree.", "It is a cat.")
    ]
    assert aquila.decode(tree.tokens) == prompt
    assert tree.source == "p.jsonl:3"


def test_a_reward_models_pair_shares_as_far_as_the_texts_agree(aquila: Any) -> None:
    [tree] = encode(PAIR, encoder(aquila, answers_trained=False))
    assert tree.n_trained == 0 and tree.n_branches == 2
    assert aquila.decode(tree.tokens).endswith("assistant\nIt is a")
    assert whole(aquila, tree) == whole(aquila, encode(PAIR, encoder(aquila))[0])


def test_earlier_turns_of_a_prompt_are_not_trained(aquila: Any) -> None:
    pair = Record.preference(
        (user("a"), *said("b"), user("c")), said("d"), (*said("e"), user("f"), *said("g"))
    )
    [tree] = encode(pair, encoder(aquila))
    assert trained(aquila, tree) == ["d<|im_end|>", "e<|im_end|>g<|im_end|>"]


def test_a_ranking_has_a_branch_an_answer_and_its_scores(gpt2: Any) -> None:
    answers = ((said("好", "答："), 2.5), (said("行", "答："), 1.0), (said("坏", "答："), -1.0))
    [tree] = encode(Record.ranking((user("评"),), answers, "r:1"), encoder(gpt2))
    assert trained(gpt2, tree) == [f"{text}<|endoftext|>" for text in "好行坏"]
    assert tree.extras["scores"].tolist() == [2.5, 1.0, -1.0]
    assert gpt2.decode(tree.tokens).endswith("Assistant:\n答：")


def test_an_unpaired_answer_carries_its_label(gpt2: Any) -> None:
    trees, account = encode_all(
        [Record.unpaired((user("a"),), said("b"), label) for label in (True, False)], encoder(gpt2)
    )
    assert [tree.extras["desirable"].tolist() for tree in trees] == [[1.0], [0.0]]
    assert trained(gpt2, trees[0]) == ["b<|endoftext|>"] and not account


@pytest.mark.parametrize("cutoff_len", [2, 3, 7, 50, 1000])
def test_a_document_is_kept_whole_and_each_token_is_trained_once(aquila: Any, cutoff_len: int) -> None:
    text = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 5
    trees = encode(Record.document(text, "t:1"), encoder(aquila, cutoff_len))
    ids = [*aquila(text, add_special_tokens=False).input_ids, aquila.eos_token_id]
    paths = [tree.paths()[0] for tree in trees]
    assert all(len(tokens) <= cutoff_len and not flags[0] and flags[1:].all() for tokens, flags in paths)
    assert [int(token) for tokens, flags in paths for token in tokens[flags]] == ids[1:]
    assert [int(tokens[0]) for tokens, _ in paths] == ids[: -1 : cutoff_len - 1]
    assert {tree.source for tree in trees} == {"t:1"}


def test_a_bos_token_where_the_tokenizer_adds_one(vocabulary: Vocabulary, gpt2: Any) -> None:
    tokenizer = type(gpt2).from_pretrained(vocabulary("aquila_bpe"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    with_bos = encoder(tokenizer)
    bos = tokenizer.bos_token_id
    [tree] = encode(Record.document("春眠"), with_bos)
    assert tree.tokens.tolist() == [
        bos,
        *tokenizer("春眠", add_special_tokens=False).input_ids,
        tokenizer.eos_token_id,
    ]
    assert encode(PAIR, with_bos)[0].tokens[0] == bos
    [prompt], _ = encode_prompts(
        [Record("prompt", (user("a b c d e f g"),))], with_bos, max_prompt_length=100
    )
    [cut], _ = encode_prompts(
        [prompt.record], encoder(tokenizer, overlong="trim"), max_prompt_length=len(prompt.tokens) - 2
    )
    assert cut.tokens == [bos, *prompt.tokens[3:]]


@pytest.mark.slow
def test_a_prompt_is_what_training_has_before_the_answer(shared: Path, aquila: Any, gpt2: Any) -> None:
    pairs = load_records(
        [DatasetSpec(str(shared / "data/llamafactory_demo/dpo_*.json"))], "preference"
    ).records[::10]
    for tokenizer in (aquila, gpt2):
        trees, _ = encode_all(pairs, encoder(tokenizer))
        prompts = [Record("prompt", pair.prompt, (), pair.source, reference="ref") for pair in pairs]
        encoded, account = encode_prompts(prompts, encoder(tokenizer), max_prompt_length=LONG)
        assert not account
        for tree, prompt in zip(trees, encoded, strict=True):
            for tokens, flags in tree.paths():
                assert tokens[: flags.argmax()].tolist() == prompt.tokens
            assert prompt.record.reference == "ref"


def test_order_and_count_hold_over_batches(aquila: Any) -> None:
    records = [
        Record.chat((user(str(n)), *said(str(n))), f"c:{n}") if n % 3 else Record.document(f"d{n}", f"c:{n}")
        for n in range(600)
    ]
    trees, account = encode_all(records, encoder(aquila))
    assert [tree.source for tree in trees] == [record.source for record in records] and not account


@pytest.mark.parametrize(
    "record", [Record.chat((*PAIR.prompt, *PAIR.answers[0].messages), "p.jsonl:3"), PAIR]
)
def test_too_long_is_an_error_with_place_length_and_remedies(aquila: Any, record: Any) -> None:
    length = encode(record, encoder(aquila))[0].longest_path
    assert encode(record, encoder(aquila, length))
    with pytest.raises(UserError) as caught:
        encode(record, encoder(aquila, length - 1))
    message = str(caught.value)
    for words in (
        "p.jsonl:3: ",
        f"{length} tokens",
        f"cutoff_len is {length - 1}",
        "overlong: trim",
        "overlong: drop",
    ):
        assert words in message


def test_drop_leaves_out_and_counts(aquila: Any) -> None:
    short = Record.chat((user("a"), *said("b")))
    long = Record.chat((user("a " * 50), *said("b")))
    trees, account = encode_all([short, long, PAIR, long], encoder(aquila, 40, overlong="drop"))
    assert len(trees) == 2
    assert account == Counter({"dropped: longer than cutoff_len": 2})


def test_trim_cuts_a_pairs_prompt_alike_and_never_an_answer(aquila: Any) -> None:
    pair = Record.preference((user("远 " * 30 + "近"),), said("yes, of course"), said("no"), "p:1")
    full = encode(pair, encoder(aquila))[0]
    cutoff = full.longest_path - 20
    trees, account = encode_all([pair], encoder(aquila, cutoff, overlong="trim"))
    assert account == Counter({"trimmed: beginning of the prompt": 1})
    for (tokens, flags), (before, flags_before) in zip(trees[0].paths(), full.paths(), strict=True):
        assert tokens.tolist() == before[20:].tolist() and flags.tolist() == flags_before[20:].tolist()
    huge = Record.preference((user("a"),), said("yes " * 100), said("no"))
    trees, account = encode_all([huge], encoder(aquila, 40, overlong="trim"))
    assert not trees and account == Counter({"dropped: answer longer than cutoff_len": 1})


def test_trim_takes_a_chats_oldest_exchanges_first(aquila: Any) -> None:
    system = Message("system", "S")
    turns = [message for n in range(10) for message in (user(f"question {n}"), *said(f"answer {n}"))]
    full = encode(Record.chat((system, *turns)), encoder(aquila))[0].longest_path
    trees, account = encode_all([Record.chat((system, *turns))], encoder(aquila, full // 2, overlong="trim"))
    [text] = whole(aquila, trees[0])
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nquestion ")
    assert "answer 0" not in text and "answer 9<|im_end|>" in text
    assert account == Counter({"trimmed: oldest exchanges": 1})
    kept = text.count("question")
    one_more = Record.chat((system, *turns[-2 * (kept + 1) :]))
    assert encode(one_more, encoder(aquila))[0].longest_path > full // 2


def test_trim_of_a_single_exchange_cuts_its_question_then_its_answer(aquila: Any) -> None:
    long_question = Record.chat((user("a b c " * 40), *said("short")))
    trees, account = encode_all([long_question], encoder(aquila, 60, overlong="trim"))
    assert trained(aquila, trees[0]) == ["short<|im_end|>"] and trees[0].longest_path == 60
    assert account == Counter({"trimmed: beginning of the prompt": 1})
    long_answer = Record.chat((user("a"), *said("b c d " * 40)))
    trees, account = encode_all([long_answer], encoder(aquila, 60, overlong="trim"))
    assert trees[0].longest_path == 60 and "<|im_end|>" not in trained(aquila, trees[0])[0]
    assert account == Counter({"trimmed: end of the answer, its end token too": 1})


@pytest.mark.slow
@pytest.mark.parametrize("cutoff_len", [24, 64, 256])
def test_trimmed_real_records_fit_and_every_one_is_accounted_for(
    shared: Path, aquila: Any, cutoff_len: int
) -> None:
    root = shared / "data"
    chats = load_records([DatasetSpec(str(root / "sharegpt_zh"))], "chat", skip_bad=True).records[:40]
    pairs = load_records([DatasetSpec(str(root / "comparison_gpt4_zh"))], "preference").records[:200]
    trees, account = encode_all(chats, encoder(aquila, cutoff_len, overlong="trim"))
    assert len(trees) == len(chats) - sum(n for cause, n in account.items() if cause.startswith("dropped"))
    trees_of_pairs, account = encode_all(pairs, encoder(aquila, cutoff_len, overlong="trim"))
    assert len(trees_of_pairs) + account["dropped: answer longer than cutoff_len"] == len(pairs)
    by_source = {pair.source: pair for pair in pairs}
    for tree in trees_of_pairs:
        pair = by_source[tree.source]
        assert trained(aquila, tree) == [f"{answer.messages[0].content}<|im_end|>" for answer in pair.answers]
    for tree in (*trees, *trees_of_pairs):
        assert tree.longest_path <= cutoff_len and tree.n_trained


def test_prompts_too_long_follow_the_same_word(aquila: Any) -> None:
    prompt = Record("prompt", (user("a b c d e f g h i j"),), source="q.jsonl:2")
    [fits], _ = encode_prompts([prompt], encoder(aquila), max_prompt_length=100)
    limit = len(fits.tokens) - 3
    with pytest.raises(UserError, match=r"q\.jsonl:2: .* max_prompt_length is"):
        encode_prompts([prompt], encoder(aquila), max_prompt_length=limit)
    dropped, account = encode_prompts([prompt], encoder(aquila, overlong="drop"), max_prompt_length=limit)
    assert not dropped and account == Counter({"dropped: prompt longer than max_prompt_length": 1})
    [cut], account = encode_prompts([prompt], encoder(aquila, overlong="trim"), max_prompt_length=limit)
    assert cut.tokens == fits.tokens[3:] and account == Counter({"trimmed: beginning of the prompt": 1})


def test_what_a_template_refuses_is_told_with_its_place(aquila: Any) -> None:
    refusing = type(
        "Refusing", (), {"render": lambda self, *_, **__: (_ for _ in ()).throw(UserError("no system"))}
    )()
    with pytest.raises(UserError, match=r"^a\.jsonl:4: no system$"):
        encode(Record.chat((user("a"), *said("b")), "a.jsonl:4"), Encoder(aquila, refusing, LONG))


def test_a_tokenizer_without_an_end_is_refused_for_documents(vocabulary: Vocabulary, gpt2: Any) -> None:
    template = choose_template(gpt2)
    bare = type(gpt2).from_pretrained(vocabulary("aquila_bpe"))
    bare.eos_token = None
    with pytest.raises(UserError, match=r"t:1: .*set eos_token"):
        encode(Record.document("春眠", "t:1"), Encoder(bare, template, LONG))


def test_a_long_document_is_tokenised_in_stretches_and_loses_nothing(
    aquila: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n" * 40
    whole, _ = encode_all([Record.document(text, "t:1")], encoder(aquila, 50))
    monkeypatch.setattr("espalier.data.encode.encoding._LONG", 130)
    pieces, account = encode_all([Record.document(text, "t:1")], encoder(aquila, 50))
    assert [tree.tokens.tolist() for tree in pieces] == [tree.tokens.tolist() for tree in whole]
    unbroken, _ = encode_all([Record.document("春" * 1000, "t:2")], encoder(aquila, 50))
    assert "".join(trained(aquila, tree)[0] for tree in unbroken).count("春") >= 999 and not account


def test_an_endless_record_is_told_without_being_tokenised(
    aquila: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("espalier.data.encode.encoding._LONG", 1000)
    chats = [Record.chat((user("a"), *said("b " * 3000)), "c:1"), Record.chat((user("a"), *said("b")), "c:2")]
    with pytest.raises(UserError, match=r"c:1: 6,0.. characters in one record.*line breaks"):
        encode_all(chats, encoder(aquila, 40))
    for overlong in ("drop", "trim"):
        trees, account = encode_all(chats, encoder(aquila, 40, overlong=overlong))
        assert [tree.source for tree in trees] == ["c:2"]
        assert account == Counter({"dropped: too many characters for cutoff_len": 1})
    assert len(encode_all(chats, encoder(aquila, 4000))[0]) == 2
