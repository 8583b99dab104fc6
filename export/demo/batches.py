"""Training batches: fresh screens and what is asked about them.

Everything of a batch derives from its index, so that a resumed run sees the same data.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

from torch.utils.data import Dataset

from edgeglm.export.demo.goals import play
from edgeglm.export.demo.packing import Batch, Packer, Row
from edgeglm.export.demo.pictures import Pictures, take_pictures
from edgeglm.export.demo.prompts import LANGUAGES, sample_prompt
from edgeglm.export.demo.screens import TOOLS, Scene, sample_scene
from edgeglm.export.demo.stages import Stage
from edgeglm.export.demo.steps import Step
from edgeglm.export.demo.tasks import sample_pointing, sample_practice, sample_step
from edgeglm.export.demo.wishes import sample_goal, sample_other

PRACTICE = 0.4  # the share of questions that practise what is hardest
SHORT = 0.3  # the share of screens that are asked about in the short form, without a system prompt
BARE = 0.2  # the share of histories whose answers came without their tags
OTHERS = 8  # tries for another goal, for each that is asked about
FIRST_APP, LATER_APP = 'do(action="Launch"', "Launch behind other steps"
LIKED, MISSED, NEXT, TEXT = "behind a double tap", "behind a miss", "the second thing in an app", "with a text"
ICON = "on an icon"
HARD = ('do(action="Swipe"', ICON, LATER_APP, LIKED, MISSED, NEXT, TEXT)  # kinds of steps
ICONS = tuple(f"{name} button" for name in TOOLS)  # small ones
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
            return take_pictures([self._sample_scene(random, density) for _ in range(stage.images)], random)
        asked = [self._ask(random, density) for _ in range(stage.images)]
        (language,) = random.choices(LANGUAGES, (1 - stage.chinese, stage.chinese))
        system = sample_prompt(random, language, random.uniform(*stage.share))
        pictures = take_pictures([scene for scene, _ in asked], random)
        return self.packer.pack(pictures, [row for _, row in asked], system, stage.kind == "answers")

    def _sample_scene(self, random: Random, density: float) -> Scene:
        if random.random() >= self.stage.icons:
            return sample_scene(random, density)
        while True:
            scene = sample_scene(random, density, "page")
            if any(element.name in ICONS for element in scene.elements):
                return scene

    def _ask(self, random: Random, density: float) -> tuple[Scene, Row]:
        """Return a screen and what is asked about it: where goals are performed, first their next steps."""
        stage, played = self.stage, list[Step]()
        if stage.kind == "answers" and random.random() < stage.played:
            scene, played = _sample_played(random, stage)
        else:
            scene = sample_scene(random, density)
            while stage.kind == "pointing" and not scene.elements:
                scene = sample_scene(random, density)
        others = [self._sample_step(scene, random) for _ in range(stage.questions - len(played))]
        return scene, Row((*played, *others), random.random() >= SHORT, random.random() >= BARE)

    def _sample_step(self, scene: Scene, random: Random) -> Step:
        if self.stage.kind == "pointing":
            return sample_pointing(scene, random)
        return (sample_practice if random.random() < PRACTICE else sample_step)(scene, random)


def _sample_played(random: Random, stage: Stage) -> tuple[Scene, list[Step]]:
    """Return a screen and some steps on it, each of another goal that the oracle performs on one phone.

    What is rare is asked as often as what every goal has: the first step's action is drawn by its kind.
    """
    count = min(stage.goals, stage.questions)
    goal, phone = sample_goal(random, _sample_language(random, stage), random.random() < stage.settings)
    by_kind = defaultdict[str, list[tuple[Scene, Step]]](list)
    for scene, step in play(goal, phone.copy(), (random, stage.slips) if stage.slips else None):
        by_kind[_kind_of(step)].append((scene, step))
    (kind,) = random.choices(list(by_kind), [stage.hard if kind in HARD else 1.0 for kind in by_kind])
    scene, first = random.choice(by_kind[kind])
    steps = [first]
    for _ in range(OTHERS * (count - 1)):
        if len(steps) == count:
            break
        other = sample_other(random, _sample_language(random, stage), goal, phone)
        here = [step for seen, step in play(other, phone.copy()) if seen == scene] if other else []
        if here:
            steps.append(random.choice(here))
    return scene, steps


def _kind_of(step: Step) -> str:
    """Return what makes a step hard, or else its action's type."""
    kind, parts = step.action.split(",")[0], [_part_of(turn.thought) for turn in step.previous]
    if step.previous and step.previous[-1].action.startswith('do(action="Double Tap"'):
        return LIKED
    if kind == FIRST_APP and step.previous:
        return LATER_APP
    if step.previous and step.previous[-1].thought == step.thought and kind == 'do(action="Tap"':
        return MISSED
    if '"' in step.thought:
        return TEXT
    if step.thought.removesuffix(".").endswith(ICONS):
        return ICON
    is_next = len(set(parts)) > 1 and _part_of(step.thought) not in parts and not kind.startswith("finish")
    return NEXT if is_next else kind


def _part_of(thought: str) -> str:
    """Return the part of a wish that a thought begins with."""
    return thought.partition(":")[0]


def _sample_language(random: Random, stage: Stage) -> str:
    return random.choices(LANGUAGES, (1 - stage.chinese_wishes, stage.chinese_wishes))[0]
