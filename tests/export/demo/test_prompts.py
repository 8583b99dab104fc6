"""Made-up system prompts: for training of every length, for episodes one that no training sees."""

from __future__ import annotations

from datetime import date
from random import Random

import pytest
from tokenizers import Tokenizer

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.demo.prompts import FORMS, LANGUAGES, client_prompt, read_pieces, sample_prompt, texts, write_day

DAY = date(2026, 11, 29)


def test_days_are_written_as_the_client_does() -> None:
    assert write_day(DAY, "en") == "2026-11-29, Sunday"
    assert write_day(DAY, "cn") == "2026年11月29日 星期日"


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_vary_and_a_seed_repeats_them(language: str) -> None:
    prompts = [sample_prompt(Random(seed), language, 0.4) for seed in range(50)]
    assert len(set(prompts)) == 50
    assert prompts[7] == sample_prompt(Random(7), language, 0.4)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_share_of_the_pieces_makes_a_short_prompt(language: str) -> None:
    lengths = [
        sum(len(sample_prompt(Random(seed), language, share)) for seed in range(9))
        for share in (0.0, 0.2, 0.6, 1.0, 1.5)
    ]
    assert lengths == sorted(lengths)
    assert lengths[3] > 5 * lengths[0]
    assert all(form in sample_prompt(Random(1), language) for name, form in FORMS.items() if name in _actions(language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_sees_prompts_of_as_many_tokens_as_the_clients(language: str) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    longest = max(len(tokenizer.encode(sample_prompt(Random(seed), language, 2.0)).ids) for seed in range(8))
    assert longest > 0.9 * len(tokenizer.encode(client_prompt(language, DAY)).ids)


def _actions(language: str) -> list[str]:
    return list(read_pieces(language)[0].actions)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_training_sees_the_held_out_wordings(language: str) -> None:
    training, held_out = (list(texts(pieces)) for pieces in read_pieces(language))
    seen = "\n".join(training)
    assert not [text for text in held_out if text in seen]
    assert held_out[0].replace("{date}", write_day(DAY, language)) in client_prompt(language, DAY)


@pytest.mark.parametrize(("language", "characters"), [("en", 2444), ("cn", 3403)])
def test_the_clients_prompt_has_the_real_ones_length(language: str, characters: int) -> None:
    assert 0.75 * characters < len(client_prompt(language, DAY)) < 1.25 * characters
