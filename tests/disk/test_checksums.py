"""Any bit that flips is found, and what is merely read back is equal."""

from __future__ import annotations

import json
from pathlib import Path

from espalier.disk.checksums import fault, sum_of_json, sums_of


def test_every_bit_of_a_file_counts(tmp_path: Path) -> None:
    content = bytes(range(64))
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"")
    sums = json.loads(json.dumps(sums_of(tmp_path, ["a", "b"])))
    assert fault(tmp_path, sums) is None
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (tmp_path / "a").write_bytes(flipped)
            assert fault(tmp_path, sums) == "a is damaged: its checksum is another than when it was written"
    (tmp_path / "a").write_bytes(content[:-1])
    assert fault(tmp_path, sums) == "a has another size than when it was written (63 bytes, not 64)"
    (tmp_path / "a").unlink()
    assert fault(tmp_path, sums) == "a is missing"


def test_json_that_comes_back_is_the_same(tmp_path: Path) -> None:
    value = {"b": [0.1 + 0.2, 1e-30, None, True], "a": {10: "树", 2: "\ud800"}}
    assert sum_of_json(json.loads(json.dumps(value))) == sum_of_json(value)
    assert sum_of_json({"b": 1, "a": 2}) == sum_of_json({"a": 2, "b": 1}) != sum_of_json({"a": 2, "b": 1.5})
