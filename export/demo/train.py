"""Train the demo phone agent from nothing: ``python -m edgeglm.export.demo.train --out DIR``.

The stages are in `stages`. Every batch is made on the fly from its index; a stopped run goes on from its last state.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from edgeglm.export.demo.batches import Batches
from edgeglm.export.demo.losses import Helper, losses, vision_loss
from edgeglm.export.demo.metrics import Score, score
from edgeglm.export.demo.model import build_config, build_model, build_tokenizer, save
from edgeglm.export.demo.packing import Batch, Packer
from edgeglm.export.demo.pictures import Pictures
from edgeglm.export.demo.prompts import LANGUAGES, client_prompt
from edgeglm.export.demo.samples import make_sample
from edgeglm.export.demo.stages import STAGES, Stage
from edgeglm.export.evaluate.original.whole import Prompts, WholeOriginal
from edgeglm.export.evaluate.tasks.success import succeeds
from edgeglm.machine import read_machine

WEIGHT_DECAY = 0.02
BF16 = {"amx", "avx512_bf16", "bf16"}
VALIDATED = date(2026, 1, 1)  # the day in the prompts of the validation
Log = Callable[[dict[str, object]], None]


class Trainer:
    """Model, helper heads and optimizer; one `step` of a stage at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        self.device = device
        self.tokenizer, self.packer = tokenizer, Packer(tokenizer)
        self.model: Glm4vForConditionalGeneration = build_model(build_config(tokenizer))
        self.model.to(device)  # type: ignore[arg-type]
        self.helper = Helper(self.model, self.packer).to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), fused=True)

    def _groups(self) -> list[dict[str, object]]:
        """Return the parameter groups: matrices decay; vectors, token embeddings and the position table do not."""
        named = [*self.model.named_parameters(), *self.helper.named_parameters()]
        decays = [p.ndim >= 2 and "embed_tokens" not in n and "position_embedding" not in n for n, p in named]
        groups: dict[float, list[nn.Parameter]] = {WEIGHT_DECAY: [], 0.0: []}
        for (_, parameter), decay in zip(named, decays, strict=True):
            groups[WEIGHT_DECAY if decay else 0.0].append(parameter)
        return [{"params": group, "weight_decay": decay} for decay, group in groups.items()]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model and of the helper heads."""
        return [*self.model.parameters(), *self.helper.parameters()]

    def _autocast(self) -> AbstractContextManager[object]:
        # A processor without bf16 emulates it, ten times slower than fp32.
        is_fast = self.device.type != "cpu" or not BF16.isdisjoint(read_machine().cpu_features)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_fast)

    def step(self, stage: Stage, number: int, batch: Batch | Pictures) -> dict[str, float]:
        """Take step `number` of a stage, and return the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(number)
        with self._autocast():
            loss, report = self._loss(stage, number, batch.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return report

    def _loss(self, stage: Stage, number: int, batch: Batch | Pictures) -> tuple[Tensor, dict[str, float]]:
        if isinstance(batch, Pictures):
            loss = vision_loss(self.model, self.helper, batch)
            return loss, {"helper": loss.item()}
        both = losses(self.model, self.helper, batch, number % stage.learns_prompt == 0)
        loss = both.answer + stage.helper_weight(number) * both.helper
        return loss, {"answer": both.answer.item(), "helper": both.helper.item()}

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        parts = ("model", "helper", "optimizer")
        return {part: getattr(self, part).state_dict() for part in parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        for part, values in state.items():
            getattr(self, part).load_state_dict(values)


def validate(agent: WholeOriginal, count: int) -> dict[str, tuple[Score, list[tuple[str, str, str]]]]:
    """Score `agent` on fresh screens of the validation split, never trained on and never shipped, in each form."""
    systems = {"short": "", **{language: client_prompt(language, VALIDATED) for language in LANGUAGES}}
    return {form: _validate(agent, count, system) for form, system in systems.items()}


def _validate(agent: WholeOriginal, count: int, system: str) -> tuple[Score, list[tuple[str, str, str]]]:
    samples = [make_sample("validation", index, system) for index in range(count)]
    prompts, expected = [sample.prompt for sample in samples], [sample.expected for sample in samples]
    answers = list(agent.answer([sample.image for sample in samples], [sample.messages for sample in samples]))
    triples = zip(prompts, expected, answers, strict=True)
    wrong = [(prompt, want.response, got) for prompt, want, got in triples if not succeeds(want, got)]
    return score(expected, answers), wrong


@dataclass
class Run:
    """A training in a folder, from its saved state where there is one.

    Args:
        out: The folder, of the state, the tokenizer, the checkpoint.
        stages: One after another.
        every: Steps after which the state is saved.
        samples: Validation screens after each stage with answers and each `every` steps of the last one; 0 for none.
        log: Takes reports.
        workers: Processes that make the batches; this one does if 0.
        checkpoint: A new run begins with its model and tokenizer instead of nothing.
    """

    out: Path
    stages: Sequence[Stage]
    every: int
    samples: int
    log: Log
    workers: int = 1
    checkpoint: Path | None = None

    def train(self) -> Trainer:
        """Train, and return the trainer.

        Raises:
            click.UsageError: The saved state is of another stage, or of the same with other settings.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(self._tokenizer(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        first, done = self._restore(trainer)
        for stage in self.stages[first:]:
            self._train(trainer, stage, done)
            done = 0
        return trainer

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer with which the run began, so that later changes of the data leave it as it is."""
        folder = self.out / "tokenizer"
        if not folder.exists():
            (_load_tokenizer(self.checkpoint) if self.checkpoint else build_tokenizer()).save_pretrained(folder)
        return _load_tokenizer(folder)

    def _restore(self, trainer: Trainer) -> tuple[int, int]:
        """Return the stage to go on with, and how many of its steps are done."""
        file = self.out / "state.pt"
        if not file.exists():
            if self.checkpoint:
                trainer.model.load_state_dict(WholeOriginal.load(self.checkpoint).model.state_dict())
            return 0, 0
        state = torch.load(file, weights_only=True, map_location=trainer.device)
        names = [stage.name for stage in self.stages]
        saved, done = state.pop("stage"), state.pop("done")
        index = names.index(saved["name"]) if saved["name"] in names else -1
        if done == saved["steps"] and index + 1 < len(names):
            index, done = index + 1, 0
        elif index < 0 or _plain(self.stages[index]) != saved:
            raise click.UsageError("the saved state belongs to another plan: use the same stages or another --out")
        trainer.restore(state)
        self.log({"resumed": self.stages[index].name, "at": done})
        return index, done

    def _train(self, trainer: Trainer, stage: Stage, done: int) -> None:
        started, first = time.perf_counter(), done
        for batch in self._loader(trainer, stage, done):
            report: dict[str, object] = dict(trainer.step(stage, done, batch))
            done += 1
            if done % 25 == 0:
                minutes = (time.perf_counter() - started) / (done - first) / 60
                head = {"stage": stage.name, "step": done, "of": stage.steps}
                self.log({**head, **report, "minutes_left": (stage.steps - done) * minutes})
            if done % self.every == 0 or done == stage.steps:
                self._save(trainer, stage, done)
                if self.samples and stage.kind == "answers" and (done == stage.steps or stage is self.stages[-1]):
                    self.log(self._validation(trainer))

    def _loader(self, trainer: Trainer, stage: Stage, done: int) -> Iterator[Batch | Pictures]:
        batches, order = Batches(trainer.packer, "train", stage), range(done, stage.steps)
        return iter(DataLoader(batches, sampler=order, batch_size=None, num_workers=self.workers))

    def _save(self, trainer: Trainer, stage: Stage, done: int) -> None:
        partial = self.out / "state.partial"
        torch.save({"stage": _plain(stage), "done": done, **trainer.state()}, partial)
        partial.replace(self.out / "state.pt")
        save(trainer.model, trainer.tokenizer, self.out / "checkpoint")

    def _validation(self, trainer: Trainer) -> dict[str, object]:
        trainer.model.eval()
        agent = WholeOriginal(trainer.model, Prompts.load(self.out / "checkpoint"))
        results = validate(agent, self.samples)
        trainer.model.train()
        scores = {form: asdict(result) for form, (result, _) in results.items()}
        return {"validation": scores, "wrong": {form: wrong[:5] for form, (_, wrong) in results.items()}}


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def _plain(stage: Stage) -> dict[str, object]:
    """Return a stage's settings as a saved state has them."""
    return dict(asdict(stage))


def _show(record: dict[str, object], file: Path) -> None:
    record = {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}
    with file.open("a") as log:
        log.write(json.dumps(record, ensure_ascii=False) + "\n")
    end = "\r" if sys.stderr.isatty() and "step" in record else "\n"
    click.echo("  ".join(f"{name} {value}" for name, value in record.items()) + end, err=True, nl=False)


NAMES = [stage.name for stage in STAGES]


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="State, log, checkpoint.")
@click.option("--first", type=click.Choice(NAMES), help="The first stage to train, of a --checkpoint.")
@click.option("--until", type=click.Choice(NAMES), help="The last stage to train.")
@click.option("--every", default=200, show_default=True, help="Save every N steps; validate in the last stage.")
@click.option("--samples", default=256, show_default=True, help="Validation screens; 0 for none.")
@click.option("--workers", default=1, show_default=True, help="Processes that make batches; 0 for none of its own.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Begin with this model and words.",
)
def main(
    out: Path, first: str | None, until: str | None, every: int, samples: int, workers: int, checkpoint: Path | None
) -> None:
    """Train the demo phone agent; stop it any time and start it again to go on."""
    if bool(first) != bool(checkpoint):
        raise click.UsageError("--first and --checkpoint belong together: give both or neither")
    stages = STAGES[NAMES.index(first or NAMES[0]) : 1 + NAMES.index(until or NAMES[-1])]
    if not stages:
        raise click.UsageError(f"--until {until} is before --first {first}")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, stages, every, samples, lambda record: _show(record, out / "train.jsonl"), workers, checkpoint)
    trainer = run.train()
    save(trainer.model.half(), trainer.tokenizer, out / "checkpoint")


if __name__ == "__main__":
    main()
