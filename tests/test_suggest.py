"""The remedy for an unknown name."""

from __future__ import annotations

from edgeglm.suggest import nearest_name


def test_a_near_miss_gets_the_nearest_choice() -> None:
    assert nearest_name("docter", ["devices", "doctor"]) == "did you mean doctor?"


def test_a_name_near_to_none_gets_all_choices_in_order() -> None:
    assert nearest_name("zzz", ["doctor", "devices"]) == "choose one of devices, doctor"
