"""Requests that build on one another: the known is not computed again, and the answers are a fresh runner's."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeglm.errors import BudgetError, UnsupportedError, UsageError
from edgeglm.memory import current_rss
from edgeglm.runtimes.core.answer import Answer
from edgeglm.runtimes.core.conversation import Conversation
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.engines.ort.engine import Encoder
from edgeglm.runtimes.text.messages import Message, message
from tests.runtimes.demo import OTHER_SCREEN, SCREEN, demo_bundle


def fresh(folder: Path, messages: Sequence[Message]) -> Answer:
    with Runner(folder) as runner:
        return runner.answer(messages)


def names(answer: Answer) -> list[str]:
    return [phase.name for phase in answer.phases]


@pytest.mark.parametrize("target", ["cpu", "jetson"])
def test_a_second_turn_prefills_only_what_is_new(exact: Path, tmp_path: Path, target: str) -> None:
    folder = exact if target == "cpu" else demo_bundle(tmp_path / "bundle", target, "fp32")
    with Runner(folder) as runner:
        chat = Conversation(runner)
        first = chat.ask("Select OK", SCREEN)
        second = chat.ask("Go back")
    assert first.prefilled_tokens == first.prompt_tokens
    # What the first answer left, but for its last token, which never was an input.
    known = first.prompt_tokens + first.generated_tokens - 1
    assert second.prompt_tokens - second.prefilled_tokens >= known - 1
    assert second.prefilled_tokens < 16
    assert names(second) == ["prefill", "decode"]
    history = [message("user", "Select OK", SCREEN), message("assistant", first.text), message("user", "Go back")]
    assert second.text == fresh(folder, history).text != ""


def test_the_same_screen_with_another_question_is_not_encoded_again(exact: Path) -> None:
    with Runner(exact) as runner:
        runner.answer([message("user", "Select OK", SCREEN)])
        again = runner.answer([message("user", "Select Cancel", SCREEN)])
        other = runner.answer([message("user", "Select Cancel", OTHER_SCREEN)])
    assert again.prefilled_tokens < 10
    assert "load vision" not in names(again)
    assert again.text == fresh(exact, [message("user", "Select Cancel", SCREEN)]).text
    assert "load vision" in names(other)
    assert other.text == fresh(exact, [message("user", "Select Cancel", OTHER_SCREEN)]).text


def test_a_later_picture_is_seen_too(exact: Path) -> None:
    with Runner(exact) as runner:
        chat = Conversation(runner)
        first = chat.ask("Select OK", SCREEN)
        second = chat.ask("Go back", OTHER_SCREEN)
    history = [message("user", "Select OK", SCREEN), message("assistant", first.text)]
    assert second.text == fresh(exact, [*history, message("user", "Go back", OTHER_SCREEN)]).text
    assert names(second)[1:3] == ["load vision", "encode image"]


def test_without_room_for_both_the_decoder_makes_room_for_a_later_picture(exact: Path) -> None:
    with Runner(exact, max_ram=current_rss() + (1 << 30)) as runner:
        runner.pictures.spare = lambda: 0
        runner.answer([message("user", "Select OK", SCREEN)])
        other = runner.answer([message("user", "Select OK", OTHER_SCREEN)])
    decoder, vision, again = other.modules
    assert [each.name for each in other.modules] == ["decoder", "vision", "decoder"]
    assert decoder.unloaded is not None
    assert vision.unloaded is not None
    assert decoder.unloaded <= vision.loaded < vision.unloaded <= again.loaded


@pytest.mark.parametrize("room", [None, 1 << 30])
def test_the_vision_module_stays_where_it_was_loaded_beside_the_decoder(exact: Path, room: int | None) -> None:
    asked = [[message("user", "Select OK", screen)] for screen in (SCREEN, OTHER_SCREEN)] * 3
    with Runner(exact, max_ram=room and current_rss() + room) as runner:
        answers = list[Answer]()
        for messages in asked:
            answers.append(runner.answer(messages))
            runner.pictures._features.clear()
            runner.forget()
            if len(answers) == 5:
                runner.rest()
    about = [[phase for phase in names(answer) if phase.endswith("vision")] for answer in answers]
    assert about == [["load vision", "release vision"], ["load vision"], [], [], [], ["load vision"]]
    assert all(module.unloaded is not None for module in answers[-1].modules)
    expected = [fresh(exact, messages).text for messages in asked[:2]]
    assert [answer.text for answer in answers] == expected * 3


def test_what_fails_while_it_encodes_releases_the_vision_module(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runner(exact) as runner:
        expected = runner.answer([message("user", "Select OK", SCREEN)]).text
        runner.answer([message("user", "Select OK", OTHER_SCREEN)])
        assert runner.pictures.held.taken
        runner.pictures._features.clear()
        runner.forget()
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "run", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                runner.answer([message("user", "Select OK", SCREEN)])
        assert not runner.pictures.held.taken
        assert runner.answer([message("user", "Select OK", SCREEN)]).text == expected


def test_a_buffer_grows_with_its_content(exact: Path) -> None:
    with Runner(exact) as runner:
        short = runner.answer([message("user", "Select OK", SCREEN)], max_new_tokens=40)
        longer = runner.answer([message("user", "Select OK", SCREEN)], max_new_tokens=400)
        same = runner.answer([message("user", "Select OK", SCREEN)], max_new_tokens=400)
    assert longer.state_bytes == 2 * short.state_bytes == same.state_bytes
    assert longer.prefilled_tokens == 1
    assert short.text == longer.text == same.text


def test_a_full_window_forgets_old_turns_and_keeps_the_system_prompt(exact: Path) -> None:
    system = "You work a phone."
    with Runner(exact, context=256) as runner:
        chat, kept, reused = Conversation(runner, system, max_new_tokens=40), [], []
        for turn in range(16):
            answer = chat.ask(f"Wait {turn} seconds")
            assert answer.prompt_tokens + 40 <= 256
            kept.append(len(chat.turns))
            reused.append(answer.prompt_tokens - answer.prefilled_tokens)
        tokens = runner.chat.encode([message("system", system)])
        assert 0 < kept[-1] <= max(kept) < 16
        # Even after a cut the beginning, up to the system prompt's last word, was still known.
        assert min(reused[1:]) >= len(tokens) - 2
        with pytest.raises(BudgetError, match=r"more than the 256 that fit"):
            chat.ask("word " * 300)
        assert len(chat.turns) == kept[-1]


def test_an_error_in_one_request_leaves_the_next_unharmed(exact: Path) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("the listener is gone")

    question = [message("user", "Select OK", SCREEN)]
    with Runner(exact) as runner:
        with pytest.raises(RuntimeError):
            runner.answer(question, show=fail)
        with pytest.raises(UsageError):
            runner.answer([message("user", "Select OK", SCREEN / "nothing")])
        assert runner.answer(question).text == fresh(exact, question).text


def test_what_was_taken_is_given_back_once_in_reverse_order_whatever_fails(exact: Path) -> None:
    undone: list[str] = []

    def fail() -> None:
        undone.append("second")
        raise RuntimeError("the hook is broken")

    runner = Runner(exact)
    modules = runner.answer([message("user", "Open Maps")]).modules
    runner.resources.callback(undone.append, "first")
    runner.resources.callback(fail)
    runner.resources.callback(undone.append, "third")
    with pytest.raises(RuntimeError, match="the hook is broken"):
        runner.close()
    runner.close()
    assert undone == ["third", "second", "first"]
    assert modules[0].unloaded is not None


def test_a_prompt_cannot_smuggle_a_picture_in(exact: Path) -> None:
    with Runner(exact) as runner:
        with pytest.raises(UsageError, match=r"holds the image token"):
            runner.answer([message("user", "Look: <|image|>")])
        with pytest.raises(UsageError, match=r"the prompt: is empty"):
            runner.answer([message("user", " ", SCREEN)])


def test_a_picture_in_any_form_is_the_same_picture(exact: Path) -> None:
    data = SCREEN.read_bytes()
    question = {"type": "text", "text": "Select OK"}
    with Runner(exact) as runner:
        right = runner.answer([message("user", "Select OK", SCREEN)])
        for part in (
            {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{b64encode(data).decode()}"}},
            {"type": "image_url", "image_url": SCREEN.as_uri()},
            {"type": "image", "url": str(SCREEN)},
        ):
            answer = runner.answer([{"role": "user", "content": [part, question]}])
            assert (answer.text, answer.prompt_tokens, answer.prefilled_tokens) == (right.text, right.prompt_tokens, 1)
        with pytest.raises(UsageError, match="the image: is not a readable image: it is no WebP") as caught:
            runner.answer([{"role": "user", "content": [{"type": "image", "url": "data:;base64,AAAA"}, question]}])
        assert len(str(caught.value)) < 200
        with pytest.raises(UnsupportedError, match="message 1: holds a part of type video, which no model here takes"):
            runner.answer([{"role": "user", "content": [{"type": "video_url", "video_url": "a.mp4"}, question]}])


def test_a_turn_without_content_is_an_empty_one(exact: Path) -> None:
    before, after = message("user", "Open Maps"), message("user", "Go back")
    with Runner(exact) as runner:
        right = runner.prompt([before, message("assistant", ""), after]).tokens
        turns: list[Message] = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant"}]
        for turn in turns:
            assert runner.prompt([before, turn, after]).tokens == right
