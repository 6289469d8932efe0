"""The group of processes that a run belongs to, and what all of them must agree on or add up."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in its __all__

_LOCAL = "LOCAL_RANK"
_said_by_us: list[str] = []


def join(*, cpu: bool, alone: bool = False) -> None:
    """Become a member of the group that the launcher has named; a second call changes nothing.

    A group over GPUs exchanges tensors of the machine's memory too, which sharded weights may lie in.

    Args:
        cpu: whether the processes compute on CPUs.
        alone: one process makes a group of itself, which sharding engines want, until `leave`; else it stays without.
    """
    if alone and _LOCAL not in os.environ:
        os.environ[_LOCAL] = "0"  # DeepSpeed asks for a launcher's word all the time
        _said_by_us.append(_LOCAL)
    if dist.is_initialized():
        return
    backend = "gloo" if cpu else "cuda:nccl,cpu:gloo"
    if not cpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group(backend)
    elif alone:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def leave() -> None:
    """One process that was a group of itself is no longer taken for one of several."""
    for key in _said_by_us:
        os.environ.pop(key, None)
    _said_by_us.clear()


def over_ranks(accelerator: Accelerator, sums: list[float]) -> list[float]:
    """The sums of all ranks, added up in float64; every rank gives as many and gets the same."""
    if accelerator.num_processes == 1:
        return sums
    totals = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
    total = accelerator.reduce(totals, reduction="sum")
    assert isinstance(total, torch.Tensor)
    return total.tolist()
