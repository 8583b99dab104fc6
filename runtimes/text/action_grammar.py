"""Grammar of a phone agent's answers (docs/actions.md), in Lark as llguidance takes it.

It holds an answer to one action in the spelling of Open-AutoGLM's prompts, and to nothing that would change which
action that is: the thought is free, and so is what is typed or said at the end, which may hold quotes and actions.
Other texts are strings of Python's, since the client parses them. An answer without tags has an action, and is free
before it, up to a word's end, and behind it, where no other may begin and be left unfinished.
"""

from __future__ import annotations

from collections.abc import Container

_NUMBER = "([0-9]|[1-9][0-9]{1,2}|1000)"
_POINT = rf"\[{_NUMBER},{_NUMBER}\]"
# As the client reads it, what is typed or said at the end may hold anything: the last quote before the bracket ends it.
_TEXT = '"(?s:.*)"'
# All others go through Python's parser there.
_STRING = r'"([^"\\\x00]|\\["\\nrt])*"'
_MESSAGE = f"(, message={_STRING})?"
_DURATION = rf"(, duration=({_STRING}|[0-9]+(\.[0-9]+)?))?"
_DO = "|".join(
    (
        f'(Tap|Double Tap|Long Press)", element={_POINT}{_MESSAGE}',
        f'Swipe", start={_POINT}, end={_POINT}',
        f'(Type|Type_Name)", text={_TEXT}',
        f'Launch", app={_STRING}',
        f'Wait"{_DURATION}',
        f'(Take_over|Note|Interact|Back|Home)"{_MESSAGE}',
        f'Call_API", instruction={_STRING}',
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
UNTAGGED: UP_TO_ACTION AFTER
UP_TO_ACTION: /((?s:.*)[^A-Za-z0-9_])?{_ACTION}/
AFTER: /(?s:.*)/ & ~/(?s:.*)(do|finish)\((?s:.*)/
"""
