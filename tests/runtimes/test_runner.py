"""The runner on the demo: the same words as transformers, modules that come and go, and one line for what cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.bundle import load_bundle
from edgeglm.cli.main import main
from edgeglm.errors import BudgetError, DamagedFileError, UsageError
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS
from edgeglm.export.evaluate.original.whole import WholeOriginal
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.runtimes.text.messages import message
from tests.runtimes.demo import SCREEN, ask, demo_bundle, taps_ok

# Screens that ask for taps, apps, a swipe each way, a wait, the home screen, a login and an end, in both languages.
OF_EACH_KIND = (0, 1, 4, 6, 12, 14, 20, 23, 28, 29, 33, 37, 45)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(exact: Path) -> None:
    screens = list(read_samples(DATA / "evaluation.jsonl", max(OF_EACH_KIND) + 1))
    samples = [screens[index] for index in OF_EACH_KIND]
    agent = WholeOriginal.load(DEMO)
    wanted = agent.answer([sample.image for sample in samples], [sample.messages for sample in samples], batch_size=1)
    for index, sample, want in zip(OF_EACH_KIND, samples, wanted, strict=True):
        screen = DATA / "evaluation" / f"{index:04d}.webp"
        answer = ask(exact, sample.prompt, screen, max_new_tokens=MAX_NEW_TOKENS)
        assert answer.text == want


def test_a_portable_bundle_answers_the_same(exact: Path, tmp_path: Path) -> None:
    portable = demo_bundle(tmp_path / "bundle", "jetson", "fp32")
    answers = [ask(folder, "Select OK", SCREEN) for folder in (exact, portable)]
    assert answers[0].text == answers[1].text != ""


def test_modules_come_with_their_phase_and_go_after_it(exact: Path) -> None:
    seen = ask(exact, "Select OK", SCREEN)
    vision, decoder = seen.modules
    assert (vision.name, decoder.name) == ("vision", "decoder")
    assert vision.unloaded is not None
    assert vision.loaded < vision.unloaded <= decoder.loaded
    names = [phase.name for phase in seen.phases]
    seeing = ["read image", "load vision", "encode image", "release vision"]
    assert names == ["start", *seeing, "load decoder", "prefill", "decode"]
    blind = ask(exact, "Open Maps")
    assert [module.name for module in blind.modules] == ["decoder"]
    assert blind.peak_rss_bytes > 0


def test_a_long_prompt_is_prefilled_in_chunks_to_the_same_words(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(exact, "Select OK", SCREEN).text
    monkeypatch.setattr("edgeglm.runtimes.core.generate.PREFILL_CHUNK", 7)
    assert ask(exact, "Select OK", SCREEN).text == whole


def test_sampling_is_reproducible(exact: Path) -> None:
    hot = Sampling(temperature=3.0, top_p=0.9)
    texts = [ask(exact, "Select OK", SCREEN, sampling=hot, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_that_was_cut_off_says_so(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(exact), "--prompt", "Select OK", "--image", str(SCREEN)]
    assert main([*command, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["finish_reason"] == "stop"
    assert taps_ok(whole["action"])
    length = whole["generated_tokens"]
    for tokens, reason in ((length, "stop"), (length - 1, "length"), (3, "length")):
        assert main([*command, "--json", "--max-new-tokens", str(tokens)]) == 0
        assert json.loads(capsys.readouterr().out)["finish_reason"] == reason
    assert main([*command, "--max-new-tokens", "3"]) == 0
    assert "cut off after 3 tokens; raise --max-new-tokens" in capsys.readouterr().out
    assert main(command) == 0
    assert "cut off" not in capsys.readouterr().out


def test_an_answer_that_ends_within_a_character_shows_it(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runner(exact) as runner:
        tokens = runner.chat.bounded.encode("OK 🙂")[:-1]
        monkeypatch.setattr("edgeglm.runtimes.core.generate.Generation.__iter__", lambda _: iter(tokens))
        shown: list[str] = []
        answer = runner.answer([message("user", "Open Maps")], show=shown.append)
    assert answer.text == "".join(shown) == "OK \ufffd"
    assert [piece for piece in shown if "\ufffd" in piece] == shown[-1:]


def test_options_of_the_sampling_reach_it(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(exact), "--prompt", "Open Maps", "--json", "--max-new-tokens", "20"]
    texts = []
    for more in ([], ["--temperature=9", "--top-k=1"], ["--temperature=9", "--min-p=1"], ["--temperature=9"]):
        assert main([*command, *more]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_what_does_not_fit_is_refused_before_it_runs(exact: Path) -> None:
    with pytest.raises(BudgetError, match=r"are more than the 8192 that fit; ask for at most 81"):
        ask(exact, "Open Maps", max_new_tokens=8192)


def test_a_wrong_picture_or_a_damaged_bundle_is_one_line(exact: Path, tmp_path: Path) -> None:
    (tmp_path / "screen.webp").write_bytes(SCREEN.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"screen.webp: is not a readable image"):
        ask(exact, "Select OK", tmp_path / "screen.webp")
    damaged = demo_bundle(tmp_path / "bundle", "cpu", "int8")
    weights = damaged / "decoder" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedFileError, match=r"weights.bin: is damaged or was changed"):
        Runner(damaged)


def test_the_command_prints_the_documented_object(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(exact), "--image", str(SCREEN), "--prompt", "Select OK"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["action"]["action"] == "Tap"
    assert len(result["action"]["element"]) == 2
    assert set(result) >= {"text", "action", "prompt_tokens", "generated_tokens", "time_to_first_token_ms"}
    assert set(result) >= {"decode_tokens_per_second", "peak_rss_bytes", "state_bytes", "prefilled_tokens"}
    assert {"name", "ms", "rss_bytes"} <= result["phases"][0].keys()
    assert {"name", "engine", "loaded", "unloaded"} <= result["modules"][0].keys()
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith(result["text"])
    assert "peak RSS" in told
    assert main([*arguments, "--max-ram", "10MiB"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("edgeglm: --max-ram: 10MiB is too little for this bundle; give at least ")
    assert main([*arguments, "--max-ram", ""]) == 2
    assert capsys.readouterr().err.startswith("edgeglm: --max-ram '': is not a size; ")


def test_the_peak_is_the_predicted_one(exact: Path) -> None:
    """`benchmarks/export_memory.py --running` compares more; libraries of another Python take other amounts."""
    command = [sys.executable, "-m", "edgeglm.runtimes", str(exact), "--image", str(SCREEN), "--prompt", "ok " * 1600]
    done = subprocess.run(
        [*command, "--max-new-tokens", "8", "--threads", "2", "--json"], capture_output=True, text=True, check=True
    )
    answer, peaks = json.loads(done.stdout), load_bundle(exact).manifest.predicted.device_peak_rss_bytes
    expected = np.interp(answer["prompt_tokens"] + 8, sorted(peaks), [peaks[length] for length in sorted(peaks)])
    assert answer["peak_rss_bytes"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--prompt"],
        ["--max-new-tokens", "0"],
        ["--temperature", "-1"],
        ["--seed", "-1"],
        ["--nothing"],
        ["--top-k", "2.5"],
        ["--min-p", "1.5"],
    ],
)
def test_a_wrong_option_is_one_line(exact: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(exact), "--prompt", "x", *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("edgeglm: run: ")
    assert captured.err.count("\n") == 1


def test_a_picture_beyond_the_budget_is_refused_before_it_is_decoded(exact: Path, tmp_path: Path) -> None:
    """Within the budget of the demo's screens a picture of 16 million pixels is not."""
    Image.new("RGB", (4096, 4096)).save(tmp_path / "large.webp", quality=1, method=0)
    command = [sys.executable, str(exact / "run.pyz"), "--prompt", "Select OK", "--max-ram", "256MiB", "--json"]
    small = subprocess.run([*command, "--image", str(SCREEN)], capture_output=True, text=True, check=True)
    assert json.loads(small.stdout)["peak_rss_bytes"] < 256 << 20
    large = subprocess.run(
        [*command, "--image", str(tmp_path / "large.webp")], capture_output=True, text=True, check=False
    )
    assert (large.returncode, large.stdout, large.stderr.count("\n")) == (5, "", 1)
    assert "large.webp: decoding it takes 272MiB, and --max-ram leaves " in large.stderr


def test_the_file_in_the_bundle_is_the_same_program(exact: Path, tmp_path: Path) -> None:
    """Away from the checkout, in a Python that has no edgeglm but the one in the file."""
    blocked = tmp_path / "edgeglm"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise SystemExit('an installed edgeglm was imported')")
    command = [sys.executable, str(exact / "run.pyz"), "--image", str(SCREEN), "--prompt", "Select OK", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["text"] == ask(exact, "Select OK", SCREEN).text
    refused = subprocess.run([*command[:-1], "--max-ram", "1MiB"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (5, "", 1)


def test_what_is_not_installed_is_said_with_the_line_that_installs_it(exact: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(exact / "run.pyz"), "--prompt", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "run pip install numpy pillow tokenizers onnxruntime msgspec jinja2" in done.stderr


def test_a_squeezed_picture_is_said(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.png"
    Image.open(SCREEN).rotate(90, expand=True).save(wide)
    assert main(["run", str(exact), "--image", str(wide), "--prompt", "Select OK", "--max-new-tokens", "1"]) == 0
    said = f"{wide}: 672x336 is squeezed 4.0 times in width into the bundle's "
    assert f"note    {said}" in capsys.readouterr().out
    assert ask(exact, "Select OK", wide, max_new_tokens=1).notes[0].startswith(said)
    assert ask(exact, "Select OK", SCREEN, max_new_tokens=1).notes == []
