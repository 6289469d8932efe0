"""The table of all corpora that `espalier prepare` knows, by the names that users type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from espalier.corpora.made import Division, Outcomes
from espalier.corpora.prepare import instructions, news, questions
from espalier.corpora.prepare.books import metre
from espalier.corpora.prepare.classical import classical
from espalier.corpora.prepare.couplets import couplets
from espalier.corpora.prepare.poetry import poetry


@dataclass(frozen=True)
class Corpus:
    """What a corpus is, the kind of record that it gives, and what reads it: a folder or file and a division -> records."""

    about: str
    gives: str
    read: Callable[[Path, Division], Outcomes]


CORPORA: dict[str, Corpus] = {
    "couplets": Corpus("couplet-dataset (in.txt, out.txt) or couplets.txt", "ranking", couplets),
    "poetry": Corpus("chinese-poetry, all books", "ranking", poetry),
    "poetry-metre": Corpus("the same, verse named by its metre", "ranking", partial(poetry, genre=metre)),
    "classical": Corpus("NiuTrans Classical-Modern, present and flat layout", "ranking", classical),
    "zhidao": Corpus("Zhidao csv: title, question, reply, is_best", "ranking", questions.zhidao),
    "baike": Corpus("baike_qa2019: title, desc, answer", "ranking", questions.baike),
    "weibo": Corpus("Weibo news, abstract, comments with likes", "ranking", news.weibo),
    "lcsts": Corpus("LCSTS: Weibo news and its summary", "ranking", news.lcsts),
    "instruction-wild": Corpus(
        "InstructionWild: with outputs, or prompts only", "chat", instructions.instruction_wild
    ),
    "alpaca": Corpus("alpaca: instruction, input, output", "chat", instructions.alpaca),
    "belle": Corpus("BELLE: the same columns", "chat", instructions.alpaca),
    "hh-rlhf": Corpus("Anthropic hh-rlhf: chosen and rejected dialogues", "preference", instructions.hh),
    "rm-static": Corpus(
        "Dahoas rm-static: prompt, chosen, rejected", "preference", instructions.prompted_pairs
    ),
    "deepspeed-chat": Corpus(
        "DeepSpeed-Chat's train.json and eval.json", "preference", instructions.prompted_pairs
    ),
    "summarize-from-feedback": Corpus(
        "OpenAI's comparisons: info, summaries, choice", "preference", instructions.summaries
    ),
    "webgpt": Corpus(
        "OpenAI's webgpt_comparisons: question, answer_0, answer_1, scores", "preference", instructions.webgpt
    ),
    "hc3": Corpus("HC3-Chinese: question, human_answers", "chat", instructions.hc3),
    "zhihu-kol": Corpus("Zhihu-KOL: INSTRUCTION, RESPONSE", "chat", instructions.zhihu),
}
