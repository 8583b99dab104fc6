"""Step of a phone agent: a question about a screen, and the answer in Open-AutoGLM's language."""

from __future__ import annotations

from dataclasses import dataclass

from edgeglm.actions import Action, Value, write_action
from edgeglm.export.demo.screens import HEIGHT, WIDTH, Box


@dataclass(frozen=True)
class Turn:
    """A step that is done: the app that was in front, the thought and the action."""

    app: str
    thought: str
    action: str

    @property
    def response(self) -> str:
        """The agent's whole answer, in the form of AutoGLM-Phone."""
        return f"<think>{self.thought}</think><answer>{self.action}</answer>"


@dataclass(frozen=True)
class Step:
    """A question to the agent and its answer.

    Args:
        instruction: What the user wishes.
        previous: Steps that are done.
        thought: Of the answer.
        action: Of the answer.
        box: The target of a tap in model pixels.
        app: In front, as the client names it; none on the home screen.
    """

    instruction: str
    previous: tuple[Turn, ...]
    thought: str
    action: str
    box: Box | None = None
    app: str = ""

    @property
    def prompt(self) -> str:
        """The user's text in the short form, as it stands after the screenshot."""
        return "\n".join((self.instruction, *(turn.action for turn in self.previous)))

    @property
    def turn(self) -> Turn:
        """The step as one that is done."""
        return Turn(self.app, self.thought, self.action)

    @property
    def typed(self) -> bool:
        """Whether the action types a text."""
        return self.action.startswith('do(action="Type"')

    @property
    def response(self) -> str:
        """The agent's whole answer, in the form of AutoGLM-Phone."""
        return self.turn.response


def do(action: str, **arguments: Value) -> str:
    """``do(action="Tap", element=[x,y])`` exactly as Open-AutoGLM writes it."""
    return write_action(Action(action, arguments))


def finish(message: str) -> str:
    """Return ``finish(message="…")``."""
    return write_action(Action("finish", {"message": message}))


def to_units(x: float, y: float) -> tuple[int, int]:
    """Convert model pixels to the action language's coordinates, 0 to 999 of 1000 on either axis."""
    return min(999, max(0, round(x / WIDTH * 1000))), min(999, max(0, round(y / HEIGHT * 1000)))


# Where the view goes: its name in Chinese, start and end of the finger.
SWIPES = {
    "down": ("下", (500, 800), (500, 200)),
    "up": ("上", (500, 200), (500, 800)),
    "left": ("左", (200, 500), (800, 500)),
    "right": ("右", (800, 500), (200, 500)),
}
