"""Training batches: fresh screens and what is asked about them.

Everything of a batch derives from its index, so that a resumed run sees the same data.
"""

from __future__ import annotations

from random import Random

from torch.utils.data import Dataset

from edgeglm.export.demo.goals import play
from edgeglm.export.demo.packing import Batch, Packer, Row
from edgeglm.export.demo.pictures import Pictures, take_pictures
from edgeglm.export.demo.prompts import LANGUAGES, sample_prompt
from edgeglm.export.demo.screens import Scene, sample_scene
from edgeglm.export.demo.stages import Stage
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_pointing, sample_practice, sample_step
from edgeglm.export.demo.wishes import sample_goal

PRACTICE = 0.4  # the share of questions that practise what is hardest
PLAYED = 0.5  # the share of screens from a phone on which a goal is performed
SHORT = 0.3  # the share of screens that are asked about in the short form, without a system prompt
BARE = 0.2  # the share of histories whose answers came without their tags
THIN = 0.35  # of a screen's elements, in the first steps


class Batches(Dataset[Batch | Pictures]):
    """Batch `index` of the training data of a stage, made on the fly.

    Args:
        packer: Of the tokenizer.
        split: Seeds the data, with the stage's name.
        stage: What a batch has.
    """

    def __init__(self, packer: Packer, split: str, stage: Stage) -> None:
        self.packer, self.split, self.stage = packer, split, stage

    def __getitem__(self, index: int) -> Batch | Pictures:
        stage = self.stage
        random = Random(f"{self.split}/{stage.name}/{index}")
        density = THIN if index < stage.sparse else 1.0
        if stage.kind == "tower":
            return take_pictures([sample_scene(random, density) for _ in range(stage.images)], random)
        asked = [self._ask(random, density) for _ in range(stage.images)]
        system = sample_prompt(random, random.choice(LANGUAGES), random.uniform(*stage.share))
        pictures = take_pictures([scene for scene, _ in asked], random)
        return self.packer.pack(pictures, [row for _, row in asked], system, stage.kind == "answers")

    def _ask(self, random: Random, density: float) -> tuple[Scene, Row]:
        """Return a screen and what is asked about it: where a goal is performed, first its next step."""
        stage, first = self.stage, list[Step]()
        if stage.kind == "answers" and random.random() < PLAYED:
            scene, step = _sample_played(random)
            first = [step]
        else:
            scene = sample_scene(random, density)
            while stage.kind == "pointing" and not scene.elements:
                scene = sample_scene(random, density)
        others = [self._sample_step(scene, random) for _ in range(stage.questions - len(first))]
        return scene, Row((*first, *others), random.random() >= SHORT, random.random() >= BARE)

    def _sample_step(self, scene: Scene, random: Random) -> Step:
        if self.stage.kind == "pointing":
            return sample_pointing(scene, random)
        return (sample_practice if random.random() < PRACTICE else sample_step)(scene, random)


def _sample_played(random: Random) -> tuple[Scene, Step]:
    """Return a screen and a step of a goal that the oracle performs."""
    goal, phone = sample_goal(random, random.choices(LANGUAGES, (3, 2))[0])
    return random.choice(list(play(goal, phone)))
