"""FSDP2: weights, gradients and the optimiser's state cut over the ranks by torch's own `fully_shard`.

Each repeated block of a model is gathered when its forward or backward needs it; what lies outside of the blocks
(embeddings, last norm, heads) is gathered with the whole module, whose forward alone may be called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree

from espalier.models.forward import Outputs

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Shard
    from typing_extensions import TypeIs


def cut(module: nn.Module, device: str, *, offload: bool) -> nn.Module:
    """Cut a module in place over all ranks; its parameters are other objects afterwards.

    Args:
        module: as every rank has loaded it, the same on each.
        device: cpu or cuda.
        offload: the shares lie in the machine's memory and come to the GPU when they are gathered.
    """
    # Importing them takes time, which runs without them need not wait for.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    if Outputs not in _pytree.SUPPORTED_NODES:
        # Else FSDP does not find the tensors whose backward it waits for.
        _pytree.register_dataclass(Outputs)
    ranks = dist.get_world_size()
    mesh = init_device_mesh(device, (ranks,))
    policy = CPUOffloadPolicy(pin_memory=device == "cuda") if offload else OffloadPolicy()
    for part in (*blocks(module), module):
        fully_shard(part, mesh=mesh, offload_policy=policy, shard_placement_fn=lambda p: _cut_at(p, ranks))
    return module


def _cut_at(parameter: nn.Parameter, ranks: int) -> Shard | None:
    """Where a parameter is cut: at its first dimension (None), or where that is shorter than there are ranks, at one
    that can be divided evenly."""
    from torch.distributed.tensor import Shard

    if parameter.dim() < 2 or parameter.shape[0] >= ranks:
        return None
    return next((Shard(at) for at, size in enumerate(parameter.shape) if size % ranks == 0), None)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: the outermost lists of two or more modules of one class.

    >>> [
    ...     type(block).__name__
    ...     for block in blocks(nn.Sequential(nn.ModuleList([nn.Tanh(), nn.Tanh()]), nn.ReLU()))
    ... ]
    ['Tanh', 'Tanh']
    """
    for child in module.children():
        members = list(child) if isinstance(child, nn.ModuleList) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            yield from members
        else:
            yield from blocks(child)


def is_cut(module: nn.Module) -> bool:
    loaded = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def is_share(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor is this rank's share of a larger one."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, on every rank; a plain one as it is."""
    if not is_share(tensor):
        return tensor
    on_mesh: Any = tensor.to(
        tensor.device_mesh.device_type
    )  # offloaded shares can't be gathered where they lie
    full: Tensor = on_mesh.full_tensor()
    return full


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, sharded (and placed) like another one."""
    if not is_share(model):
        return tensor.to(model.device)
    from torch.distributed.tensor import distribute_tensor

    made = distribute_tensor(
        tensor.to(model.device_mesh.device_type), model.device_mesh, model.placements, src_data_rank=None
    )
    return made.to(model.device)


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor, all of it where it is not sharded."""
    return tensor.to_local() if is_share(tensor) else tensor
