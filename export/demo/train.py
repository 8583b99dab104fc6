"""Train the demo phone agent from nothing: ``python -m edgeglm.export.demo.train --out DIR``.

Four stages: the vision tower alone on what stands where, whole answers, questions that only point, answers again.
Every batch is made on the fly from its index; a stopped run goes on from its last state.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from edgeglm.export.demo.batches import Batch, Batches, Packer, Recipe
from edgeglm.export.demo.losses import Helper, losses, vision_loss
from edgeglm.export.demo.metrics import Score, score
from edgeglm.export.demo.model import build_config, build_model, build_tokenizer, save
from edgeglm.export.demo.samples import make_sample
from edgeglm.export.evaluate.original.whole import Prompts, WholeOriginal
from edgeglm.export.evaluate.tasks.success import succeeds


@dataclass(frozen=True)
class Plan:
    """Length and shape of a training run; the learning rate stays up, and in the last stage falls to 2%."""

    vision_steps: int = 4000
    early_steps: int = 1600  # of answers, before the stage that only points
    pointing_steps: int = 750
    steps: int = 2500
    images: int = 16
    pointing_questions: int = 16
    questions: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warm_up: int = 100
    sparse: int = 400  # first steps, on screens with few elements
    helper: float = 0.5  # weight of the helper losses in the last stage, falling to a fifth of it

    @property
    def before_last(self) -> int:
        """Steps of all stages but the last."""
        return self.vision_steps + self.early_steps + self.pointing_steps

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.before_last + self.steps

    def rate(self, step: int) -> float:
        """Return the learning rate at `step`, counted over all stages."""
        if step < self.before_last:
            return self.learning_rate * min(1.0, (step + 1) / 50)
        step -= self.before_last
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (0.02 + 0.98 * cosine)

    def helper_weight(self, step: int) -> float:
        """Return the weight of the helper losses at `step` of all stages: all of it before the last one, then less."""
        if step < self.before_last:
            return 1.0
        return self.helper * (1 - 0.8 * (step - self.before_last) / self.steps)

    def recipe(self, step: int) -> Recipe:
        """Return the content of the batch of `step`: the vision stage asks only the one question a batch must have."""
        if step < self.vision_steps:
            return Recipe(self.images, 1, sparse=step < self.sparse)
        if self.vision_steps + self.early_steps <= step < self.before_last:
            return Recipe(self.images, self.pointing_questions, answers=False)
        return Recipe(self.images, self.questions)


class Trainer:
    """Model, helper heads and optimizer; one `step` at a time."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.tokenizer, self.packer = tokenizer, Packer(tokenizer)
        self.model: Glm4vForConditionalGeneration = build_model(build_config(tokenizer))
        self.model.to(device)  # type: ignore[arg-type]
        self.helper = Helper(self.model, self.packer).to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
        self.done = 0

    def _groups(self) -> list[dict[str, object]]:
        """Return the parameter groups: matrices decay; vectors, token embeddings and the position table do not."""
        named = [*self.model.named_parameters(), *self.helper.named_parameters()]
        decays = [p.ndim >= 2 and "embed_tokens" not in n and "position_embedding" not in n for n, p in named]
        groups: dict[float, list[nn.Parameter]] = {self.plan.weight_decay: [], 0.0: []}
        for (_, parameter), decay in zip(named, decays, strict=True):
            groups[self.plan.weight_decay if decay else 0.0].append(parameter)
        return [{"params": group, "weight_decay": decay} for decay, group in groups.items()]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model and of the helper heads."""
        return [*self.model.parameters(), *self.helper.parameters()]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16)

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one optimizer step and return the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.done)
        batch = _to(batch, self.device)
        with self._autocast():
            loss, report = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return report

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        if self.done < self.plan.vision_steps:
            loss = vision_loss(self.model, self.helper, batch)
            return loss, {"helper": loss.item()}
        both = losses(self.model, self.helper, self.packer, batch)
        loss = both.answer + self.plan.helper_weight(self.done) * both.helper
        return loss, {"answer": both.answer.item(), "helper": both.helper.item()}

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs."""
        return {
            "plan": asdict(self.plan),
            "done": self.done,
            "model": self.model.state_dict(),
            "helper": self.helper.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; refuses a state of another plan."""
        if state["plan"] != asdict(self.plan):
            raise click.UsageError("the saved state belongs to another plan: use the same options or another --out")
        self.model.load_state_dict(state["model"])
        self.helper.load_state_dict(state["helper"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]


def _to(batch: Batch, device: torch.device) -> Batch:
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    cells = replace(batch.elements, cells=batch.elements.cells.to(device), inside=batch.elements.inside.to(device))
    return replace(batch, elements=cells, **moved)


def validate(agent: WholeOriginal, count: int) -> tuple[Score, list[tuple[str, str, str]]]:
    """Score `agent` on the validation split: fresh screens, never trained on and never shipped."""
    samples = [make_sample("validation", index) for index in range(count)]
    prompts, expected = [sample.prompt for sample in samples], [sample.expected for sample in samples]
    answers = list(agent.answer([sample.image for sample in samples], [sample.messages for sample in samples]))
    triples = zip(prompts, expected, answers, strict=True)
    wrong = [(prompt, want.response, got) for prompt, want, got in triples if not succeeds(want, got)]
    return score(expected, answers), wrong


def _loader(trainer: Trainer, workers: int) -> Iterator[Batch]:
    batches = Batches(trainer.packer, "train", trainer.plan.recipe)
    order = range(trainer.done, trainer.plan.total)
    return iter(DataLoader(batches, sampler=order, batch_size=None, num_workers=workers))


def _save_state(trainer: Trainer, file: Path) -> None:
    partial = file.with_suffix(".partial")
    torch.save(trainer.state(), partial)
    partial.replace(file)


def train(
    plan: Plan,
    out: Path,
    every: int,
    samples: int,
    log: Callable[[dict[str, object]], None],
    checkpoint: Path | None = None,
) -> Trainer:
    """Run `plan` in `out`, from its saved state where there is one; save and validate `every` steps.

    With `checkpoint`, a new run begins with that model and tokenizer instead of nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint) if checkpoint else build_tokenizer()
    trainer = Trainer(plan, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if checkpoint:
        trainer.model.load_state_dict(WholeOriginal.load(checkpoint).model.state_dict())
    saved = out / "state.pt"
    if saved.exists():
        trainer.restore(torch.load(saved, weights_only=True, map_location=trainer.device))
        log({"resumed_at": trainer.done})
    started, first = time.perf_counter(), trainer.done
    for batch in _loader(trainer, workers=1):
        report: dict[str, object] = dict(trainer.step(batch))
        if trainer.done % 25 == 0:
            pace = (time.perf_counter() - started) / (trainer.done - first)
            log(
                {
                    "step": trainer.done,
                    "of": plan.total,
                    **report,
                    "minutes_left": (plan.total - trainer.done) * pace / 60,
                }
            )
        if trainer.done % every == 0 or trainer.done == plan.total:
            _save_state(trainer, saved)
            save(trainer.model, tokenizer, out / "checkpoint")
            if trainer.done > plan.before_last and samples:
                log(_validation(trainer, out / "checkpoint", samples))
    return trainer


def _validation(trainer: Trainer, folder: Path, samples: int) -> dict[str, object]:
    trainer.model.eval()
    result, wrong = validate(WholeOriginal(trainer.model, Prompts.load(folder)), samples)
    trainer.model.train()
    return {"validation": asdict(result), "wrong": wrong[:8]}


def _show(record: dict[str, object], file: Path) -> None:
    record = {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}
    with file.open("a") as log:
        log.write(json.dumps(record, ensure_ascii=False) + "\n")
    end = "\r" if sys.stderr.isatty() and "step" in record else "\n"
    click.echo("  ".join(f"{name} {value}" for name, value in record.items()) + end, err=True, nl=False)


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="State, log, checkpoint.")
@click.option("--steps", default=Plan.steps, show_default=True, help="Steps of the last stage.")
@click.option("--every", default=800, show_default=True, help="Save and validate every N steps.")
@click.option("--samples", default=256, show_default=True, help="Validation screens; 0 for none.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Go on with this model: the last stage alone.")
@click.option("--learning-rate", default=Plan.learning_rate, show_default=True, help="Its peak.")
def main(out: Path, steps: int, every: int, samples: int, checkpoint: Path | None, learning_rate: float) -> None:
    """Train the demo phone agent; stop it any time and start it again to go on."""
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(steps=steps, learning_rate=learning_rate)
    if checkpoint:
        plan = replace(plan, vision_steps=0, early_steps=0, pointing_steps=0)
    trainer = train(plan, out, every, samples, lambda record: _show(record, out / "train.jsonl"), checkpoint)
    save(trainer.model.half(), trainer.tokenizer, out / "checkpoint")


if __name__ == "__main__":
    main()
