"""JSON that says one thing."""

from __future__ import annotations

import time

import pytest

from edgeglm.strict_json import StrictJsonError, check_json

FAULTS = {
    "no UTF-8": (b'{"a\xf2": 1}', None, "is not UTF-8: byte 3 is 0xf2"),
    "cut": (b'{"a": ', None, "is not valid JSON"),
    "nested": (b'{"a": ' + b"[" * 200_000, None, "nested too deeply"),
    "a key twice": (b'{"b": {"a": 1, "a": 1}}', "a", "stands twice"),
    "a key for a terminal": (b'{"\\u001b]0;x": 1}', None, r"has the key '\x1b]0;x', with control characters"),
    "a value for a terminal": (b'{"a": [["\\u009b2J"]]}', "a", "has control characters"),
    "text that turns around": (b'{"a": "\\u202egpj.exe"}', "a", "has control characters"),
    "half a character": (b'{"a": "\\ud800"}', "a", "has control characters"),
    "a list for a terminal": (b'["\\u0007"]', None, "has control characters"),
    "NaN": (b'{"a": NaN}', "a", "NaN is infinite, NaN or too long"),
    "infinity": (b'{"a": [-Infinity]}', "a", "-Infinity is infinite, NaN or too long"),
    "a float that overflows": (b'{"a": 1e999}', "a", "1e999 is infinite, NaN or too long"),
    "a number without end": (b'{"a": ' + b"9" * 3_000_000 + b"}", "a", "99999999 is infinite, NaN or too long"),
    "a fraction without end": (b'{"a": 0.' + b"9" * 3_000_000 + b"}", "a", "999999 is infinite, NaN or too long"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_refused(name: str) -> None:
    data, key, why = FAULTS[name]
    start = time.monotonic()
    with pytest.raises(StrictJsonError) as caught:
        check_json(data)
    assert caught.value.key == key
    assert why in caught.value.why
    assert time.monotonic() - start < 5


def test_what_is_taken() -> None:
    check_json(
        '{"name": "点一下", "n": [0, -1, 1e308, 18446744073709551616, null, true], "x": {"a": {"a": 1}}}'.encode()
    )
