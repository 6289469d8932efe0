"""Some steps of a pipeline: those named, or all from one to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.config.build import Classes, canonical, listed, near
from espalier.config.file import RawConfig
from espalier.config.pipeline import references, split_pipeline
from espalier.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """Which steps of a pipeline run; without any name all of them.

    Attributes:
        only: names; they run in the order of the file.
        first, last: the names of the first and of the last step.
    """

    only: tuple[str, ...] = ()
    first: str | None = None
    last: str | None = None

    def __bool__(self) -> bool:
        return bool(self.only) or self.first is not None or self.last is not None

    def words(self) -> list[str]:
        """The options of the command line that say the same."""
        said = [("--only", name) for name in self.only]
        said += [("--from", self.first)] if self.first is not None else []
        said += [("--until", self.last)] if self.last is not None else []
        return [word for pair in said for word in pair if word is not None]

    def of(self, stages: Sequence[RawConfig]) -> list[RawConfig]:
        """Those of the stages that are chosen, in the order of the file.

        Args:
            stages: as `espalier.config.split_pipeline` gives them; or the one of a file that is no pipeline.

        Raises:
            UserError: a name that no step has; the first one after the last; steps chosen of a file with one stage.
        """
        if not self:
            return list(stages)
        if any("name" not in stage for stage in stages):
            raise UserError(
                f"{' '.join(self.words())}: this file is one stage, not a pipeline (`stages:`). Leave it out."
            )
        names = [str(stage["name"]) for stage in stages]
        errors = [
            f"{option} {name}: there is no such step.{near(name, names)} The steps: {', '.join(names)}."
            for option, name in zip(self.words()[::2], self.words()[1::2], strict=True)
            if name not in names
        ]
        if self.only and (self.first is not None or self.last is not None):
            errors.append("--only names the steps themselves. Leave out --from and --until, or --only.")
        if errors:
            raise UserError("\n".join(errors))
        if self.only:
            return [stage for stage in stages if stage["name"] in self.only]
        start = 0 if self.first is None else names.index(self.first)
        end = len(names) if self.last is None else names.index(self.last) + 1
        if start >= end:
            raise UserError(
                f"--from {self.first} comes after --until {self.last}. The steps: {', '.join(names)}."
            )
        return list(stages[start:end])


def planned(
    raw: RawConfig, all_classes: Mapping[str, Classes], chosen: Chosen
) -> tuple[list[RawConfig], Path]:
    """The stages of a file that run, and the run's folder.

    Args:
        raw: a pipeline, or one stage.
        all_classes: stage -> its option classes.

    Raises:
        UserError: as `split_pipeline` and `Chosen.of`; an input of the chosen ones is not made yet.
    """
    every = split_pipeline(raw, all_classes) if "stages" in raw else [raw]
    folder = Path(str(canonical(every[0])[0].get("output_dir", "runs/run")))
    stages = chosen.of(every)
    if chosen:
        check_made(stages, folder)
    return stages, folder


def check_made(chosen: Sequence[RawConfig], folder: Path) -> None:
    """What the chosen steps take from earlier ones that are not chosen must be there.

    Args:
        chosen: some stages of a pipeline, in order.
        folder: its output_dir.

    Raises:
        UserError: one for all that is not there, by the name of the step that makes it.
    """
    names = {str(stage["name"]) for stage in chosen}
    missing = [
        (
            f"{stage.where(key)} of {stage['name']} is run:{target}",
            target.partition("/")[0],
            made_at(target, folder),
        )
        for stage in chosen
        for key, value in stage.items()
        for target in references(value)
        if target.partition("/")[0] not in names and not made_at(target, folder).exists()
    ]
    if missing:
        lines = [f"{what}, and {maker} has not made it yet ({path})." for what, maker, path in missing]
        makers = " ".join(f"--only {maker}" for maker in dict.fromkeys(maker for _, maker, _ in missing))
        cure = f"Run that first ({makers}), or begin there with --from."
        raise UserError(listed("The chosen steps cannot begin:", [*lines, cure]))


def made_at(target: str, folder: Path) -> Path:
    """Where ``run:TARGET`` of a pipeline lies: the model of a step, or with ``NAME/rest`` what lies beside it."""
    name, _, rest = target.partition("/")
    return folder / name / (rest or "model")


def located(value: Any, folder: Path) -> Any:
    """A value with the paths in place of every ``run:NAME``, in lists and mappings too."""
    if isinstance(value, str) and value.startswith("run:"):
        return str(made_at(value.removeprefix("run:"), folder))
    if isinstance(value, dict):
        return {key: located(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [located(item, folder) for item in value]
    return value
