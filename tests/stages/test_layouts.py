"""The layout belongs to the model: each of policy, critic, reference and reward model gets rows of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.models import load
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.trees import Tree, lay_out_tree
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "context_length": 256},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
TAKE_TREES = {"llama", "gpt2"}


@pytest.fixture(scope="module")
def models(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind a policy ``KIND`` and a reward model ``KIND-judge``, all with the tokenizer of the world."""
    folder = tmp_path_factory.mktemp("kinds")
    tokenizer = load.load_tokenizer(str(world / "base"))
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for at, (kind, sizes) in enumerate(KINDS.items()):
        for name, head in ((kind, None), (f"{kind}-judge", ScalarHead(32))):
            torch.manual_seed(at)
            lm = load.new_lm({"model_type": kind, **sizes}, len(tokenizer), ids)
            if head is not None:
                torch.nn.init.normal_(head.weight)
            (folder / name).mkdir()
            save_model(folder / name, TreeModel(lm, probe(lm), head), tokenizer)
    return folder


def both(options: Make, stage: str, models: Path, policy: str, judge: str, **changes: Any) -> list[Any]:
    """(summary, logged rows) under `layout: auto` and under the padded layout."""
    found = []
    for layout in ("auto", "padded"):
        made = options(stage, name=layout, layout=layout, max_steps=1, samples=0, temperature=0.7)
        made |= {"max_new_tokens": 4, "per_device_train_batch_size": 4}
        made |= {"model_name_or_path": str(models / policy), "reward_model": str(models / f"{judge}-judge")}
        made.pop("reward_function", None)
        found.append((run(made | changes), rows(made)))
    return found


def numbers(logged: list[dict[str, Any]]) -> dict[str, float]:
    left = ("tokens", "tokens_per_second", "memory_bytes")
    return {f"{i}.{k}": v for i, row in enumerate(logged) for k, v in row.items() if k not in left}


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "judge"), list(product(KINDS, KINDS)))
def test_every_pair_is_what_it_is_padded(policy: str, judge: str, options: Make, models: Path) -> None:
    """PPO has all four: the critic begins as the reward model, the reference as the policy."""
    (auto, logged), (padded, truth) = both(options, "ppo", models, policy, judge)
    assert auto["layout"] == ("tree" if policy in TAKE_TREES else "padded")
    assert padded["layout"] == "padded"
    found, right = numbers(logged), numbers(truth)
    assert right["0.eval_reward"] != 0 and right["1.value_loss"] > 0
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "judge"), [("llama", "mpt"), ("bloom", "gpt2")])
def test_groups_are_judged_in_the_judge_s_own_layout(
    policy: str, judge: str, options: Make, models: Path
) -> None:
    (_, logged), (_, truth) = both(options, "grpo", models, policy, judge)
    assert numbers(logged) == pytest.approx(numbers(truth), rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize(("policy", "reference"), [("llama", "mpt"), ("bloom", "gpt2")])
def test_a_reference_of_another_kind(
    policy: str, reference: str, precomputed: bool, options: Make, models: Path
) -> None:
    found = []
    for layout in ("auto", "padded"):
        made = options("dpo", name=layout, layout=layout, max_steps=1, samples=0)
        made |= {"model_name_or_path": str(models / policy), "ref_model": str(models / reference)}
        run(made | {"precompute_ref_logprobs": precomputed})
        found.append(numbers(rows(made)))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-5)
    assert found[1]["0.eval_loss"] != pytest.approx(0.6931, abs=1e-4)


def test_a_model_refuses_rows_that_it_cannot_take(models: Path) -> None:
    model = _model(models, "mpt")
    tree = Tree.join([([5, 6, 7], [False, True, True]), ([5, 6, 8], [False, True, True])])
    with pytest.raises(ValueError, match="takes none"):
        model(lay_out_tree([tree]), Want())
    fitting = model.fitting(lay_out_tree([tree]))
    assert fitting.attention_mask is not None and model(fitting, Want()).logprobs is not None


def _model(models: Path, kind: str) -> TreeModel:
    lm = load.load_lm(str(models / kind))
    return TreeModel(lm, probe(lm)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_that_is_asked_for_is_the_one_that_runs(
    attention: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface
    from transformers.models.llama import modeling_llama

    used: set[str] = set()
    names = ("eager", "sdpa")

    def seen(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            used.add(name)
            return real(*args, **kwargs)

        return call

    monkeypatch.setitem(
        AttentionInterface._global_mapping, "sdpa", seen("sdpa", AttentionInterface._global_mapping["sdpa"])
    )
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", seen("eager", modeling_llama.eager_attention_forward)
    )
    asked, own = (
        options("sft", name="asked", attn_implementation=attention, samples=0),
        options("sft", name="own"),
    )
    summary = run(asked)
    assert used == {attention} and attention in names
    assert "dense" in summary["layout_reason"] and "pieces" in run(own)["layout_reason"]
    losses = [[row["loss"] for row in rows(made) if "loss" in row] for made in (asked, own)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_an_attention_that_cannot_be_is_refused(options: Make) -> None:
    with pytest.raises(UserError, match=r"flash_attention_2 does not work here.*auto, sdpa or eager"):
        run(options("sft", attn_implementation="flash_attention_2"))
    with pytest.raises(UserError, match=r"attn_implementation.*Did you mean `sdpa`"):
        run(options("sft", attn_implementation="spda"))
