"""Stages of the demo's training: how long each is, what it learns from, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["tower", "answers", "pointing"]


@dataclass(frozen=True)
class Stage:
    """A part of the training, with its own data.

    Args:
        name: Of the stage and of its data.
        kind: Whether the vision tower is trained alone, or with whole answers, or with questions that only point.
        steps: How many.
        images: In a batch.
        questions: Behind each image.
        learning_rate: Its peak, of AdamW.
        warm_up: Steps until the peak.
        last_rate: Share of the peak at the end, to which it falls as a cosine.
        helper: Weight of the helper losses at the beginning, and at the end.
        sparse: The first steps, on screens with few elements.
        icons: Share of the tower's screens that are a page with small icons, and others by chance.
        played: Share of the images that are of a phone on which a goal is performed.
        goals: Questions behind such an image that are the next step of a goal; each is of another goal.
        share: Least and largest share of the pieces that a batch's system prompt has.
        chinese: Share of the system prompts that are in Chinese.
        chinese_wishes: Share of the goals that are wished for in Chinese.
        hard: How much likelier than others the steps are that were learnt worst, among those to draw the first from.
        settings: Share of the goals that visit the settings, and others by chance.
        slips: Share of the taps before the first step that missed, where the screen shows it.
        learns_prompt: The prompt's keys and values are learnt in one step of so many, otherwise taken as they are.
    """

    name: str
    kind: Kind
    steps: int
    images: int = 16
    questions: int = 6
    learning_rate: float = 1e-3
    warm_up: int = 50
    last_rate: float = 1.0
    helper: tuple[float, float] = (1.0, 1.0)
    sparse: int = 0
    icons: float = 0.0
    played: float = 0.5
    goals: int = 1
    share: tuple[float, float] = (0.0, 0.3)
    chinese: float = 0.5
    chinese_wishes: float = 0.4
    hard: float = 1.0
    settings: float = 0.0
    slips: float = 0.0
    learns_prompt: int = 8

    def rate(self, step: int) -> float:
        """Return the learning rate at `step` of the stage."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        falling = self.last_rate + (1 - self.last_rate) * cosine
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * falling

    def helper_weight(self, step: int) -> float:
        """Return the weight of the helper losses at `step` of the stage."""
        first, last = self.helper
        return first + (last - first) * step / self.steps


GOALS = Stage(
    "goals", "answers", 1200, images=12, last_rate=0.02, helper=(0.1, 0.1), share=(0.0, 1.0), played=0.8, goals=5
)
MIXED = replace(GOALS, name="mixed", steps=1500, learning_rate=8e-4, share=(0.0, 2.0), played=0.6, goals=4)
SEEING = replace(
    MIXED, name="seeing", steps=750, images=10, learning_rate=6e-4, warm_up=60, last_rate=0.5, helper=(0.3, 0.2),
    share=(0.0, 0.4), chinese=0.55, chinese_wishes=0.58, hard=3.0, slips=0.3, played=0.66, settings=0.12,
)  # fmt: skip
LONGER = replace(
    SEEING, name="longer", steps=450, learning_rate=3.5e-4, last_rate=0.02, helper=(0.2, 0.1), share=(0.0, 1.5)
)
WISHES = replace(
    LONGER, name="wishes", learning_rate=5e-4, share=(0.0, 0.8), chinese=0.6, chinese_wishes=0.75, hard=2.0, played=0.7,
    settings=0.15,
)  # fmt: skip
STAGES = (
    Stage("vision", "tower", 4000, sparse=400),
    Stage("early", "answers", 1600),
    Stage("pointing", "pointing", 750, questions=16),
    Stage("answers", "answers", 2500, warm_up=100, helper=(0.5, 0.1), share=(0.0, 0.5)),
    Stage("whole", "answers", 1500, last_rate=0.02, helper=(0.1, 0.1), share=(0.0, 1.0)),
    GOALS,
    replace(GOALS, name="long", steps=400, learning_rate=6e-4, share=(0.6, 2.0), chinese=0.7),
    MIXED,
    replace(MIXED, name="hard", chinese_wishes=0.55, hard=3.0),
    replace(MIXED, name="slips", steps=600, learning_rate=4e-4, chinese_wishes=0.6, hard=3.0, slips=0.4, played=0.75),
    Stage("icons", "tower", 1500, learning_rate=8e-4, warm_up=150, last_rate=0.02, icons=0.5),
    SEEING,
    LONGER,
    WISHES,
)
