"""One process, or several under torchrun with PyTorch's FSDP2."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from hotset.errors import HostError, UsageError


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes."""
        if self.ranks > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= self.ranks
        return value

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process; all must ask at the same place."""
        if self.ranks == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        if self.ranks > 1:
            dist.barrier()


def join(device: str) -> World:
    """The processes that torchrun started, or this one alone. Raises: UsageError, HostError (no such device)."""
    rank, ranks, local = (
        int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise HostError("--device cuda: PyTorch finds no GPU here; use --device cpu, or install a build with CUDA")
    try:
        chosen = torch.device(f"cuda:{local}" if device == "cuda" else device)
    except RuntimeError:
        raise UsageError(f"--device {device[:40]!r}: want auto, cpu or cuda") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if ranks > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, ranks, chosen)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(model: Any, world: World) -> None:
    """Splits the parameters of a transformers model over the processes, layer by layer; in place."""
    model.to(world.device)
    if world.ranks == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sync_gradients(model: Any, world: World, wanted: bool) -> None:
    """Whether the next backward pass adds up gradients of all processes; only the last one of a step needs to."""
    if world.ranks > 1:
        model.set_requires_gradient_sync(wanted)
