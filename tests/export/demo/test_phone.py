"""The simulated phone: what each action changes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

pytest.importorskip("PIL")

from edgeglm.actions import Action
from edgeglm.export.demo.phone import App, Phone, element_at
from edgeglm.export.demo.screens import ROWS, Element, Scene, sample_scene
from edgeglm.export.demo.steps import SWIPES, to_units

MAPS = (
    Element("back arrow", (6, 20, 26, 38)),
    Element("search box", (20, 50, 140, 68)),
    Element("trash button", (20, 90, 36, 106)),
    Element("heart button", (60, 90, 76, 106)),
    Element("picture", (20, 240, 140, 300)),
)
WIFI = Element("Wi-Fi switch", (134, 60, 158, 72))


@pytest.fixture
def phone() -> Phone:
    random = Random(0)
    first, second = (replace(sample_scene(random, kind="home"), focused=False) for _ in range(2))
    maps = Scene("page", MAPS, 0.3)
    below = replace(maps, elements=(Element("red button", (20, 90, 80, 106)),))
    apps = {
        "Maps": App([maps, below]),
        "News": App([maps], block="popup"),
        "Mail": App([maps], block="loading"),
        "Bank": App([maps], block="login"),
        "Settings": App([Scene("settings", (WIFI,), 0.2)]),
    }
    return Phone([first, second], apps, {f"{row} switch": False for row in ROWS}, look=0.5)


def do(phone: Phone, action: str, **arguments: object) -> None:
    phone.perform(Action(action, arguments))  # type: ignore[arg-type]


def launch(phone: Phone, app: str) -> None:
    do(phone, "Launch", app=app)


def tap(phone: Phone, name: str, action: str = "Tap") -> None:
    element = phone.scene.find(name)
    assert element is not None, name
    do(phone, action, element=to_units(*element.centre))


def swipe(phone: Phone, direction: str) -> None:
    _, start, end = SWIPES[direction]
    do(phone, "Swipe", start=start, end=end)


@pytest.mark.parametrize("name", ["Maps", "地图"])
def test_launch_opens_an_app_by_either_name(phone: Phone, name: str) -> None:
    launch(phone, name)
    assert (phone.front, phone.scene.app, phone.scene.kind) == ("Maps", "Maps", "page")
    assert phone.effects == [("opened", "Maps", "")]


def test_an_unknown_app_changes_nothing(phone: Phone) -> None:
    before = phone.copy()
    launch(phone, "WeChat")
    assert phone == before


def test_an_icon_opens_its_app(phone: Phone) -> None:
    phone.home[0] = Scene("home", (Element("Maps", (20, 40, 46, 66)),), 0.1)
    tap(phone, "Maps")
    assert phone.front == "Maps"


def test_home_and_back_leave_an_app(phone: Phone) -> None:
    for action in ("Home", "Back"):
        launch(phone, "Maps")
        do(phone, action)
        assert phone.front == ""
        assert phone.scene == phone.home[0]


def test_a_text_is_typed_into_a_focused_box_alone(phone: Phone) -> None:
    launch(phone, "Maps")
    do(phone, "Type", text="milk")
    assert phone.scene.typed == ""
    tap(phone, "search box")
    assert phone.scene.focused
    assert phone.scene.find("picture") is None  # the keyboard covers it
    do(phone, "Type", text="milk")
    assert (phone.scene.typed, phone.scene.focused) == ("milk", False)
    assert phone.effects[-1] == ("typed", "Maps", "milk")


def test_back_closes_the_keyboard_first(phone: Phone) -> None:
    launch(phone, "Maps")
    tap(phone, "search box")
    do(phone, "Back")
    assert (phone.front, phone.scene.focused) == ("Maps", False)


def test_a_switch_toggles(phone: Phone) -> None:
    launch(phone, "Settings")
    for want in (True, False):
        tap(phone, "Wi-Fi switch")
        assert phone.switches["Wi-Fi switch"] is want
        assert phone.scene.elements[0].on is want


@pytest.mark.parametrize(("button", "effects"), [("OK", [("confirmed", "Maps", "trash button")]), ("Cancel", [])])
def test_a_deletion_is_confirmed_or_cancelled(phone: Phone, button: str, effects: list[tuple[str, str, str]]) -> None:
    launch(phone, "Maps")
    tap(phone, "trash button")
    assert phone.scene.kind == "dialog"
    tap(phone, button)
    assert phone.scene.kind == "page"
    assert phone.effects[1:] == effects


def test_taps_of_every_kind_are_noted(phone: Phone) -> None:
    launch(phone, "Maps")
    tap(phone, "heart button")
    tap(phone, "picture", "Double Tap")
    tap(phone, "picture", "Long Press")
    do(phone, "Tap", element=(999, 999))  # nothing is there
    happened = [("pressed", "heart button"), ("Double Tap", "picture"), ("Long Press", "picture")]
    assert phone.effects[1:] == [(kind, "Maps", name) for kind, name in happened]


def test_swipes_turn_pages_up_to_the_last(phone: Phone) -> None:
    launch(phone, "Maps")
    swipe(phone, "down")
    assert phone.scene.find("red button")
    swipe(phone, "down")
    assert phone.scene.find("red button")
    swipe(phone, "up")
    assert phone.scene.find("heart button")
    do(phone, "Home")
    swipe(phone, "right")
    assert phone.scene == phone.home[1]
    swipe(phone, "left")
    assert phone.scene == phone.home[0]


def test_what_blocks_an_app_needs_its_own_action(phone: Phone) -> None:
    for app, kind in (("News", "popup"), ("Mail", "loading"), ("Bank", "login")):
        launch(phone, app)
        assert phone.scene.kind == kind
        swipe(phone, "down")
        assert phone.scene.kind == kind
    do(phone, "Take_over", message="Please log in")
    assert phone.scene.kind == "page"
    launch(phone, "Mail")
    do(phone, "Wait", duration="2 seconds")
    assert phone.scene.kind == "page"
    launch(phone, "News")
    tap(phone, "close button")
    assert phone.scene.kind == "page"


def test_a_copy_goes_its_own_way(phone: Phone) -> None:
    copy = phone.copy()
    launch(copy, "Settings")
    tap(copy, "Wi-Fi switch")
    assert phone.effects == []
    assert not phone.switches["Wi-Fi switch"]


def test_the_element_drawn_last_is_touched() -> None:
    under, over = Element("picture", (0, 0, 100, 100)), Element("heart button", (40, 40, 60, 60))
    scene = Scene("page", (under, over), 0.1)
    assert element_at(scene, to_units(50, 50)) == over
    assert element_at(scene, to_units(10, 10)) == under
    assert element_at(scene, to_units(150, 300)) is None
