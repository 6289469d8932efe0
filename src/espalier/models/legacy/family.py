"""An old model family in one value: whose config.json is it, what becomes of it, and what is its own.

A family is one file in this folder, with its value in `FAMILIES` at the end, and its module's name in
`families.NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espalier.disk import reading
from espalier.models.legacy.conversion import Conversion

Config = Mapping[str, Any]


class ReadSizes(Protocol):
    """A configuration from the tensors themselves."""

    def __call__(self, folder: Path, *, allow_pickle: bool) -> dict[str, Any]: ...


@dataclass(frozen=True)
class VocabularyFiles:
    """A folder with a family's original tokenizer.

    Attributes:
        folder: where the files lie.
        settings: of tokenizer_config.json; {} without one.
        config: of config.json; {} without one.
    """

    folder: Path
    settings: Config
    config: Config

    @classmethod
    def of(cls, folder: Path) -> VocabularyFiles:
        """Raises UserError: a file that is not JSON."""
        return cls(folder, read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json"))

    def named(self, *names: str) -> bool:
        """Whether all of these files are there."""
        return all((self.folder / name).is_file() for name in names)

    @property
    def tokenizer_class(self) -> str:
        """The class that the original code reads them with; "" where nothing says it."""
        return str(self.settings.get("tokenizer_class", ""))

    @property
    def model_type(self) -> str:
        """Of the model beside them; "" where nothing says it."""
        return str(self.config.get("model_type", ""))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; {} without the file. Raises UserError: not JSON."""
    settings = reading.read_json(file) if file.is_file() else {}
    return settings if isinstance(settings, dict) else {}


@dataclass(frozen=True)
class Marks:
    """The special tokens by which a family is pretrained to fill blanks, as its tokenizer writes them.

    Attributes:
        start, end: before and behind what fills a blank.
        short, sentence, document: the blanks of short spans, of sentences and of a document's end; None: it has none.
        before: what stands before every text; None: nothing.
        shares: how often each kind of blank was drawn when it was made.
    """

    start: str
    end: str
    short: str
    sentence: str | None
    document: str
    before: str | None
    shares: tuple[float, float, float]

    @property
    def names(self) -> list[str]:
        """All of them."""
        every = (self.start, self.end, self.short, self.sentence, self.document, self.before)
        return [name for name in every if name is not None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known about a family.

    Attributes:
        name: as we call it.
        model_types: of its original config.json, in small letters.
        convert: that config.json to a model of today, see `Conversion`.
        owns: tells its config.json from others with the same model_type; the first family that says yes has it.
        tokenizer: its own tokenizer with its chat template and end token, from the original files; None for other
            folders.
        native: our own class, where transformers has not the architecture; its configuration says what may be done to
            its positions (`OwnPositions`).
        lora_targets: the layers that make queries and values, by model type, of our own class or of the code that
            comes with the original.
        marks: it finds the end of its prompt by marks among the ids, because it reads a prompt both ways; None:
            it does not.
        sizes: reads the configuration off the tensors, for a family whose checkpoints have none (a bare .pth file).
    """

    name: str
    model_types: tuple[str, ...]
    convert: Callable[[Config], Conversion]
    owns: Callable[[Config], bool] = lambda config: True
    tokenizer: Callable[[VocabularyFiles], PreTrainedTokenizerBase | None] = lambda files: None
    native: type[PreTrainedModel] | None = None
    lora_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marks: Marks | None = None
    sizes: ReadSizes | None = None

    @property
    def reads_marks(self) -> bool:
        return self.marks is not None

    @property
    def native_type(self) -> str | None:
        """The model type of our own class; None without one."""
        config = None if self.native is None else self.native.config_class
        return None if config is None else config.model_type
