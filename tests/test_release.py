"""What a release says of itself, said once: version, date, licence, and the commands that its pages name."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import espalier

ROOT = Path(__file__).resolve().parents[1]
APACHE = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
"""Of the licence's text as its authors publish it."""


def test_the_version_and_its_date_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert project["version"] == espalier.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "Apache-2.0"
    dated = re.findall(
        r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert (espalier.__version__, str(citation["date-released"])) in dated


def test_the_licence_is_the_whole_text() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE


def test_addresses_are_whole_or_absent() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert all(address.startswith("https://") for address in project.get("urls", {}).values())


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", ".github/workflows/test.yml", ".github/pull_request_template.md"]
)
def test_make_targets_that_pages_name_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / page).read_text("utf-8")))
    assert "test" in named and named <= targets


def test_hooks_are_the_programs_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    checks = (ROOT / "Makefile").read_text("utf-8")
    for hook in hooks:
        assert hook["entry"].startswith(".venv/bin/")
        assert hook["entry"].replace(".venv/", "$(V").replace("$(Vbin", "$(BIN)") in checks


def test_the_forms_of_the_host_can_be_read() -> None:
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        head = yaml.safe_load(file.read_text("utf-8").split("---")[1])
        assert {"name", "about"} <= set(head)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": "make test"}
