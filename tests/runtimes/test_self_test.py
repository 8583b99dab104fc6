"""The self-test that a bundle carries: it passes where the bundle answers as the original, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")

from edgeglm.actions import Action
from edgeglm.bundle import load_bundle, read_manifest
from edgeglm.cli.main import main
from edgeglm.errors import DamagedFileError
from edgeglm.export.demo.self_test import answer_screens
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.machine import read_machine
from edgeglm.manifest import MANIFEST, File
from edgeglm.runtimes.core.self_test import FILE, Probe, SelfTest, are_alike, read_self_test
from tests.runtimes.demo import demo_bundle


def sealed(exact: Path, folder: Path, content: bytes) -> Path:
    """Return the bundle with another self-test, sealed again as if an export had written it."""
    shutil.copytree(exact, folder)
    (folder / FILE).write_bytes(content)
    manifest = read_manifest(folder)
    files = {**manifest.files, FILE: File(hashlib.sha256(content).hexdigest(), len(content))}
    (folder / MANIFEST).write_bytes(msgspec.structs.replace(manifest, files=files).to_bytes())
    return folder


def changed(exact: Path, folder: Path, change: Callable[[Probe], Probe]) -> Path:
    test = msgspec.json.decode((exact / FILE).read_bytes(), type=SelfTest)
    return sealed(exact, folder, SelfTest(tuple(map(change, test.probes))).to_bytes())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_demo_passes_in_every_precision(exact: Path, tmp_path: Path, precision: str) -> None:
    folder = exact if precision == "fp32" else demo_bundle(tmp_path / "bundle", "cpu", precision)
    done = subprocess.run(
        [sys.executable, str(folder / "run.pyz"), "--self-test", "--json", "--max-ram", "400MiB"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["passed"]
    assert verdict["engines"] == {"vision": "ort", "decoder": "ort"}
    assert {probe["image"] is not None for probe in verdict["probes"]} == {True}
    assert verdict["agreement"] == 1.0 or precision != "fp32"
    assert all(probe["same"] for probe in verdict["probes"]) or precision != "fp32"


def test_the_assets_are_small_and_of_held_out_screens(exact: Path) -> None:
    assets = list((exact / "assets").iterdir())
    assert sum(file.stat().st_size for file in assets) <= 200_000
    pictures = {file.read_bytes() for file in assets if file.suffix == ".webp"}
    assert pictures <= {path.read_bytes() for path in (DATA / "evaluation").glob("*.webp")}
    assert len({probe.tokens for probe in read_self_test(load_bundle(exact)).probes}) >= 6


def test_what_ships_is_what_transformers_answers(exact: Path) -> None:
    probe = next(iter(msgspec.json.decode((DATA / "self-test.json").read_bytes(), type=SelfTest).probes))
    samples = [each for each in read_samples(DATA / "evaluation.jsonl", 24) if each.prompt == probe.prompt]
    ((_, _, fresh),) = answer_screens(samples[:1])
    assert (fresh.tokens, fresh.prompt, fresh.image) == (probe.tokens, probe.prompt, probe.image)


def test_other_answers_than_the_originals_fail(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shifted(probe: Probe) -> Probe:
        return msgspec.structs.replace(probe, likeliest=tuple((token + 1) % 1000 for token in probe.likeliest))

    folder = changed(exact, tmp_path / "bundle", shifted)
    assert main(["run", str(folder), "--self-test", "--max-ram", "8GiB"]) == 4
    printed = capsys.readouterr()
    assert "verdict  FAILED" in printed.out
    assert main(["run", str(folder), "--self-test", "--json", "--max-ram", "8GiB"]) == 4
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["passed"], verdict["int8_kernels"]) == (False, read_machine().int8_kernels)
    assert main(["run", str(folder), "--self-test", "--max-ram", "60MiB"]) == 5
    capsys.readouterr()
    assert printed.err.startswith(f"edgeglm: {folder}: its self-test failed here: ")


def test_another_action_fails_though_few_tokens_differ(exact: Path, tmp_path: Path) -> None:
    home = next(probe for probe in read_self_test(load_bundle(exact)).probes if probe.prompt == "Go home")

    def asked_something_else(probe: Probe) -> Probe:
        return msgspec.structs.replace(home, prompt="Wait for 14 seconds") if probe == home else probe

    folder = changed(exact, tmp_path / "bundle", asked_something_else)
    assert main(["run", str(folder), "--self-test"]) == 4


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is not a self-test"),
        (b'{"probes": [], "self_test_schema": 1}', "is not a self-test"),
        (b'{"probes": [{"prompt": "a", "tokens": [1], "likeliest": [1], "sure": []}]}', "lists differ in length"),
        (b'{"probes": [{"prompt": "a", "tokens": [4096], "likeliest": [1], "sure": [true]}]}', "beyond the vocabulary"),
        (
            b'{"probes": [{"prompt": "a", "tokens": [1], "likeliest": [1], "sure": [true], "image": "../a.webp"}]}',
            "an image that the bundle lacks",
        ),
        (b'{"probes": [{"prompt": "a", "tokens": [1], "likeliest": [1], "sure": [true], "more": 1}]}', "unknown field"),
    ],
)
def test_what_is_no_self_test_is_refused(exact: Path, tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(DamagedFileError, match=why):
        read_self_test(load_bundle(sealed(exact, tmp_path / "bundle", content)))


def test_a_bundle_without_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = demo_bundle(tmp_path / "bundle", "cpu", "fp32")
    manifest = read_manifest(folder)
    files = {name: file for name, file in manifest.files.items() if not name.startswith("assets/")}
    (folder / MANIFEST).write_bytes(msgspec.structs.replace(manifest, files=files).to_bytes())
    assert main(["run", str(folder), "--self-test"]) == 3
    assert "carries no self-test" in capsys.readouterr().err
    assert main(["run", str(folder), "--self-test", "--prompt", "a"]) == 2


def test_actions_are_alike_near_one_another() -> None:
    tap = Action("Tap", {"element": (100, 200)})
    assert are_alike(tap, Action("Tap", {"element": (130, 240)}))
    assert not are_alike(tap, Action("Tap", {"element": (100, 251)}))
    assert not are_alike(tap, Action("Long Press", {"element": (100, 200)}))
    assert not are_alike(tap, Action("Tap", {"element": (100, 200), "message": "a"}))
    assert not are_alike(Action("Type", {"text": "a"}), Action("Type", {"text": "b"}))
    assert not are_alike(tap, None)
