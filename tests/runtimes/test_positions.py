"""Positions of a prompt; that they equal transformers' is shown end to end in tests/export/test_pipeline.py."""

from __future__ import annotations

from edgeglm.runtimes.inputs.positions import prompt_positions


def test_without_mrope_a_token_has_one_number() -> None:
    assert prompt_positions([False] * 3, None).tolist() == [[[0, 1, 2]]]


def test_a_picture_counts_rows_and_columns_and_text_goes_on_after_the_larger() -> None:
    tokens = [False, *[True] * 6, False, False]
    time, rows, columns = prompt_positions(tokens, [(3, 2)])[:, 0].tolist()
    assert time == [0, 1, 1, 1, 1, 1, 1, 4, 5]
    assert rows == [0, 1, 1, 2, 2, 3, 3, 4, 5]
    assert columns == [0, 1, 2, 1, 2, 1, 2, 4, 5]


def test_a_prompt_without_a_picture_counts_on() -> None:
    assert prompt_positions([False] * 2, []).tolist() == [[[0, 1]]] * 3


def test_a_second_picture_begins_where_the_text_behind_the_first_ends() -> None:
    tokens = [True, True, False, True, True, False]
    time, rows, columns = prompt_positions(tokens, [(2, 1), (2, 1)])[:, 0].tolist()
    assert time == [0, 0, 2, 3, 3, 5]
    assert rows == [0, 1, 2, 3, 4, 5]
    assert columns == [0, 0, 2, 3, 3, 5]
