"""Processes that torchrun started and that recover a checkpoint together: a share of weights and lessons each (FSDP2).

A team of one is an ordinary process. What is stored is whole, so that a team of another size can go on with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous

from edgeglm.errors import UsageError
from edgeglm.process import die_with_parent

# What torchrun tells its processes.
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The others wait while the first one prunes, asks the teacher and judges.
MEETING, PATIENCE = timedelta(minutes=2), timedelta(days=7)
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a recovery, as one of them sees them: its number and how many they are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, prints and judges."""
        return self.rank == 0

    def shard(self, model: nn.Module, blocks: set[str]) -> None:
        """Give each process a share of every weight; of classes `blocks` one is whole at a time."""
        if self.size > 1:
            mesh = init_device_mesh("cpu", (self.size,))
            for block in [module for module in model.modules() if type(module).__name__ in blocks]:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def tell(self, value: T) -> T:
        """Return the leader's value in all processes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def most(self, count: int) -> int:
        """Return the largest count of all processes."""
        return int(self._reduced(count, dist.ReduceOp.MAX))

    def total(self, number: float) -> float:
        """Return the sum over all processes."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def _reduced(self, number: float, operation: Any) -> float:  # noqa: ANN401
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value, operation)
        return float(value)

    def weights(self, model: nn.Module) -> Mapping[str, Any]:
        """Return a model's weights whole; nothing to those that do not lead."""
        return get_model_state_dict(model, options=self._options())

    def moments(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """Return an optimizer's state whole, by the names of weights; nothing to those that do not lead."""
        return get_optimizer_state_dict(model, optimizer, options=self._options())

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Share out what the leader has stored: ``model`` and ``optimizer``."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.size > 1)
        set_model_state_dict(model, state.get("model", {}), options=options)
        set_optimizer_state_dict(model, optimizer, state.get("optimizer", {}), options=options)

    def _options(self) -> StateDictOptions:
        return StateDictOptions(full_state_dict=True, cpu_offload=self.size > 1)


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun started with this one, and end with it, until the block ends.

    Raises:
        UsageError: torchrun has not started it.
    """
    if any(name not in os.environ for name in TOLD):
        remedy = "run torchrun --nproc-per-node 2 -m edgeglm compress with the same options"
        raise UsageError("--distributed", "was not started by torchrun", remedy)
    die_with_parent()
    # torchrun answers at once or has ended, before the kernel was told to end this process with it.
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    team = Team(rank, size)
    try:
        yield team
    except RuntimeError as error:  # what gloo raises once the leader has ended, which says why itself
        if team.leads or "onnection closed" not in str(error):
            raise
    finally:
        dist.destroy_process_group()
