"""Prefixes that an earlier runner has computed: restored to the same answers, and never a wrong byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.blocks import KIND, Blocks
from edgeglm.cli.main import main
from edgeglm.errors import BudgetError, UsageError
from edgeglm.runtimes.core import prefixes
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.conversation import Conversation
from edgeglm.runtimes.core.keep_options import read_keep
from edgeglm.runtimes.core.prefixes import Chain, Keep
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.state import Beginning
from edgeglm.runtimes.engines.ort import engine
from edgeglm.runtimes.text.messages import Message, message
from tests.runtimes.demo import OTHER_SCREEN, SCREEN, demo_bundle

RULES = "You tap what you are told to tap, and say where. " * 40
MIB = 1 << 20
SOME = Keep(64 * MIB)


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgeglm" / KIND


def system(day: str = "Sunday", rules: str = RULES) -> list[Message]:
    return [message("system", f"Today is {day}.\n{rules}")]


def ask(folder: Path, messages: Sequence[Message], keep: Keep | None = SOME) -> Answer:
    with Runner(folder, keep=keep) as runner:
        return runner.answer(messages, max_new_tokens=12)


def question(text: str = "Select OK", image: Path | None = SCREEN) -> Message:
    return message("user", text, image)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_a_restored_prefix_gives_the_same_answer(exact: Path, tmp_path: Path, states: Path, dialect: str) -> None:
    folder = exact if dialect == "ort" else demo_bundle(tmp_path / "bundle", "jetson", "fp32")
    prompt = [*system(), question()]
    without = ask(folder, prompt, None)
    first, second = ask(folder, prompt), ask(folder, [*system(), question("Go back")])
    again = ask(folder, prompt)
    assert without.tokens == first.tokens == again.tokens
    assert (first.restored_tokens, first.prefilled_tokens) == (0, first.prompt_tokens)
    assert again.restored_tokens == second.restored_tokens > 2 * prefixes.TOKENS
    assert again.prefilled_tokens == again.prompt_tokens - again.restored_tokens
    # All of the system prompt, and nothing of what came behind it.
    with Runner(folder, keep=Keep(64 * MIB)) as runner:
        rest = runner.chat.tokenizer.decode(runner.prompt(prompt).tokens[again.restored_tokens :])
    assert RULES.strip() not in rest
    assert "Select OK" in rest
    assert "keep prefix" in [phase.name for phase in first.phases]
    assert len(list(states.iterdir())) == 4  # three blocks, and the image's features
    assert "keep prefix" not in [phase.name for phase in again.phases]


def test_a_picture_in_the_prefix_is_not_encoded_again(exact: Path, states: Path) -> None:
    shown = [*system(), question("Select OK", SCREEN), message("assistant", "Done.")]
    keep = Keep(64 * MIB, shown)
    first = ask(exact, [*shown, question("Go back", None)], keep)
    again = ask(exact, [*shown, question("Go back", None)], keep)
    assert first.tokens == again.tokens
    assert again.prefilled_tokens < 40
    assert [module.name for module in again.modules] == ["decoder"]
    other = ask(exact, [*system(), question("Select OK", OTHER_SCREEN), *shown[2:], question("Go back", None)], keep)
    assert other.restored_tokens < again.restored_tokens  # up to the picture, which is another
    assert "vision" in [module.name for module in other.modules]


def test_another_first_line_is_another_chain_that_is_written_once(exact: Path, states: Path) -> None:
    ask(exact, [*system("Sunday"), question()])
    sunday = {path.name for path in states.iterdir()}
    monday = ask(exact, [*system("Monday"), question()])
    assert monday.restored_tokens == 0
    assert monday.tokens == ask(exact, [*system("Monday"), question()], None).tokens
    files = {path.name: path.stat().st_ino for path in states.iterdir()}
    assert len(files) == 2 * len(sunday) - 1  # the image's is the same
    again = ask(exact, [*system("Monday"), question("Go back")])
    assert again.restored_tokens > 2 * prefixes.TOKENS
    assert {path.name: path.stat().st_ino for path in states.iterdir()} == files


def test_prompts_share_the_blocks_that_they_begin_with(exact: Path, states: Path) -> None:
    ask(exact, [*system(), question()])
    longer = ask(exact, [*system(rules=RULES + "Never say no. " * 80), question()])
    assert longer.restored_tokens == 2 * prefixes.TOKENS
    assert ask(exact, [question()]).restored_tokens == 0  # changes at its first token


def test_a_damaged_block_is_computed_again(exact: Path, states: Path) -> None:
    prompt = [*system(), question(image=None)]
    whole = ask(exact, prompt)
    for number in range(3):
        file = sorted(states.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)[number]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 16
        file.write_bytes(data)
        damaged = ask(exact, prompt)
        assert (damaged.tokens, damaged.restored_tokens) == (whole.tokens, number * prefixes.TOKENS)
        assert ask(exact, prompt).restored_tokens > 2 * prefixes.TOKENS


def test_a_bundle_of_other_files_or_another_engine_finds_nothing(
    exact: Path, tmp_path: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(exact, [*system(), question()])
    other = demo_bundle(tmp_path / "bundle", "cpu", "int8")
    assert ask(other, [*system(), question()]).restored_tokens == 0
    monkeypatch.setattr(engine, "version", lambda: "0.0")
    assert ask(exact, [*system(), question()]).restored_tokens == 0


def test_rows_that_the_engine_does_not_take_are_not_used(
    exact: Path, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(exact, [*system(), question()])
    monkeypatch.setattr(engine.Decoder, "row_bytes", property(lambda _: 0))
    refused = ask(exact, [*system(), question()])
    assert (refused.tokens, refused.restored_tokens) == (whole.tokens, 0)


def test_a_cap_that_is_reached_keeps_the_beginning(exact: Path, states: Path) -> None:
    ask(exact, [*system(), question(image=None)])
    (block, *_) = sorted(path.stat().st_size for path in states.iterdir())[::-1]
    shutil.rmtree(states)
    keep = Keep(block + block // 2)
    with Runner(exact, keep=keep) as runner:
        for text in ("Select OK", "Go back"):
            runner.answer([*system(), question(text, None)], max_new_tokens=2)
    assert len(list(states.iterdir())) == 1
    assert ask(exact, [*system(), question(image=None)], keep).restored_tokens == prefixes.TOKENS


def test_without_room_for_both_the_prefix_is_restored_behind_each_new_picture(exact: Path, states: Path) -> None:
    with Runner(exact, max_ram=1 << 40, keep=SOME) as runner:
        runner.pictures.spare = lambda: 0  # so that the decoder makes room for the vision module
        first = runner.answer([*system(), question("Select OK", SCREEN)], max_new_tokens=2)
        second = runner.answer([*system(), question("Select OK", OTHER_SCREEN)], max_new_tokens=2)
    assert (first.restored_tokens, second.restored_tokens > 2 * prefixes.TOKENS) == (0, True)


def test_a_warm_runner_has_the_prefix_in_its_decoder(exact: Path, states: Path) -> None:
    for _ in range(2):
        with Runner(exact, keep=Keep(64 * MIB, system())) as runner:
            runner.warm()
            answer = runner.answer([*system(), question("Go back", None)], max_new_tokens=2)
        assert answer.prefilled_tokens < 40
        assert answer.restored_tokens == 0
    with Runner(exact) as runner:
        runner.warm()  # with nothing


def test_a_prefix_longer_than_the_context_is_a_line(exact: Path, states: Path) -> None:
    with Runner(exact, keep=Keep(64 * MIB, system(rules=RULES * 20))) as runner:
        with pytest.raises(BudgetError, match=r"shorten the prompt"):
            runner.warm()
        assert runner.answer([question(image=None)], max_new_tokens=2).text
    assert not states.exists()


def test_a_template_that_wants_another_message_next_keeps_nothing(exact: Path, states: Path) -> None:
    with Runner(exact, keep=Keep(64 * MIB, system())) as runner:
        conversation = Conversation(runner, prefix=runner.prefixes.messages, max_new_tokens=2)
        answers = [conversation.ask(text, SCREEN) for text in ("Select OK", "Go back")]
    assert answers[1].prefilled_tokens < answers[1].prompt_tokens / 2
    assert len(list(states.iterdir())) == 4  # the system prompt's and the image's, and not the first turn's


def test_a_beginning_is_what_the_decoder_or_the_store_has_more_of(states: Path) -> None:
    blocks = Blocks(MIB)
    assert blocks.keep(b"head", memoryview(bytes(64)))
    block = blocks.find(b"head")
    assert block
    chain = Chain([(0, 256, block)])
    assert [Beginning(3).tokens, Beginning(3, chain).tokens, Beginning(300, chain).tokens] == [3, 256, 300]


def test_a_size_alone_is_enough_and_one_that_is_none_is_a_line() -> None:
    assert read_keep(None, None) is None
    assert read_keep(None, "2MiB") == Keep(2 << 20)
    with pytest.raises(UsageError, match="is not a size"):
        read_keep(None, "much")


def test_the_options_of_the_command(
    exact: Path, tmp_path: Path, states: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, listed = tmp_path / "prefix.txt", tmp_path / "shots" / "prefix.json"
    text.write_text(RULES)
    listed.parent.mkdir()
    shutil.copy(SCREEN, listed.parent / "screen.webp")
    listed.write_text(json.dumps([*system(), message("user", "Look", Path("screen.webp")), message("assistant", "OK")]))
    for file in (text, listed):
        restored = []
        for _ in range(2):
            command = ["run", str(exact), "--prefix", str(file), "--prompt", "Select OK", "--max-new-tokens", "2"]
            assert main([*command, "--json"]) == 0
            restored.append(json.loads(capsys.readouterr().out)["restored_tokens"])
        assert restored[0] < restored[1] > 500
        assert main(command) == 0
        assert f"{restored[1]} of them restored" in capsys.readouterr().out
    shutil.rmtree(states)
    assert main([*command, "--keep", "0"]) == 0
    assert not states.exists()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing.txt", None, "cannot be read"),
        ("empty.txt", b" \n", "is empty"),
        ("bytes.txt", b"\xff\xfe", "is not UTF-8"),
        ("no.json", b"{", "is no list of messages"),
        ("object.json", b'{"role": "system"}', "is no list of messages"),
        ("none.json", b"[]", "has no message"),
        ("role.json", b'[{"content": "x"}]', "has no role"),
        ("deep.json", b"[" * 100_000, "is no list of messages"),
        ("picture.json", b'[{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]', "no.png"),
    ],
)
def test_a_file_that_is_no_prefix_is_a_line(
    exact: Path, tmp_path: Path, name: str, content: bytes | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["run", str(exact), "--prefix", str(tmp_path / name), "--prompt", "x"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert why in said.err
