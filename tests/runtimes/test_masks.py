"""Masks: what is blanked alike makes images alike, in what is compared and in what is encoded."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.cli.main import main
from edgeglm.errors import UsageError
from edgeglm.runtimes.core.features import LAST
from edgeglm.runtimes.core.prefixes import Keep
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.inputs.image import MAX_PIXELS, open_picture, to_rgb
from edgeglm.runtimes.inputs.masks import Mask, hash_masked, open_masked, parse_mask
from edgeglm.runtimes.text.messages import message
from tests.runtimes.demo import SCREEN

BAR = Mask(0, 0, 200, 20)
VISION = ["read image", "load vision", "encode image", "release vision"]


def at(clock: str, folder: Path) -> Path:
    """The demo's screen with another time in its status bar."""
    image = to_rgb(open_picture(SCREEN))
    ImageDraw.Draw(image).text((4, 4), clock, fill="red")
    image.save(folder / f"{clock}.png")
    return folder / f"{clock}.png"


def test_a_mask_blanks_its_region_and_no_other_pixel() -> None:
    plain, masked = (np.asarray(to_rgb(open_masked(SCREEN, masks))) for masks in ([], [Mask(10, 20, 30, 40)]))
    assert not masked[20:60, 10:40].any()
    changed = (plain != masked).any(axis=2)
    changed[20:60, 10:40] = False
    assert not changed.any()


def test_pictures_that_differ_behind_a_mask_alone_are_one(tmp_path: Path) -> None:
    early, late = at("10", tmp_path), at("11", tmp_path)
    assert hash_masked(early, [BAR]) == hash_masked(late, [BAR])
    assert hash_masked(early, []) != hash_masked(late, [])
    assert hash_masked(early, [BAR]) != hash_masked(early, [BAR, Mask(0, 300, 9, 9)])
    assert hash_masked(early, [Mask(300, 0, 9, 9)]) != hash_masked(late, [Mask(300, 0, 9, 9)])


def test_a_mask_fits_a_photo_that_is_decoded_smaller() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 4000), "white").save(buffer, "JPEG")
    assert MAX_PIXELS < 6000 * 4000
    seen = np.asarray(open_masked(buffer.getvalue(), [Mask(4000, 0, 2000, 2000)]))
    height, width, _ = seen.shape
    assert seen[: height // 2 - 2, width * 2 // 3 + 2 :].max() == 0
    assert seen[height // 2 + 2 :].min() > 200


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,4,4", "0,0,0,4", "0,0,4,0", "1.5,0,4,4", "٣,0,4,4"]
)
def test_what_is_no_region_is_a_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="is no region"):
        parse_mask(text)
    assert main(["run", "bundle", "--prompt", "x", f"--mask={text}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("mask", ["0,0,5000,20", "300,0,100,20", "0,999999,1,1"])
def test_a_region_outside_the_picture_is_a_line(exact: Path, mask: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(exact), "--prompt", "x", "--image", str(SCREEN), "--mask", mask]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"--mask {mask}: is not within {SCREEN}, which has 336x672 pixels" in said.err


def test_the_same_picture_behind_another_prompt_is_encoded_once(exact: Path, tmp_path: Path) -> None:
    early, late = at("10", tmp_path), at("11", tmp_path)
    with Runner(exact, masks=[BAR]) as runner:
        answers = [
            runner.answer([message("system", rules), message("user", "Select OK", screen)], max_new_tokens=8)
            for rules, screen in (("Tap.", early), ("Tap well.", late), ("Tap.", early))
        ]
    assert [[phase.name for phase in answer.phases if phase.name in VISION] for answer in answers] == [VISION, [], []]
    assert answers[0].tokens == answers[2].tokens


def test_features_are_there_again_after_a_restart_and_equal(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for masks in ([], [BAR]):
        answers = []
        for _ in range(2):
            with Runner(exact, keep=Keep(64 << 20), masks=masks) as runner:
                answers.append(runner.answer([message("user", "Select OK", SCREEN)], max_new_tokens=12))
        assert "vision" in [module.name for module in answers[0].modules]
        assert [module.name for module in answers[1].modules] == ["decoder"]
        assert answers[0].tokens == answers[1].tokens
    for file in (tmp_path / "edgeglm/states").iterdir():
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    with Runner(exact, keep=Keep(64 << 20)) as runner:
        answer = runner.answer([message("user", "Select OK", SCREEN)], max_new_tokens=12)
    assert "vision" in [module.name for module in answer.modules]


def test_only_the_last_pictures_are_in_memory(exact: Path, tmp_path: Path) -> None:
    screens = [at(str(number), tmp_path) for number in range(LAST + 1)]
    with Runner(exact) as runner:
        encoded = [
            "encode image" in [phase.name for phase in runner.answer(asked, max_new_tokens=1).phases]
            for asked in (
                [message("user", f"{number}", screen)] for number, screen in enumerate([*screens, *screens[::-1]])
            )
        ]
    assert encoded == [True] * (LAST + 1) + [False] * LAST + [True]


def test_validate_measures_with_masks(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", str(exact), "--limit", "12", "--accuracy-drop", "100%", "--json"]
    shares = []
    for more in ([], ["--mask", "0,0,336,672"]):
        main([*command, *more])
        shares.append(json.loads(capsys.readouterr().out)["metrics"][0]["artifact"])
    assert shares[0] > shares[1]
    assert main([*command, "--mask", "0,0,337,1"]) == 2
