"""Whether a hub id can be fetched at all, found out in three seconds and without torch.

The hub's own library tries again and again where there is no network, for a minute and with a screen of traceback.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from espalier.errors import UserError

SECONDS = 2.5
"""How long the hub has to answer; looking up its name counts too."""

_TRUE = ("1", "on", "yes", "true")


@cache
def check_reachable(name: str, kind: str = "models") -> None:
    """Nothing, where a name is a path, was fetched before, or the hub answers.

    Args:
        name: a path or a hub id.
        kind: models or datasets.

    Raises:
        UserError: nothing is here by this name, and it cannot be fetched.
    """
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or _is_kept(name, kind):
        return
    here = f"{name}: no such folder here, and not in the hub's cache ({_cache()})"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise UserError(
            f"{here}; HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']} forbids to fetch it. Unset it, or give a folder."
        )
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    trouble = _trouble(endpoint)
    if trouble:
        raise UserError(
            f"{here}; {endpoint} cannot be reached ({trouble}). Check the name and the network, set HF_ENDPOINT to a "
            "mirror, or give a folder. HF_HUB_OFFLINE=1 never asks the network."
        )


def _cache() -> Path:
    """Where the hub's library keeps what it has fetched, by its own rules."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _is_kept(name: str, kind: str) -> bool:
    kept = _cache() / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    return kept.is_dir() and any(kept.iterdir())


def _trouble(endpoint: str) -> str | None:
    """Why an address does not answer; None where it does, whatever it says.

    In a thread, because the look-up of a name cannot be given a time limit.
    """
    found = ["no answer within 3 seconds"]

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=SECONDS).close()
        except urllib.error.HTTPError:  # an answer
            found.clear()
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            found[:] = (
                [] if isinstance(reason, ssl.SSLError) else [str(reason)]
            )  # other roots of trust than ours
        else:
            found.clear()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return found[0] if found else None
