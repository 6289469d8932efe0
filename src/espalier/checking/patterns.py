"""Regular expressions and JSON schemas, as the process that tries them sees it: both may take for ever."""

from __future__ import annotations

import json
import re
from typing import Any


def found(pattern: str, whole: bool, text: str) -> float:
    """1.0 where a regular expression is found in a text, or matches all of it; else 0.0."""
    return float((re.fullmatch if whole else re.search)(pattern, text) is not None)


def fits(schema: Any, text: str) -> float:
    """1.0 where a JSON text is what a schema allows, else 0.0; the schema has been checked."""
    import jsonschema

    kind = jsonschema.validators.validator_for(schema)
    return float(kind(schema).is_valid(json.loads(text)))
