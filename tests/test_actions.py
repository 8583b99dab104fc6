from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeglm.actions import ACTIONS, Action, Value, parse_action, write_action


@pytest.mark.parametrize(
    ("response", "action"),
    [
        ('do(action="Tap", element=[12,999])', Action("Tap", {"element": (12, 999)})),
        ('<think>Tap it.</think><answer>do(action="Back")</answer>', Action("Back", {})),
        (
            'A thought first.\ndo(action="Wait", duration="2 seconds")',
            Action("Wait", {"duration": "2 seconds"}),
        ),
        ('do(action="Swipe", start=[1,2], end=[3,4])', Action("Swipe", {"start": (1, 2), "end": (3, 4)})),
        ('<answer>\nfinish(message="已完成")\n</answer>', Action("finish", {"message": "已完成"})),
        ('do(action="Type", text="say \\"hi\\" (now)")', Action("Type", {"text": 'say "hi" (now)'})),
        ('do(action="Type", text="two\nlines")', Action("Type", {"text": "two\nlines"})),
        # Every form of Open-AutoGLM's prompts and of its client's handler.
        ('do(action="Launch", app="WeChat")', Action("Launch", {"app": "WeChat"})),
        (
            'do(action="Tap", element=[1,2], message="重要操作")',
            Action("Tap", {"element": (1, 2), "message": "重要操作"}),
        ),
        ('do(action="Type_Name", text="张三")', Action("Type_Name", {"text": "张三"})),
        ('do(action="Interact")', Action("Interact", {})),
        ('do(action="Note", message="True")', Action("Note", {"message": "True"})),
        ('do(action="Note", message=True)', Action("Note", {"message": True})),
        ('do(action="Call_API", instruction="总结")', Action("Call_API", {"instruction": "总结"})),
        ('do(action="Long Press", element=[1, 2])', Action("Long Press", {"element": (1, 2)})),
        ('do(action="Double Tap", element=(1, 2))', Action("Double Tap", {"element": (1, 2)})),
        ('do(action="Take_over", message="登录")', Action("Take_over", {"message": "登录"})),
        ('do(action="Home")', Action("Home", {})),
        ('do(action="Wait", duration=2)', Action("Wait", {"duration": 2})),
        ('do(action="Wait", duration=2.5)', Action("Wait", {"duration": 2.5})),
        ("do(action='Back')", Action("Back", {})),
        ("finish()", Action("finish", {})),
        # Quotes of the text's own.
        ('do(action="Type", text="我们去"老地方"吃饭吧")', Action("Type", {"text": '我们去"老地方"吃饭吧'})),
        ('<answer>finish(message="已打开"设置"页面")</answer>', Action("finish", {"message": '已打开"设置"页面'})),
        ('do(action="Type", text="a") b")', Action("Type", {"text": 'a") b'})),
        ('do(action="Type", text="print("a")\nprint("b")")', Action("Type", {"text": 'print("a")\nprint("b")'})),
        ('do(action="Type", text=""a", "b"")', Action("Type", {"text": '"a", "b"'})),
        (
            'do(action="Tap", element=[1,2], message="Pay "now"?")',
            Action("Tap", {"element": (1, 2), "message": 'Pay "now"?'}),
        ),
        (
            'do(action="Tap", message="Pay, x=1", element=[1,2])',
            Action("Tap", {"message": "Pay, x=1", "element": (1, 2)}),
        ),
        ('do(action="Type", text="don\'t")', Action("Type", {"text": "don't"})),
        # Actions that a text speaks of.
        (
            'do(action="Type", text="say "do(action="Back")" now")',
            Action("Type", {"text": 'say "do(action="Back")" now'}),
        ),
        ('do(action="Type", text="do(action=\'Back\')")', Action("Type", {"text": "do(action='Back')"})),
        ('finish(message="<answer>")', Action("finish", {"message": "<answer>"})),
        ('finish(message="a", b=[c")', Action("finish", {"message": 'a", b=[c'})),
        ('do(action="Type", text="a", b=1, text="c")', Action("Type", {"text": 'a", b=1, text="c'})),
        # Escapes.
        (r'do(action="Type", text="a\nb\t\\ \"c\" \u4f60\x41")', Action("Type", {"text": 'a\nb\t\\ "c" 你A'})),
        (r'do(action="Type", text="\d \q")', Action("Type", {"text": r"\d \q"})),
        (r'do(action="Type", text="\ud83d\ude00 \ud83d")', Action("Type", {"text": "😀 \ufffd"})),
        ('do(action="Type", text="a\r\nb")', Action("Type", {"text": "a\r\nb"})),
        # What is around it.
        ('do(action="Tap", element=[1,2])</answer>\n(点击"搜索")', Action("Tap", {"element": (1, 2)})),
        ('do(action="Launch", app="Maps") (I open "Maps")', Action("Launch", {"app": "Maps"})),
        ('do(action="Type", text="a")</answer>\n(输入"a")', Action("Type", {"text": "a"})),
        ('上一步do(action="Back")没有生效。do(action="Tap", element=[1,2])', Action("Tap", {"element": (1, 2)})),
        ('do(action="Type", text="a") failed.\ndo(action="Type", text="b")', Action("Type", {"text": "b"})),
        ('I will undo(x) it.\ndo(action="Back")', Action("Back", {})),
        ('I undo(action="Home"), and do(it).\ndo(action="Back") and do(it)', Action("Back", {})),
        # Blanks and lines.
        ('do(\n    action="Tap",\n    element=[10, 20],\n)', Action("Tap", {"element": (10, 20)})),
        ('do( action = "Tap" , element = [ 1 , 2 ] )', Action("Tap", {"element": (1, 2)})),
        # Fractions: a half away from zero.
        ('do(action="Tap", element=[499.5,182.0])', Action("Tap", {"element": (500, 182)})),
        ('do(action="Tap", element=[500.5,2.4999])', Action("Tap", {"element": (501, 2)})),
        ('do(action="Swipe", start=[-0.5,.5], end=[3.,4])', Action("Swipe", {"start": (-1, 1), "end": (3, 4)})),
    ],
)
def test_parses_the_language_of_open_autoglm(response: str, action: Action) -> None:
    assert parse_action(response) == action


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no action",
        'do(action="Tap", element=[1,2]',
        "do(action=__import__('os').system('true'))",
        'do("Tap")',
        'do(action="Tap", element=[1,2,3])',
        'do(action="Tap", element=[True,False])',
        'do(action="Tap", element=["1","2"])',
        'do(action="Tap", element=[1e2,2])',
        'do(action="Tap", element=[1,2], element=[3,4])',
        'do(action="Tap" element=[1,2])',
        "do(element=[1,2])",
        'do(**{"action": "Tap"})',
        "do(action=[1,2])",
        'do(action="Wait", duration=' + 5000 * "9" + ")",
        'do(action="Type", text="unfinished',
        'do(action="Type", text="unfinished\\")',
        # The action of the thought is not the answer's.
        '<think>do(action="Back") did nothing.</think><answer>do(action="Tap", element=[1',
        'do(action="Back") did nothing.\ndo(action="Tap", element=[1',
        '<think>do(action="Back") did nothing.</think><answer>I do not know.</answer>',
        'redo(action="Back")',
        "do（action='Back'）",
    ],
)
def test_anything_else_is_no_action(response: str) -> None:
    assert parse_action(response) is None


TEXTS = st.text(st.sampled_from("ab \n\r\\\"'()[],=<>/do你😀")) | st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.from_regex(r"\A[a-z_]{1,8}\Z").filter(lambda name: name != "action")
VALUES = TEXTS | st.integers(-(10**9) + 1, 10**9 - 1) | st.booleans() | st.tuples(*[st.integers(-1000, 2000)] * 2)
AROUND = st.text(st.sampled_from("ab \n(),[]你<>")) | st.just('do(action="Back") failed.\n') | st.just("finish()")


@given(AROUND, st.sampled_from(ACTIONS) | TEXTS, st.dictionaries(NAMES, VALUES, max_size=3), AROUND)
def test_what_is_written_is_read_back(before: str, kind: str, arguments: dict[str, Value], after: str) -> None:
    if kind == "finish":
        arguments = {"message": "done", **arguments}
    action = Action(kind, arguments)
    assert parse_action(write_action(action)) == action
    assert parse_action(f"<think>{before}</think><answer>{write_action(action)}</answer>") == action
    if after not in ("finish()", 'do(action="Back") failed.\n'):
        assert parse_action(f"{before}\n{write_action(action)}</answer>{after}") == action


@given(st.text(st.sampled_from('ab ."\n,你:')))
def test_a_text_may_have_any_quotes(text: str) -> None:
    assert parse_action(f'<answer>do(action="Type", text="{text}")</answer>') == Action("Type", {"text": text})
    assert parse_action(f'finish(message="{text}")') == Action("finish", {"message": text})


PIECES = [
    "do(", 'do(action="', 'do(action="do(action=\'', '"do(action="', "\\", " ", "\n,", '")', "finish()", "<answer>",
    'do(action="Type", text="a', 'do(action="Tap", element=[1,', 'k="v",', 'do(   action  = "', "[1,", "9", "\\ud83d",
    "finish(message=\"\\'", '""', '" ',
]  # fmt: skip
BEFORE = ["", 'do(action="Type", text="', 'do(action="', 'do(action="Wait", duration=', 70 * '"do(action="']


@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_answer_takes_no_long_time(piece: str) -> None:
    for before in BEFORE:
        text = before + piece * (2**18 // len(piece))
        start = time.process_time()
        parse_action(text)
        parse_action(text + '")')
        assert time.process_time() - start < 2, before


@given(st.text(), st.lists(st.sampled_from(PIECES)))
def test_never_raises(text: str, pieces: list[str]) -> None:
    parse_action(text)
    parse_action(f'do(action="{text}", element=[{text}])')
    parse_action("".join(pieces) + text)


def test_only_taps_have_a_point() -> None:
    assert Action("Long Press", {"element": (1, 2)}).point == (1, 2)
    assert Action("Swipe", {"start": (1, 2), "end": (3, 4)}).point is None
    assert Action("Tap", {"element": "here"}).point is None
