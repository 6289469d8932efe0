"""What a model's folder holds, as one short text for each file: equal texts, equal content.

A file below 64 MB stands for itself by a checksum of all its bytes. Larger ones (weights) are told apart by size, time
of writing and a checksum of both ends, so that a start does not read tens of gigabytes twice; a copy of such a file
must keep its time (``cp -p``, ``rsync -t``) to count as the same.
"""

from __future__ import annotations

from pathlib import Path

from espalier.disk.checksums import new_sum, sum_of_file
from espalier.disk.reading import object_or_nothing
from espalier.models.hub_revision import base_in

LARGE = 1 << 26
_ADAPTER = "adapter_config.json"
_END = 1 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OTHERS = (".json", ".model", ".txt", ".py", ".jinja", ".tiktoken", ".vocab")
_OF_TRAINERS = ("training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
"""What other trainers leave beside a model and nobody reads to load it."""


def model_identity(name: str) -> dict[str, str]:
    """File -> identity of a model's or an adapter's folder; of an adapter with its base, as ``base/FILE``.

    Of a hub id the commit that is in use; {} where that cannot be known.
    """
    identities: dict[str, str] = {}
    prefix, seen = "", set[str]()
    while name not in seen:
        seen.add(name)
        identities |= {
            prefix + file: identity for file, identity in _files(name, (*_WEIGHTS, *_OTHERS)).items()
        }
        base = base_in(object_or_nothing(Path(name) / _ADAPTER))
        if base is None:
            break
        name, prefix = base, prefix + "base/"
    return identities


def tokenizer_identity(name: str) -> dict[str, str]:
    """The same of what a tokenizer is read from: all but the weights."""
    identities = _files(name, _OTHERS)
    return {
        file: identity
        for file, identity in identities.items()
        if file != "generation_config.json" and "index" not in file
    }


def file_identity(path: Path) -> str:
    """Of one file; "missing" where it cannot be read."""
    try:
        state = path.stat()
        if state.st_size < LARGE:
            return f"xxh3 {sum_of_file(path)}"
        ends = new_sum()
        with path.open("rb", buffering=0) as stream:
            ends.update(stream.read(_END))
            stream.seek(-_END, 2)
            ends.update(stream.read(_END))
    except OSError:
        return "missing"
    return f"{state.st_size} bytes, written {state.st_mtime_ns}, ends {ends.hexdigest()}"


def _files(name: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    folder = Path(name).expanduser()
    if folder.is_file():
        return {folder.name: file_identity(folder)}
    if not folder.is_dir():
        commit = _commit(name)
        return {} if commit is None else {name: f"commit {commit}"}
    there = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    return {
        path.relative_to(folder).as_posix(): file_identity(path)
        for path in there
        if path.suffix in suffixes
        and path.is_file()
        and not path.name.startswith(".")
        and path.name not in _OF_TRAINERS
    }


def _commit(name: str) -> str | None:
    """The commit of a hub id that loading it now would use: files of the cache lie in ``snapshots/COMMIT/``."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for file in ("config.json", _ADAPTER, "tokenizer_config.json"):
        try:
            return Path(hf_hub_download(name, file)).parent.name
        except HFValidationError:
            return None
        except (OSError, ValueError, HfHubHTTPError):  # whoever loads it says what is wrong
            continue
    return None
