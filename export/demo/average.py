"""Write the mean of checkpoints, which errs less than each: ``python -m edgeglm.export.demo.average A B --out C``.

All are of one shape and have the same tokenizer, and are near each other, as stages are that follow one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import click
import torch
from torch import Tensor

from edgeglm.export.demo.model import save
from edgeglm.export.evaluate.original.whole import WholeOriginal

GENERATION = "generation_config.json"


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of weights, in fp32. Raises click.UsageError if they are of other shapes."""
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise click.UsageError("the checkpoints are not of one shape: give checkpoints of one run")
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write into.")
def main(checkpoints: tuple[Path, ...], out: Path) -> None:
    """Write the mean of CHECKPOINTS, in fp16, with the first one's tokenizer."""
    agents = [WholeOriginal.load(folder) for folder in checkpoints]
    first = agents[0]
    if any(agent.tokenizer.get_vocab() != first.tokenizer.get_vocab() for agent in agents):
        raise click.UsageError("the checkpoints have other words: give checkpoints of one run")
    first.model.load_state_dict(mean([agent.model.state_dict() for agent in agents]))
    save(first.model.half(), first.tokenizer, out)
    copyfile(checkpoints[0] / GENERATION, out / GENERATION)  # that in memory has the settings of an evaluation


if __name__ == "__main__":
    main()
