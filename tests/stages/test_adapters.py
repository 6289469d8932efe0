"""Every kind of adapter in every stage: the first step, what is saved, what goes on, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier
from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters.adapter import is_adapted, kind_of
from espalier.models.saved import read_scalar_head
from tests.stages.conftest import far, rows, run, weights

Make = Callable[..., dict[str, Any]]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"finetuning_type": "lora", "lora_dropout": 0.1},
    "dora": {"finetuning_type": "lora", "use_dora": True, "use_rslora": True, "lora_target": ["auto"]},
    "pissa": {"finetuning_type": "lora", "pissa_init": True, "lora_rank": 4},
    "vocabulary": {"finetuning_type": "lora", "lora_alpha": 4, "lora_target": ["all", "embed_tokens", "lm_head"]},
    "bias": {"finetuning_type": "lora", "lora_bias": "all"},
    "adalora": {"finetuning_type": "adalora", "adalora_init_r": 4, "adalora_target_r": 2, "adalora_tinit": 1,
                "adalora_tfinal": 1, "adalora_delta_t": 1},
    "ia3": {"finetuning_type": "ia3"},
    "prompt": {"finetuning_type": "prompt", "num_virtual_tokens": 3, "prompt_init_text": "Answer:"},
    "p_tuning": {"finetuning_type": "p_tuning", "num_virtual_tokens": 3, "prompt_encoder_hidden_size": 16},
    "prefix": {"finetuning_type": "prefix", "num_virtual_tokens": 3},
    "projected": {"finetuning_type": "prefix", "num_virtual_tokens": 3, "prefix_projection": True,
                  "prompt_encoder_hidden_size": 16},
}  # fmt: skip
MERGED = ("lora", "dora", "pissa", "vocabulary", "bias", "adalora", "ia3")


def saved(options: dict[str, Any]) -> str:
    return str(Path(options["output_dir"]) / options.get("name", options["stage"]) / "model")


def first(options: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in rows(options) if "loss" in row)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sft_trains_saves_and_loads_again(kind: str, options: Make) -> None:
    chosen = options("sft", **KINDS[kind], max_steps=6, learning_rate=1e-2)
    summary = run(chosen)
    assert summary["layout"] == "tree"
    # words that were learned beside the weights are few; what all share is that they learn
    assert summary["held_out"]["after"] < summary["held_out"]["before"]
    base = sum(p.numel() for p in load.load_lm(chosen["model_name_or_path"]).parameters())
    assert 0 < summary["trainable_parameters"] < base
    model, tokenizer = espalier.load_model(saved(chosen))
    assert is_adapted(model) == (kind not in MERGED)
    (score,) = espalier.score(model, tokenizer, "What is 1 + 1?", [" 2"])
    plain, _ = espalier.load_model(chosen["model_name_or_path"])
    assert score != espalier.score(plain, tokenizer, "What is 1 + 1?", [" 2"])[0]
    ((said,),) = espalier.generate(model, tokenizer, ["Hello"], max_new_tokens=4, temperature=0)
    assert said.tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dpo_begins_at_the_loss_of_equals(kind: str, options: Make) -> None:
    chosen = options("dpo", **KINDS[kind] | {"lora_dropout": 0.0}, max_steps=3)
    run(chosen)
    assert first(chosen)["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows(chosen)[-2].get("loss", first(chosen)["loss"]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "vocabulary", "adalora", "ia3", "prompt", "prefix"])
def test_the_reward_head_is_trained_and_saved_with_the_adapter(kind: str, options: Make) -> None:
    chosen = options("reward", **KINDS[kind], max_steps=3, learning_rate=1e-2)
    run(chosen)
    head = read_scalar_head(saved(chosen))
    assert head is not None and head.weight.shape == (1, 32)
    assert abs(first(chosen)["margin"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kind"),
    [("ppo", kind) for kind in ("lora", "bias", "adalora", "p_tuning", "prefix")]
    + [("grpo", kind) for kind in ("dora", "ia3", "prompt", "projected")],
)
def test_policy_and_reference_agree_at_the_first_step(stage: str, kind: str, options: Make) -> None:
    chosen = options(stage, **KINDS[kind] | {"lora_dropout": 0.0}, max_steps=4)
    run(chosen)
    row = first(chosen)
    assert row["ratio"] == pytest.approx(1, abs=1e-4)
    assert row["kl"] == pytest.approx(0, abs=1e-3)
    if stage == "ppo":
        assert read_scalar_head(saved(chosen).replace("model", "critic")) is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_of_an_adapter_that_goes_on_is_that_adapter(kind: str, options: Make) -> None:
    old = options("sft", **KINDS[kind] | {"lora_dropout": 0.0}, max_steps=3, learning_rate=3e-2, name="old")
    run(old)
    for stage in ("dpo", "grpo") if kind in ("lora", "prefix") else ("dpo",):
        go_on = options(
            stage, **KINDS[kind] | {"lora_dropout": 0.0, "prompt_init_text": None, "prefix_projection": False},
            adapter_name_or_path=saved(old), max_steps=3, learning_rate=3e-2, name=stage,
        )  # fmt: skip
        run(go_on)
        row = first(go_on)
        if stage == "dpo":
            assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)
            later = [r["loss"] for r in rows(go_on) if "loss" in r]
            assert abs(later[-1] - math.log(2)) > 1e-4
        else:
            assert row["kl"] == pytest.approx(0, abs=1e-3)
        settings = json.loads((Path(saved(go_on)) / "adapter_config.json").read_text("utf-8"))
        assert settings["base_model_name_or_path"] == old["model_name_or_path"]
        before, _ = espalier.load_model(saved(old))
        after, tokenizer = espalier.load_model(saved(go_on))
        ids = torch.tensor([tokenizer.encode("What is 1 + 1?")])
        gap = before(input_ids=ids).logits - after(input_ids=ids).logits
        assert 0 < gap.abs().max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "pissa", "adalora", "ia3", "prompt", "p_tuning", "prefix"])
def test_a_stopped_run_goes_on_to_the_last_bit(kind: str, options: Make, tmp_path: Path) -> None:
    whole = options("sft", **KINDS[kind], max_steps=6, learning_rate=1e-2, output_dir=str(tmp_path / "whole"))
    run(whole)
    cut = options("sft", **KINDS[kind], max_steps=6, learning_rate=1e-2, output_dir=str(tmp_path / "cut"))
    cut |= {"save_steps": 2}

    class Enough(Exception):
        pass

    import espalier.runs.resume as resume

    original, seen = resume.checkpoint.save_checkpoint, []

    def save(*args: Any) -> Path:
        made = original(*args)
        seen.append(made)
        if len(seen) == 2:
            raise Enough
        return made

    resume.checkpoint.save_checkpoint = save
    try:
        with pytest.raises(Enough):
            run(cut)
    finally:
        resume.checkpoint.save_checkpoint = original
    run(cut)
    assert far(weights(whole), weights(cut)) == 0
    settings = [json.loads((Path(saved(o)) / "adapter_config.json").read_text("utf-8")) for o in (whole, cut)]
    assert settings[0].get("rank_pattern") == settings[1].get("rank_pattern")
    assert bool(settings[0].get("rank_pattern")) == (kind == "adalora")


def logits(folder: str) -> torch.Tensor:
    model, tokenizer = espalier.load_model(folder)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokenizer.encode("What is 1 + 1? 床前明月光")])).logits[0]
    return out[-8:]


@pytest.mark.slow
def test_adapters_stack_and_the_last_goes_on(options: Make) -> None:
    """[a, b]: a is merged, b is trained on; with create_new_adapter both are merged and a third begins."""
    a = options("sft", finetuning_type="lora", max_steps=3, learning_rate=3e-2, name="a")
    run(a)
    b = options(
        "sft", finetuning_type="ia3", model_name_or_path=saved(a), max_steps=3, learning_rate=3e-2, name="b"
    )
    run(b)
    folders = [saved(a), saved(b)]
    for changes in (
        {"finetuning_type": "ia3"},
        {"finetuning_type": "prefix", "num_virtual_tokens": 2, "create_new_adapter": True},
    ):
        name = changes["finetuning_type"]
        c = options("dpo", adapter_name_or_path=folders, max_steps=2, learning_rate=0.0, name=name, **changes)
        run(c)
        assert first(c)["loss"] == pytest.approx(math.log(2), abs=1e-4)
        model, _ = espalier.load_model(saved(c))
        assert kind_of(model) == ("prefix" if name == "prefix" else None)
        if name == "ia3":  # nothing was learned: base + a + b
            torch.testing.assert_close(logits(saved(c)), logits(saved(b)), rtol=1e-4, atol=1e-4)
        else:
            with model.disable_adapter():
                ids = torch.arange(5, 13)[None]
                plain, _ = espalier.load_model(saved(b))
                torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
    full = options(
        "sft",
        finetuning_type="full",
        adapter_name_or_path=folders,
        max_steps=1,
        learning_rate=0.0,
        name="full",
    )
    run(full)
    torch.testing.assert_close(logits(saved(full)), logits(saved(b)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_with_virtual_tokens_is_trained_on_wherever_it_is_named(options: Make) -> None:
    a = options("sft", **KINDS["prefix"], max_steps=3, learning_rate=3e-2, name="a")
    run(a)
    judge = options("reward", **KINDS["prefix"], max_steps=2, model_name_or_path=saved(a), name="judge")
    run(judge)
    chosen = options(
        "ppo", **KINDS["prefix"], model_name_or_path=saved(a), reward_model=saved(judge), max_steps=2
    )
    run(chosen)
    assert first(chosen)["ratio"] == pytest.approx(1, abs=1e-4)
    assert first(chosen)["kl"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(UserError, match=r"kind prefix, and finetuning_type is lora.*create_new_adapter"):
        run(options("sft", finetuning_type="lora", model_name_or_path=saved(a), name="b"))
    with pytest.raises(UserError, match="prefix cannot be merged"):
        run(
            options(
                "sft",
                finetuning_type="lora",
                adapter_name_or_path=saved(a),
                create_new_adapter=True,
                name="b",
            )
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finetuning_type": "adalora", "use_dora": True}, "`use_dora` belongs to finetuning_type: lora"),
        (
            {"finetuning_type": "lora", "prompt_init_text": "x"},
            "belongs to finetuning_type: prompt or prefix",
        ),
        ({"finetuning_type": "prefix", "gradient_checkpointing": True}, "computed again do not see"),
        ({"finetuning_type": "adalora", "strategy": "zero2"}, "weighs whole gradients.*strategy: ddp"),
        ({"finetuning_type": "prompt", "strategy": "fsdp"}, "virtual tokens are read outside"),
        ({"finetuning_type": "lora", "create_new_adapter": True}, "nothing to merge"),
        ({"finetuning_type": "adalora", "adalora_init_r": 8}, "has to be above adalora_target_r 8"),
        ({"finetuning_type": "adalora", "adalora_tinit": 3, "adalora_tfinal": 1}, "leave no step of 4"),
        (
            {"finetuning_type": "ia3", "lora_target": ["lm_head"]},
            "lm_head matches no linear layer: embeddings and head",
        ),
        ({"finetuning_type": "adalora", "pissa_init": True}, "`pissa_init` belongs to finetuning_type: lora"),
        (
            {
                "finetuning_type": "lora",
                "pissa_init": True,
                "quantization_bit": 8,
                "quantization_method": "cpm",
            },
            "`pissa_init` takes a part of each weight",
        ),
        ({"finetuning_type": "lora", "pissa_init": True, "use_dora": True}, "`use_dora` and `pissa_init`"),
        (
            {"finetuning_type": "lora", "lora_target": ["all", "lm_head"], "modules_to_save": ["lm_head"]},
            "lm_head is in lora_target and in modules_to_save",
        ),
        ({"finetuning_type": "lora", "lora_target": ["nowhere"]}, "nowhere matches no linear layer.*q_proj"),
        (
            {"finetuning_type": "freeze", "freeze_trainable_modules": ["nowhere"]},
            "nowhere matches no parameter.*self_attn",
        ),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3}, "has 2 blocks"),
        ({"finetuning_type": "full", "freeze_extra_modules": ["norm"]}, "belongs to finetuning_type: freeze"),
    ],
)
def test_what_does_not_go_together_is_said(changes: dict[str, Any], said: str, options: Make) -> None:
    with pytest.raises(UserError, match=said):
        run(options("sft", **changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"freeze_trainable_layers": 1}, ["model.layers.1."]),
        ({"freeze_trainable_layers": -1, "freeze_trainable_modules": ["mlp"]}, ["model.layers.0.mlp."]),
        ({"freeze_trainable_modules": ["self_attn.q_proj", ".*norm.*"]}, ["q_proj", "norm"]),
        (
            {"freeze_trainable_layers": 1, "freeze_extra_modules": ["model.norm"]},
            ["model.layers.1.", "model.norm"],
        ),
        ({"freeze_extra_modules": ["embed_tokens"]}, ["embed_tokens"]),
    ],
)
def test_named_weights_alone_are_trained(changes: dict[str, Any], moved: list[str], options: Make) -> None:
    chosen = options("sft", finetuning_type="freeze", max_steps=1, **changes)
    run(chosen)
    before = load.load_lm(chosen["model_name_or_path"]).state_dict()
    after = load.load_lm(saved(chosen)).state_dict()
    for name, tensor in before.items():
        if name != "lm_head.weight":  # tied
            assert torch.equal(tensor, after[name]) != any(part in name for part in moved), name


@pytest.mark.slow
def test_adalora_ends_with_the_ranks_that_were_asked_for(options: Make) -> None:
    chosen = options(
        "sft", finetuning_type="adalora", adalora_init_r=6, adalora_target_r=2, adalora_tinit=2, adalora_tfinal=3,
        adalora_delta_t=2, max_steps=12, learning_rate=1e-2,
    )  # fmt: skip
    run(chosen)
    settings = json.loads((Path(saved(chosen)) / "adapter_config.json").read_text("utf-8"))
    kept = [sum(ranks) for ranks in settings["rank_pattern"].values()]
    assert len(kept) == 14 and sum(kept) == 2 * 14 and len(set(kept)) > 1
    shapes = {k: t.shape[0] for k, t in weights(chosen).items() if k.endswith("lora_E")}
    assert sorted(shapes.values()) == sorted(kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adalora", "prompt", "bias"])
def test_micro_batches_do_not_change_what_is_learned(kind: str, options: Make, tmp_path: Path) -> None:
    found = []
    for size, pieces in ((8, 1), (2, 4)):
        chosen = options(
            "sft", **KINDS[kind], per_device_train_batch_size=size, gradient_accumulation_steps=pieces,
            output_dir=str(tmp_path / str(size)), learning_rate=1e-3,
        )  # fmt: skip
        run(chosen)
        found.append([row["loss"] for row in rows(chosen) if "loss" in row])
        found.append([row.get("orthogonality", 0.0) for row in rows(chosen) if "loss" in row])
    assert found[0] == pytest.approx(found[2], abs=1e-4)
    assert found[1] == pytest.approx(found[3], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "prompt", "ia3"])
def test_checkpointed_activations_change_nothing(kind: str, options: Make, tmp_path: Path) -> None:
    found = []
    for checkpointed in (False, True):
        chosen = options(
            "sft", **KINDS[kind] | {"lora_dropout": 0.0}, gradient_checkpointing=checkpointed,
            output_dir=str(tmp_path / str(checkpointed)), max_steps=3,
        )  # fmt: skip
        run(chosen)
        found.append(weights(chosen))
    assert far(*found) < 1e-5


def test_an_exam_with_virtual_tokens_scores_each_candidate_as_if_alone(options: Make) -> None:
    chosen = options("sft", **KINDS["prefix"], max_steps=2, learning_rate=3e-2)
    run(chosen)
    model, tokenizer = espalier.load_model(saved(chosen))
    prompt = "What is 1 + 1? Please say it. " * 12  # longer than the shortest text that exams keep as a trunk
    candidates = [" 2", " three", " 二"]
    together = espalier.score(model, tokenizer, prompt, candidates)
    for candidate, (total, tokens) in zip(candidates, together, strict=True):
        ((alone, n),) = espalier.score(model, tokenizer, prompt, [candidate])
        assert (alone, n) == (pytest.approx(total, abs=1e-4), tokens)


@pytest.mark.slow
def test_longer_positions_from_the_options_to_the_folder(options: Make) -> None:
    chosen = options("sft", finetuning_type="lora", rope_scaling="linear", cutoff_len=1000, max_steps=2)
    run(chosen)
    model, _ = espalier.load_model(saved(chosen))
    assert model.config.rope_parameters["rope_type"] == "linear"
    assert model.config.rope_parameters["factor"] == 4.0  # 1000 over 256, made whole
    assert load.context_length(model) == 1024
    later = options("dpo", finetuning_type="lora", model_name_or_path=saved(chosen), max_steps=1)
    run(later)
    assert load.context_length(espalier.load_model(saved(later))[0]) == 1024
    with pytest.raises(UserError, match="cutoff_len 128 fits into 256 positions"):
        run(options("sft", rope_scaling="yarn", name="short"))
