"""The values of the old families: none is forgotten, and none claims what is another's."""

from __future__ import annotations

import re
from pathlib import Path

from espalier.models import legacy
from espalier.models.legacy.families import NAMES, families, native_family
from espalier.models.positions.own import OwnPositions


def test_every_module_with_families_is_asked() -> None:
    files = Path(legacy.__file__).parent.glob("*.py")
    with_families = {file.stem for file in files if re.search(r"^FAMILIES = ", file.read_text("utf-8"), re.M)}
    assert with_families == set(NAMES)


def test_names_are_told_apart() -> None:
    names = [family.name for family in families()]
    assert len(set(names)) == len(names)


def test_an_architecture_of_ours_has_its_own_type_and_says_what_others_ask() -> None:
    natives = [family for family in families() if family.native is not None]
    assert {family.native_type for family in natives} >= {"espalier_glm", "espalier_chatglm", "espalier_qwen"}
    for family in natives:
        kind = family.native_type
        assert kind is not None and kind.startswith("espalier_")
        assert native_family(kind) is not None and native_family(kind).native is family.native  # type: ignore[union-attr]
        assert kind in family.lora_targets
        assert issubclass(family.native.config_class, OwnPositions)  # type: ignore[union-attr, arg-type]
    assert native_family("llama") is None and native_family("glm") is None
