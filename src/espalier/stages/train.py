"""One stage, from its options to a model folder: the wiring around the one loop.

Running the same options again continues an interrupted run from its last checkpoint, and skips a finished
one whose options and inputs have not changed.
"""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from rich.console import Console

from espalier import config
from espalier.engine import checkpoint, files, strategy
from espalier.engine.hardware import choose_precision, device_name, keep_freed_memory
from espalier.engine.loop import Hooks, Progress, Schedule, Stopped, run_loop
from espalier.engine.optim import adamw, learning_rate_at
from espalier.engine.signals import StopSignal
from espalier.engine.track import Meter, Tracker, keep_rows
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.generate import Sampling, sample
from espalier.models.saved import save_model
from espalier.options import (
    COMMON,
    AdamOptions,
    AdapterOptions,
    EngineOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
)
from espalier.stages import dpo, grpo, ppo, pretrain, reward, sft
from espalier.stages.judge import judged
from espalier.stages.setup import Setup
from espalier.stages.stage import Live, Parts

STAGES: dict[str, ModuleType] = {
    "pretrain": pretrain,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "grpo": grpo,
}

CLASSES: dict[str, tuple[type, ...]] = {name: (*COMMON, *module.OPTIONS) for name, module in STAGES.items()}
"""The option classes of each stage."""

SAMPLED = ("ppo", "grpo")
SAMPLE_TOKENS = 64


def run_stage(raw: Mapping[str, Any], *, upstream: str = "") -> dict[str, Any]:
    """Run (or continue, or skip) one stage and return its summary.

    Args:
        raw: flat options, ``stage`` among them, as `espalier.config.load_yaml` gives them.
        upstream: fingerprint of the earlier stage that this one starts from.

    Raises:
        UserError: anything wrong with the user's options or data.
        Stopped: a signal came; the checkpoint is written.
    """
    stage = config.stage_of(raw, CLASSES)
    options = config.build(raw, CLASSES[stage], all_classes=CLASSES)
    notes = config.canonical(raw)[1]
    _check_strategy(stage, options)
    run: RunOptions = options[RunOptions]
    folder = Path(run.output_dir) / (run.name or stage)
    fingerprint = config.options_hash({"options": _meaning(options), "upstream": upstream})
    finished = _finished(folder, fingerprint)
    if finished is not None and run.resume:
        Console(stderr=True).print(f"[dim]{run.name or stage}: done already ({folder}), skipped[/]")
        return finished
    return _Run(stage, options, folder, fingerprint, notes).go()


def _check_strategy(stage: str, options: Mapping[type, Any]) -> None:
    """What cannot be done is said before anything is loaded."""
    not_yet = {
        "compile": options[EngineOptions].compile,
        "optim": options[TrainOptions].optim != "adamw",
        "rope_scaling": options[ModelOptions].rope_scaling is not None,
        "quantization_bit": options[AdapterOptions].quantization_bit is not None,
    }
    for key, asked in not_yet.items():
        if asked:
            raise UserError(
                f"`{key}` is known but not available yet, and is never ignored silently. Remove it."
            )
    sharded = options[EngineOptions].strategy in ("fsdp", "zero3")
    if sharded and options[AdapterOptions].finetuning_type == "lora" and stage in ("dpo", "ppo", "grpo"):
        raise UserError(
            f"finetuning_type: lora with strategy: {options[EngineOptions].strategy} is not possible in {stage}: "
            "its reference is the adapter switched off, inside a sharded model. Use strategy: ddp or zero2."
        )


def _meaning(options: Mapping[type, Any]) -> dict[str, Any]:
    """What the result depends on: all options but where it is written and how it is shown."""
    shown = {"output_dir", "resume", "report_to", "logging_steps", "save_steps", "save_total_limit"}
    flat = {k: v for held in options.values() for k, v in vars(held).items()}
    return {k: v for k, v in flat.items() if k not in shown}


def _finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    if summary.get("status") != "done" or summary.get("fingerprint") != fingerprint:
        return None
    same = all(files.file_hash(Path(name)) == sha for name, sha in summary["data"].items())
    return summary if same and (folder / "model").is_dir() else None


class _Run:
    """The state of one run of one stage."""

    def __init__(
        self, stage: str, options: dict[type, Any], folder: Path, fingerprint: str, notes: list[str]
    ) -> None:
        self.stage, self.options, self.folder = stage, options, folder
        self.fingerprint, self.notes = fingerprint, list(notes)
        self.run: RunOptions = options[RunOptions]
        self.train: TrainOptions = options[TrainOptions]
        self.engine: EngineOptions = options[EngineOptions]
        keep_freed_memory()
        self.accelerator = self._make_accelerator()
        self.console = Console(stderr=True, quiet=not self.accelerator.is_main_process)
        for note in notes:
            self.console.print(f"[yellow]{note}[/]")
        self.started = time.time()
        self.held_out: dict[str, Any] = {}

    def _make_accelerator(self) -> Accelerator:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = choose_precision(self.engine.precision, device)
        own = self.engine.deepspeed
        if isinstance(own, str):
            own = json.loads(Path(own).read_text("utf-8"))
        return strategy.make_accelerator(
            self.engine.strategy,
            self.precision,
            max_grad_norm=self.train.max_grad_norm,
            offload=self.engine.offload,
            deepspeed=own,
        )

    def say(self, text: str) -> None:
        self.notes.append(text)
        self.console.print(f"[dim]{self.run.name or self.stage}: {text}[/]", highlight=False)

    def go(self) -> dict[str, Any]:
        accelerator, main = self.accelerator, self.accelerator.is_main_process
        set_seed(self.run.seed)
        self.setup = Setup(
            self.options,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
            self.say,
            self.folder / "rejected.jsonl",
        )
        self.parts: Parts = STAGES[self.stage].build(self.setup)
        for cause, count in self.setup.account.items():
            self.say(f"{count} records {cause}")
        sharded = self.engine.strategy in ("fsdp", "zero3")
        sampler = copy.deepcopy(self.parts.main.lm) if sharded and self.stage in SAMPLED else None
        optimizer = self._optimizer()
        module, self.optimizer = accelerator.prepare(self.parts.trained, optimizer)
        self.live = Live(module, accelerator, sampler)
        self.feed = self.parts.feed(self.live)
        self.progress = Progress()
        self._resume()
        if main:
            self._write_config()
            keep_rows(self.folder / "samples.jsonl", self.progress.step)
        status = "stopped"
        self._write_summary("running")
        tracker = Tracker(
            self.folder,
            self.run.name or self.stage,
            self.feed.total_steps,
            self.run.report_to,
            main,
            resumed_step=self.progress.step,
        )
        try:
            with tracker, StopSignal() as stop:
                self._train(tracker, stop)
            status = "done"
        except Stopped as stopped:
            self.console.print(f"stopped at step {stopped.step}; run the same command again to continue")
            raise
        finally:
            if status != "done":
                self._write_summary("stopped")
        self._save_models()
        return self._write_summary("done")

    def _train(self, tracker: Tracker, stop: StopSignal) -> None:
        if self.progress.step == 0:
            tracker.log({"step": 0, **self._validate(0)})
        total = self.feed.total_steps
        warmup = self.train.warmup_steps or math.ceil(self.train.warmup_ratio * total)
        schedule = Schedule(
            learning_rate=lambda step: learning_rate_at(
                step,
                peak=self.train.learning_rate,
                kind=self.train.lr_scheduler_type,
                warmup_steps=warmup,
                total_steps=total,
            ),
            max_grad_norm=self.train.max_grad_norm,
            logging_steps=self.run.logging_steps,
            save_steps=self.run.save_steps,
            eval_steps=self.run.eval_steps or 0,
        )
        after = self.parts.after_step
        hooks = Hooks(
            save=self._save_checkpoint,
            validate=self._validate,
            after_step=(lambda step: after(self.live)) if after is not None else (lambda step: None),
        )
        run_loop(
            self.live.module,
            self.parts.objective,
            self.feed,
            self.optimizer,
            self.accelerator,
            tracker,
            schedule,
            hooks,
            self.progress,
            stop,
        )
        tracker.log({"step": self.progress.step, **self._validate(self.progress.step)})

    def _optimizer(self) -> torch.optim.Optimizer:
        adam: AdamOptions = self.options[AdamOptions]
        return adamw(
            self.parts.trained,
            learning_rate=self.train.learning_rate,
            weight_decay=self.train.weight_decay,
            betas=(adam.adam_beta1, adam.adam_beta2),
            eps=adam.adam_epsilon,
        )

    # --- held-out numbers -----------------------------------------------------------------------

    def _validate(self, step: int) -> dict[str, float]:
        self.setup.refresh_sampler(self.live, self.parts.main)
        with self.live.evaluating():
            units, numbers = self.parts.validate(self.live)
        meter = Meter()
        meter.add(numbers)
        found = {f"eval_{k}": v for k, v in meter.means(self._over_ranks).items()}
        estimate = judged(units, self.accelerator)
        if estimate is not None:
            name = self.parts.held_out.name
            found[f"eval_{name}"], found[f"eval_{name}_stderr"] = estimate.value, estimate.stderr
            when = "before" if step == 0 else "after"
            self.held_out.update(
                {
                    "name": name,
                    "better": self.parts.held_out.better,
                    when: estimate.value,
                    f"stderr_{when}": estimate.stderr,
                    "n": estimate.n,
                }
            )
        self._sample(step)
        return found

    def _over_ranks(self, sums: list[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return sums
        held = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(held, reduction="sum")
        return total.tolist()

    def _sample(self, step: int) -> None:
        """Show what the model says; the first rank does it, the others have nothing to add."""
        prompts = self.parts.sample_prompts
        sharded = self.engine.strategy in ("fsdp", "zero3") and self.live.sampler is None
        if not prompts or not self.accelerator.is_main_process or sharded:
            return
        lm = self.live.sampler or self.parts.main.lm
        room = SAMPLE_TOKENS if self.stage not in SAMPLED else self._new_tokens()
        sampling = Sampling(room, 0.0, stop=self.setup.stop)
        with self.accelerator.autocast():
            said = sample(lm, self.parts.main.traits, [p.tokens for p in prompts], sampling)
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for prompt, (answer,) in zip(prompts, said, strict=True):
                text = self.setup.tokenizer.decode(answer.tokens, skip_special_tokens=True)
                row = {"step": step, "prompt": prompt.text, "completion": text, "reference": prompt.reference}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _new_tokens(self) -> int:
        from espalier.stages.rollouts import RolloutOptions

        return self.options[RolloutOptions].max_new_tokens

    # --- checkpoints ----------------------------------------------------------------------------

    def _save_checkpoint(self, step: int) -> None:
        own = checkpoint.rng_to_tensors()
        rank = self.accelerator.process_index
        rngs = gather_object([(rank, own)]) if self.accelerator.num_processes > 1 else [(rank, own)]
        tensors = {
            "model": strategy.whole_parameters(self.accelerator, self.live.module),
            "optimizer": strategy.whole_moments(self.accelerator, self.live.module, self.optimizer),
            **{f"rng-{rank}": held for rank, held in rngs},
            **{f"average-{name}": dict(m.named_parameters()) for name, m in self.parts.averages.items()},
        }
        state = {
            "fingerprint": self.fingerprint,
            "progress": self.progress.state(),
            "feed": self.feed.place(),
            "held_out": self.held_out,
            "controllers": {name: held.state() for name, held in self.parts.controllers.items()},
        }
        if self.accelerator.is_main_process:
            checkpoint.save_checkpoint(self._checkpoints, step, tensors, state, self.run.save_total_limit)
        self.accelerator.wait_for_everyone()

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _resume(self) -> None:
        if self.run.resume is False:
            if self.accelerator.is_main_process:
                checkpoint.clear_checkpoints(self._checkpoints)
            self.accelerator.wait_for_everyone()
            return
        named = self.run.resume if isinstance(self.run.resume, str) else None
        found = Path(named) if named else checkpoint.latest_checkpoint(self._checkpoints)
        if found is None:
            return
        tensors, state = checkpoint.load_checkpoint(found)
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{found}: this checkpoint was written under other options than these. "
                "Restore them, set resume=false to start again, or choose another output_dir."
            )
        strategy.set_parameters(self.accelerator, self.live.module, tensors["model"])
        progress = state["progress"]
        strategy.set_moments(
            self.accelerator, self.live.module, self.optimizer, tensors["optimizer"], progress["step"]
        )
        for name, average in self.parts.averages.items():
            for key, parameter in average.named_parameters():
                parameter.data.copy_(tensors[f"average-{name}"][key])
        for name, held in self.parts.controllers.items():
            held.restore(state["controllers"][name])
        self.feed.restore(state["feed"])
        self.progress, self.held_out = Progress(**progress), state["held_out"]
        own = tensors.get(f"rng-{self.accelerator.process_index}")
        if own is not None:
            checkpoint.rng_from_tensors(own)
        self.say(f"continuing from step {self.progress.step} ({found})")

    # --- results --------------------------------------------------------------------------------

    def _save_models(self) -> None:
        whole = strategy.whole_parameters(self.accelerator, self.live.module)
        if self.accelerator.is_main_process:
            for name, model in {"model": self.parts.main, **self.parts.also_saved}.items():
                with files.new_folder(self.folder / name) as folder:
                    save_model(folder, model, self.setup.tokenizer, self._own(whole, model))
            checkpoint.clear_checkpoints(self._checkpoints)
        self.accelerator.wait_for_everyone()

    def _own(self, whole: dict[str, torch.Tensor], model: TreeModel) -> dict[str, torch.Tensor]:
        """The trained tensors of one model, by their names in it."""
        for name, module in self.live.inner.named_modules():
            if module is model:
                prefix = f"{name}." if name else ""
                return {k.removeprefix(prefix): t for k, t in whole.items() if k.startswith(prefix)}
        return {}

    def _write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.folder / "config.yaml", config.dump_yaml(self.options.values()))

    def _write_summary(self, status: str) -> dict[str, Any]:
        progress = self.progress
        summary = {
            "stage": self.stage,
            "name": self.run.name or self.stage,
            "status": status,
            "steps": progress.step,
            "total_steps": self.feed.total_steps,
            "seconds": round(progress.seconds, 2),
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started)),
            "device": device_name(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "strategy": self.engine.strategy,
            "precision": {"no": "fp32"}.get(self.precision, self.precision),
            "parameters": sum(p.numel() for p in self.parts.main.parameters()),
            "trainable_parameters": sum(
                p.numel() for p in self.parts.trained.parameters() if p.requires_grad
            ),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
                "espalier": version("espalier-llm"),
            },
            "seed": self.run.seed,
            "data": self.setup.hashes,
            "left_out": dict(self.setup.account),
            "layout": "padded" if self.setup.padded else "tree",
            "layout_reason": self.setup.layout_reason,
            "tokens_in_paths": progress.path_tokens,
            "tokens_in_rows": progress.tokens,
            "held_out": self.held_out,
            "final": {k: v for k, v in progress.last.items() if math.isfinite(v)},
            "notes": self.notes,
            "fingerprint": self.fingerprint,
        }
        if self.accelerator.is_main_process:
            files.write_json(self.folder / "summary.json", summary)
        return summary
