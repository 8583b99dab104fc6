"""Grammar of a phone agent's answers (docs/actions.md), in Lark as llguidance takes it.

It holds an answer to one action in the spelling of Open-AutoGLM's prompts, and to nothing that would change which
action that is: thought and texts are free, and a text may hold quotes, line breaks and actions. An answer without tags
ends with an action, and is free before and behind it.
"""

from __future__ import annotations

from collections.abc import Container

_NUMBER = "([0-9]|[1-9][0-9]{1,2}|1000)"
_POINT = rf"\[{_NUMBER},{_NUMBER}\]"
# As the client reads it, a text may hold anything: the last quote before the bracket ends it.
_TEXT = '"(?s:.*)"'
_MESSAGE = f"(, message={_TEXT})?"
_DURATION = rf"(, duration=({_TEXT}|[0-9]+(\.[0-9]+)?))?"
_DO = "|".join(
    (
        f'(Tap|Double Tap|Long Press)", element={_POINT}{_MESSAGE}',
        f'Swipe", start={_POINT}, end={_POINT}',
        f'(Type|Type_Name)", text={_TEXT}',
        f'Launch", app={_TEXT}',
        f'Wait"{_DURATION}',
        f'(Take_over|Note|Interact|Back|Home)"{_MESSAGE}',
        f'Call_API", instruction={_TEXT}',
    )
)
# One expression: of terminals that begin with one another the lexer takes the longest, and an action would be cut.
_ACTION = rf'(do\(action="({_DO})\)|finish\(message={_TEXT}\))'


def action_grammar(tokens: Container[str]) -> str:
    """Return the grammar for a vocabulary. A tag that is no token of it is text like any other."""
    opened, closed = ("<think>? " if "<think>" in tokens else "", "</think>" in tokens)
    rules = [f"{opened}{'(TEXT? </think>)? ' if closed else ''}UNTAGGED"]
    if "<answer>" in tokens and "</answer>" in tokens:
        rules.append(f"{opened}TEXT? {'(</think> TEXT?)? ' if closed else ''}<answer> ACTION </answer>")
    return rf"""
start: {" | ".join(rules)}
TEXT: /(?s:.+)/
ACTION: /\s*{_ACTION}\s*/
UNTAGGED: /(?s:.*){_ACTION}(?s:.*)/
"""
