"""Many requests at a time: each gets what it would get alone, and leaves nothing behind."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.sampling import joining
from espalier.serve import engine as engine_module
from espalier.serve.engine import Engine
from espalier.serve.grammar import json_grammar
from espalier.serve.model import ServedModel
from espalier.serve.requests import EngineLimits, Event, Failed, Finished, Full, Request, TextPiece
from espalier.serve.settings import AnswerSettings

SHARED = "Hello world, how are you today? " * 12
PROMPTS = [
    SHARED + "你好",
    SHARED + "Hello",
    "世界",
    SHARED,
    "today?",
    SHARED + "how",
    "H",
    SHARED * 2 + "you",
]


def request(model: ServedModel, text: str, **settings: Any) -> Request:
    return model.request(model.encode(text), AnswerSettings(**{"max_new_tokens": 20, **settings}))


class Heard:
    """What is told of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def wait(self, count: int = 1, seconds: float = 20.0) -> Heard:
        """Until so many answers have ended."""
        until = time.monotonic() + seconds
        while sum(not isinstance(event, TextPiece) for event in self.events) < count:
            assert time.monotonic() < until, self.events
            time.sleep(0.002)
        return self

    def text(self, choice: int = 0) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextPiece) and e.choice == choice)

    def last(self) -> Event:
        return self.events[-1]


def hear(engine: Engine, asked: Request) -> Heard:
    heard = Heard()
    heard.job = engine.submit(asked, heard.events.append)  # type: ignore[attr-defined]
    return heard


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0}, {"seed": 3}, {"seed": 4, "top_p": 0.8, "temperature": 1.3}, {"seed": 5, "top_k": 4},
    {"temperature": 0, "repetition_penalty": 1.4}, {"seed": 6, "min_p": 0.3}, {"seed": 3, "frequency_penalty": 2.0},
    {"seed": 7, "logit_bias": {40: 30.0}},
]  # fmt: skip


def test_an_answer_is_the_same_whatever_is_answered_beside_it(served: ServedModel) -> None:
    asked = [request(served, text, **how) for text, how in zip(PROMPTS, SETTINGS, strict=True)]
    alone = [hear(served.engine, one).wait().text() for one in asked]
    assert len(set(alone)) == len(alone) and all(alone)
    heard = []
    for number, one in enumerate(asked):
        heard.append(
            hear(served.engine, replace(one, settings=replace(one.settings, max_new_tokens=20 + number)))
        )
        time.sleep(0.01 * (number % 3))
        while served.engine.waiting > 2:
            time.sleep(0.001)
    for number, (one, text) in enumerate(zip(heard, alone, strict=True)):
        assert one.wait().text()[: len(text)] == text, SETTINGS[number]
    assert served.engine.rows.shared > 1000, "the same beginning was read again"


def test_a_seed_and_a_choice_have_numbers_of_their_own(served: ServedModel) -> None:
    three = hear(served.engine, request(served, "Hello", n=3, seed=11)).wait(3)
    texts = [three.text(choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert texts[0] == hear(served.engine, request(served, "Hello", seed=11)).wait().text()
    free = {hear(served.engine, request(served, "Hello")).wait().text() for _ in range(3)}
    assert len(free) == 3, "without a seed answers differ"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "bloom", "mistral"])
def test_greedy_text_is_that_of_transformers(family: str, served: ServedModel) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    llama = {**sizes, "intermediate_size": 64, "max_position_embeddings": 256}
    bloom = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    own = {"gpt2": gpt, "bloom": bloom, "mistral": {**llama, "sliding_window": 8}}.get(family, llama)
    ids = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    torch.manual_seed(3)
    lm: Any = load.new_lm({"model_type": family, **own}, len(served.tokenizer), ids)
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    engine = Engine(TreeModel(lm.eval(), probe(lm)).eval(), served.tokenizer, EngineLimits(200))
    prompts = [served.encode(text)[:60] for text in PROMPTS]
    settings = AnswerSettings(max_new_tokens=16, temperature=0, logprobs=0)
    heard = [hear(engine, Request(tuple(ids), settings, frozenset([2]))) for ids in prompts]
    for one in heard:
        one.wait()
    for ids_, one in zip(prompts, heard, strict=True):
        truth = lm.generate(
            torch.tensor([ids_]), max_new_tokens=16, do_sample=False, attention_mask=torch.ones(1, len(ids_))
        )
        told = [t for t in truth[0, len(ids_) :].tolist() if t != 2]
        said = [token.id for event in one.events if isinstance(event, TextPiece) for token in event.tokens]
        assert said == told
    engine.close()


def test_told_logprobs_are_the_models_own(served: ServedModel) -> None:
    asked = request(served, "Hello", temperature=0.5, seed=2, logprobs=3, top_k=5, max_new_tokens=8)
    heard = hear(served.engine, asked).wait()
    tokens = [token for event in heard.events if isinstance(event, TextPiece) for token in event.tokens]
    ids = torch.tensor([[*asked.ids, *(token.id for token in tokens)]])
    with torch.no_grad():
        truth = served.model.lm(input_ids=ids).logits[0, len(asked.ids) - 1 : -1].log_softmax(-1)
    for token, row in zip(tokens, truth, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [a for a, _ in token.alternatives] == row.topk(3).indices.tolist()


def test_a_request_that_is_given_up_frees_its_place(served: ServedModel) -> None:
    long = [
        hear(served.engine, request(served, "Hello", max_new_tokens=300, logit_bias={2: -100.0}))
        for _ in range(8)
    ]
    waits = hear(served.engine, request(served, "today"))
    while served.engine.running < 8:
        time.sleep(0.002)
    time.sleep(0.05)
    assert served.engine.waiting == 1 and not waits.events
    long[3].job.cancel()  # type: ignore[attr-defined]
    waits.wait()
    assert isinstance(long[3].last(), Failed) and isinstance(waits.last(), Finished)
    assert served.engine.counts.cancelled == 1
    for one in long:
        one.job.cancel()  # type: ignore[attr-defined]
    until = time.monotonic() + 5
    while served.engine.running and time.monotonic() < until:
        time.sleep(0.002)
    assert served.engine.running == 0 and served.engine.rows.count == 0


def test_a_long_prompt_does_not_hold_up_who_is_being_answered(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "AHEAD", 64)
    monkeypatch.setattr(joining, "AHEAD", 64)
    plain = served.engine.rows.read_ahead
    long = request(served, "How are you, world? " * 24, temperature=0)
    alone = hear(served.engine, long).wait().text()
    for _ in range(20):  # on a busy machine the answer beside it may be over before the long prompt comes
        served.engine.rows.prefixes.clear()  # type: ignore[attr-defined]
        steps: list[int] = []
        lonely: list[bool] = []

        def watched(new: Any, steps: list[int] = steps, lonely: list[bool] = lonely) -> Any:
            steps.append(served.engine.counts.tokens)
            lonely.append(not served.engine.running)
            return plain(new)

        beside = hear(served.engine, request(served, "Hello", max_new_tokens=200, logit_bias={2: -100.0}))
        while not served.engine.running:
            time.sleep(0.002)
        monkeypatch.setattr(served.engine.rows, "read_ahead", watched)
        assert hear(served.engine, long).wait().text() == alone
        beside.wait()
        monkeypatch.setattr(served.engine.rows, "read_ahead", plain)
        if not any(lonely):
            break
    assert not any(lonely)
    assert len(set(steps)) == len(steps) > 3, "each part waits for a step of the answer beside it"


def test_a_listener_who_goes_away_has_his_request_cancelled(served: ServedModel) -> None:
    for _ in served.engine.events(request(served, "Hello", max_new_tokens=300, logit_bias={2: -100.0})):
        break
    until = time.monotonic() + 5
    while served.engine.running and time.monotonic() < until:
        time.sleep(0.002)
    assert served.engine.running == 0


def test_what_waits_is_bounded(served: ServedModel) -> None:
    how = {"max_new_tokens": 300, "logit_bias": {2: -100.0}, "n": 8}
    first = hear(served.engine, request(served, "Hello", **how))
    while not served.engine.running:
        time.sleep(0.002)
    others = [hear(served.engine, request(served, "Hello", **how)) for _ in range(9)]
    with pytest.raises(Full, match="9 requests are waiting") as caught:
        served.engine.submit(request(served, "Hello"), print)
    assert caught.value.seconds >= 1
    for one in [first, *others]:
        one.job.cancel()  # type: ignore[attr-defined]


def test_what_takes_too_long_is_told_so(folder: Path) -> None:
    model = ServedModel(
        "tiny", open_model(str(folder), device="cpu"), limits=EngineLimits(0, rows=1, seconds=1.0)
    )
    heard = [
        hear(model.engine, request(model, "Hello", max_new_tokens=390, logit_bias={2: -100.0}))
        for _ in range(16)
    ]
    ends = [one.wait().last() for one in heard]
    assert any(isinstance(end, Failed) and end.reason == "timeout" for end in ends)
    assert isinstance(hear(model.engine, request(model, "Hello", max_new_tokens=2)).wait().last(), Finished)
    model.close()


def test_an_accident_ends_its_requests_and_not_the_thread(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "draw_rows", broken)
        with pytest.raises(UserError, match="the model has failed"):
            list(served.engine.events(request(served, "Hello")))
    assert hear(served.engine, request(served, "Hello", temperature=0)).wait().text()
    with torch.no_grad():
        served.model.lm.get_output_embeddings().weight[5] = torch.nan  # type: ignore[operator]
    with pytest.raises(UserError, match="no numbers"):
        list(served.engine.events(request(served, "Hello")))


def test_a_row_without_numbers_ends_alone(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that lets nothing come next, beside an answer that goes on."""

    class Nothing:
        def mask(self) -> torch.Tensor:
            return torch.zeros(300, dtype=torch.bool)

        def take(self, token: int) -> None:
            raise AssertionError

    monkeypatch.setattr(served.engine.grammars, "start", lambda *_: Nothing())
    beside = hear(served.engine, request(served, "Hello", max_new_tokens=60, logit_bias={2: -100.0}))
    with pytest.raises(UserError, match="no numbers"):
        list(served.engine.events(request(served, "Hello", grammar="nothing", max_new_tokens=5)))
    assert isinstance(beside.wait().last(), Finished)


def test_two_models_answer_at_a_time_without_a_mix(served: ServedModel, folder: Path) -> None:
    other = ServedModel("other", open_model(str(folder), device="cpu"), limits=EngineLimits(0, rows=8))
    with torch.no_grad():
        for parameter in other.model.lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    both = [(model, request(model, text, temperature=0)) for model in (served, other) for text in PROMPTS[:5]]
    alone = [hear(model.engine, one).wait().text() for model, one in both]
    assert all(a != b for a, b in zip(alone[:5], alone[5:], strict=True))
    heard = [hear(model.engine, one) for model, one in both]
    assert [one.wait().text() for one in heard] == alone
    other.close()


def test_what_was_taken_is_answered_before_the_end(served: ServedModel) -> None:
    heard = [hear(served.engine, request(served, text, logit_bias={2: -100.0})) for text in PROMPTS[:4]]
    assert served.close(20.0)
    assert all(isinstance(one.last(), Finished) for one in heard)
    with pytest.raises(UserError, match="no more questions"):
        hear(served.engine, request(served, "Hello"))


def test_an_answer_keeps_to_its_grammar(served: ServedModel) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yes"]}, "n": {"type": "boolean"}},
              "required": ["a", "n"], "additionalProperties": False}  # fmt: skip
    for seed in range(4):
        asked = request(served, "Hello", seed=seed, grammar=json_grammar(schema), max_new_tokens=60)
        heard = hear(served.engine, asked).wait()
        assert isinstance(heard.last(), Finished) and heard.last().reason == "stop"  # type: ignore[union-attr]
        said = json.loads(heard.text())
        assert said["a"] in ("x", "yes") and said["n"] in (True, False)
    with pytest.raises(UserError, match="cannot be kept to"):
        json_grammar({"type": "nonsense"})
