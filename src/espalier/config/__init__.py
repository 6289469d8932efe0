"""Option dataclasses <-> flat YAML <-> command line.

The way in: `load_yaml` (a mapping that knows its lines) -> `split_pipeline` where it has stages -> `stage_of` ->
`build` (every problem in one message, before anything is loaded); `canonical` gives our names and the notes to show.
The way back: `dump_yaml` (the run as it ran), `options_hash` (is a stage unchanged?), `describe` (help and docs).
"""

from espalier.config.build import build, canonical, stage_of
from espalier.config.chosen import Chosen, check_made, located, planned
from espalier.config.file import RawConfig, load_yaml
from espalier.config.names import IGNORED, SYNONYMS
from espalier.config.option_set import OptionSet
from espalier.config.pipeline import split_pipeline
from espalier.config.write import OptionRow, describe, dump_yaml, options_hash

__all__ = [
    "IGNORED",
    "SYNONYMS",
    "Chosen",
    "OptionRow",
    "OptionSet",
    "RawConfig",
    "build",
    "canonical",
    "check_made",
    "describe",
    "dump_yaml",
    "load_yaml",
    "located",
    "options_hash",
    "planned",
    "split_pipeline",
    "stage_of",
]
