"""The conversation as Open-AutoGLM's client keeps it, and the rules by which it reads answers.

The facts are of Open-AutoGLM 6b18d7b: its agent sends the screenshot before the text, takes the picture out of a
message as soon as it is answered, and wraps thought and action of each answer anew.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from edgeglm.actions import Action, Value
from edgeglm.export.demo.steps import Step, Turn

HOME_APP = "System Home"
MARKERS = ("finish(message=", "do(action=")
TYPES = ('do(action="Type"', 'do(action="Type_Name"')


def screen_info(app: str) -> str:
    """Return the line that tells which app is in front; none is the home screen."""
    return json.dumps({"current_app": app or HOME_APP}, ensure_ascii=False)


def first_text(task: str, app: str) -> str:
    """Return the text of the first message: the task and the screen's information."""
    return f"{task}\n\n{screen_info(app)}"


def later_text(app: str) -> str:
    """Return the text of each further message of the user."""
    return f"** Screen Info **\n\n{screen_info(app)}"


def split_answer(content: str) -> tuple[str, str]:
    """Return thought and action of an answer, as the client cuts them apart, tags included."""
    for marker in MARKERS:
        if marker in content:
            thought, action = content.split(marker, 1)
            return thought.strip(), marker + action
    if "<answer>" in content:
        thought, action = content.split("<answer>", 1)
        return thought.replace("<think>", "").replace("</think>", "").strip(), action.replace("</answer>", "").strip()
    return "", content


def wrap_answer(content: str) -> str:
    """Return an answer as it stands in the history of the requests that follow."""
    thought, action = split_answer(content)
    return f"<think>{thought}</think><answer>{action}</answer>"


def written(turn: Turn, keeps_tags: bool = True) -> str:
    """Return a step that is done as it stands in the history; servers leave the tags in an answer, or do not."""
    if keeps_tags:
        return wrap_answer(turn.response.removesuffix("</answer>"))
    return turn.response


def conversation(step: Step, system: str, keeps_tags: bool = True) -> tuple[list[tuple[str, str]], str]:
    """Return the request of a step: role and text of each message before the last, and the last one's text.

    The system prompt is the first, and the last message is the user's with the screenshot before its text.

    Args:
        step: What is asked, and what was done before it.
        system: The system prompt.
        keeps_tags: Whether the client's history repeats the tags of an answer, as it does where the server leaves them.
    """
    messages = [("system", system)]
    first, *apps = [*(turn.app for turn in step.previous), step.app]
    text = first_text(step.instruction, first)
    for turn, app in zip(step.previous, apps, strict=True):
        messages += [("user", text), ("assistant", written(turn, keeps_tags))]
        text = later_text(app)
    return messages, text


def read_action(code: str) -> Action:
    """Return the action that the client performs for the code behind an answer's thought.

    Raises:
        ValueError: The client cannot read it, and would end the task with it as a message.
    """
    code = code.strip()
    if code.startswith(TYPES):
        return Action("Type", {"text": code.split("text=", 1)[1][1:-2]})
    if code.startswith("finish"):
        return Action("finish", {"message": code.replace("finish(message=", "")[1:-2]})
    if not code.startswith("do"):
        raise ValueError(f"{code[:80]!r} is no action")
    return _parse(code)


def _parse(code: str) -> Action:
    for character, escape in ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"):
        code = code.replace(character, escape)
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError(f"{code[:80]!r} is no call")
        arguments = {keyword.arg or "": _value(keyword.value) for keyword in call.keywords}
    except SyntaxError as error:
        raise ValueError(f"{code[:80]!r} is no Python: {error.msg}") from error
    kind = arguments.pop("action", None)
    if not isinstance(kind, str):
        raise ValueError(f"{code[:80]!r} names no action")
    return Action(kind, arguments)


def _value(node: ast.expr) -> Value:
    value: Any = ast.literal_eval(node)
    return (int(value[0]), int(value[1])) if isinstance(value, list) and len(value) == 2 else value
