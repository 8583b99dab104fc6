"""A smaller checkpoint learns from the teacher's stored logits: soft targets beside the right tokens.

State is kept on the disk, so that a killed run goes on; the student of the best held-out score is what remains.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from edgeglm.errors import UsageError
from edgeglm.export.compress.answers import Answers, distillation_loss, keep_zeros
from edgeglm.export.compress.lessons import Encoded, Lesson, Lessons, collate, encode, labels, pieces
from edgeglm.export.compress.state import write_state
from edgeglm.export.compress.teacher import Teacher
from edgeglm.export.compress.team import ALONE, Team
from edgeglm.export.evaluate.original.whole import Prompts, WholeOriginal
from edgeglm.export.evaluate.tasks.success import succeeds
from edgeglm.export.families.building import reference_config
from edgeglm.export.families.registry import module_of

# Lessons of a step, and tokens that are in memory together.
BATCH, TOKENS = 16, 4096
WARM = 0.05
CLIP, DECAY = 1.0, 0.01
# Evaluations without a better score after which it ends.
PATIENCE = 4
SAVE_SECONDS = 60.0
STATE, BEST = "state.pt", "best.pt"


@dataclass(frozen=True)
class Settings:
    """The settings of a recovery.

    Args:
        epochs: How often every lesson is seen.
        rate: The highest learning rate.
        freeze: Modules whose weights stay.
        checkpointing: Whether activations of a block are computed again instead of kept.
        bf16: Whether products are computed in it.
        sparse: Whether what is zero in matrices stays so.
    """

    epochs: int
    rate: float
    freeze: tuple[str, ...] = ()
    checkpointing: bool = False
    bf16: bool = False
    sparse: bool = False


@dataclass
class History:
    """The course of a recovery.

    Args:
        step: Steps that are done.
        scores: Of the held-out lessons, before it and after each epoch.
        best: The index of the best of them.
    """

    step: int = 0
    scores: list[float] = field(default_factory=list)
    best: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the last scores were no better."""
        return len(self.scores) - 1 - self.best >= PATIENCE


class Student:
    """A student and its lessons.

    Args:
        folder: The smaller checkpoint.
        work: Where its state is kept.
        lessons: Its lessons.
        teacher: Their logits.
        settings: How it learns.
        show: Is told the stage and which share is done.
        team: The processes that it learns in.

    Raises:
        UsageError: Nothing would be left to learn.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        lessons: Lessons,
        teacher: Teacher,
        settings: Settings,
        show: Callable[[str, float], None],
        team: Team = ALONE,
    ) -> None:
        disable_progress_bar()
        config = reference_config(folder)
        self.model: Any = getattr(transformers, config.architectures[0]).from_pretrained(
            folder, config=config, dtype=torch.float32
        )
        self.folder, self.work, self.lessons, self.teacher = folder, work, lessons, teacher
        self.settings, self.show, self.prompts, self.team = settings, show, Prompts.load(folder), team
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(module_of(name) not in settings.freeze)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise UsageError("--freeze", "leaves nothing to learn", "name fewer modules")
        # The one that is judged and written; of a team the leader alone has it beside its share.
        self.whole: Any = copy.deepcopy(self.model) if team.size > 1 and team.leads else self.model
        if settings.checkpointing:
            self.model.activation_checkpointing_enable()
        self.answers = Answers(self.model)
        team.shard(self.answers, set(self.model._no_split_modules or ()))
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=settings.rate, weight_decay=DECAY)
        self.history, self.saved = History(), time.monotonic()

    @property
    def per_epoch(self) -> int:
        """The steps of an epoch."""
        return -(-len(self.lessons.taught) // BATCH)

    @property
    def steps(self) -> int:
        """The steps of all epochs."""
        return self.settings.epochs * self.per_epoch

    def learn(self) -> History:
        """Go on from the state on the disk to the end, and leave the model with the best score. Raises OSError."""
        self._load()
        if len(self.history.scores) <= self.history.step // self.per_epoch:  # or it was interrupted while it judged
            self._evaluate()
        started, before = time.monotonic(), self.history.step
        try:
            while self.history.step < self.steps and not self.history.is_over:
                loss = self.step()
                spent = (time.monotonic() - started) / (self.history.step - before)
                self._tell(loss, spent * (self.steps - self.history.step))
                if self.history.step % self.per_epoch == 0:
                    self._evaluate()
                elif self.team.tell(time.monotonic() - self.saved > SAVE_SECONDS):
                    self._save()
        except KeyboardInterrupt:
            if self.team.size == 1:  # the others may have ended, and have a share of what would be saved
                self._save()
            raise
        if self.team.leads:
            self.whole.load_state_dict(torch.load(self.work / BEST, weights_only=True))
        return self.history

    def step(self) -> float:
        """Learn from the next batch; return its loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._schedule()
        total = 0.0
        for piece, share in self._pieces(self.batch(self.history.step)):
            loss = self.loss(piece) * share
            (loss * self.team.size).backward()  # a team takes the mean of its gradients
            total += float(loss.detach())
        if self.settings.sparse:
            keep_zeros(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history.step += 1
        return self.team.total(total)

    def _pieces(self, batch: Sequence[Lesson]) -> list[tuple[list[Encoded], float]]:
        """Return this process's pieces of a batch, each with its share of the loss; all have as many."""
        count, mine = sum(lesson.predicted for lesson in batch), batch[self.team.rank :: self.team.size]
        made = pieces([encode(self.prompts, lesson) for lesson in mine or batch[:1]], TOKENS)
        shares = [(piece, sum(encoded.lesson.predicted for encoded in piece) / count * bool(mine)) for piece in made]
        return shares + [(shares[0][0], 0.0)] * (self.team.most(len(shares)) - len(shares))

    def batch(self, step: int) -> list[Lesson]:
        """Return the lessons of a step: every epoch has an order of its own."""
        epoch, index = divmod(step, self.per_epoch)
        order = np.random.default_rng((20, epoch)).permutation(len(self.lessons.taught))
        return [self.lessons.taught[number] for number in order[index * BATCH : (index + 1) * BATCH]]

    def _schedule(self) -> float:
        warm = max(1, int(WARM * self.steps))
        step = self.history.step + 1
        return min(step / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))) + 0.01)

    def loss(self, encoded: Sequence[Encoded]) -> Tensor:
        """Return the loss of lessons."""
        records = self.teacher.records([lesson.lesson for lesson in encoded])
        return distillation_loss(self._logits(self.answers, encoded), records, self._right(encoded))

    def _logits(self, answers: Answers, encoded: Sequence[Encoded]) -> Tensor:
        taught = collate(self.prompts, encoded)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bf16):
            logits: Tensor = answers(taught.inputs, taught.places)
        return logits.float()

    @torch.inference_mode()
    def score(self) -> float:
        """Return the score of the held-out lessons: the share of right answers, or minus the loss of a token."""
        self.whole.eval()
        held = self.lessons.held
        if held[0].sample is None:
            windows = pieces([encode(self.prompts, lesson) for lesson in held], TOKENS)
            answers = Answers(self.whole)
            lost = [
                F.cross_entropy(self._logits(answers, piece), self._right(piece), reduction="none") for piece in windows
            ]
            return -float(torch.cat(lost).mean())
        samples = [lesson.sample for lesson in held if lesson.sample]
        settings = self.whole.generation_config
        agent = WholeOriginal(self.whole, self.prompts)
        self.whole.generation_config = agent.settings
        texts = list(agent.answer([sample.image for sample in samples], [sample.messages for sample in samples]))
        self.whole.generation_config = settings
        return float(np.mean([succeeds(sample.expected, text) for sample, text in zip(samples, texts, strict=True)]))

    def _right(self, encoded: Sequence[Encoded]) -> Tensor:
        lessons = [lesson.lesson for lesson in encoded]
        return labels(lessons, self.teacher.records(lessons)["ids"][:, 0])

    def _evaluate(self) -> None:
        self.show("judging held-out samples", self.history.step / self.steps)
        weights = self.team.weights(self.model) if self.team.size > 1 else {}
        if weights:
            self.whole.load_state_dict(weights)
        score = self.team.tell(self.score() if self.team.leads else 0.0)
        is_best = not self.history.scores or score > self.history.scores[self.history.best]
        if is_best and self.team.leads:  # before the history says so: what is interrupted here is judged again
            write_state(self.work / BEST, self.whole.state_dict())
        self.history.best = len(self.history.scores) if is_best else self.history.best
        self.history.scores.append(score)
        self._save()

    def _tell(self, loss: float, left: float) -> None:
        said = f"recovering: loss {loss:.3f}, held out {self.history.scores[-1]:.3f}, {left / 60:.0f} min left"
        self.show(said, self.history.step / self.steps)

    def _save(self) -> None:
        history = {"step": self.history.step, "scores": self.history.scores, "best": self.history.best}
        model, optimizer = self.team.weights(self.model), self.team.moments(self.model, self.optimizer)
        if self.team.leads:
            write_state(self.work / STATE, {"model": model, "optimizer": optimizer, "history": history})
        self.saved = time.monotonic()

    def _load(self) -> None:
        state: Mapping[str, Any] = {}
        with suppress(FileNotFoundError):
            state = torch.load(self.work / STATE, weights_only=True) if self.team.leads else {}
        if history := self.team.tell(state.get("history")):
            self.team.restore(self.model, self.optimizer, state)
            self.history = History(**history)
