"""Drafts: what is looked up, how long a draft is, and that none changes what is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeglm.runtimes.core.drafts import ALL, ANSWERS, CERTAIN, LONGEST, MOST, ONE, SPLIT, Drafts
from edgeglm.runtimes.core.generate import Generation, Lead, Wish
from edgeglm.runtimes.core.sampling import Sampler, Sampling

WORDS = 6
KINDS = (ONE, SPLIT, MOST, ALL, CERTAIN)
# The logits behind each token.
TABLE = np.random.default_rng(0).normal(size=(WORDS, WORDS)).astype(np.float32)


class Decoder:
    """A decoder of which the last token alone decides what comes next; counts the tokens that it takes."""

    state_bytes = row_bytes = 0

    def __init__(self, max_last: int = 16) -> None:
        self.max_last, self.steps = max_last, list[int]()
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def step(self, hidden: NDArray[np.float32], position_ids: NDArray[np.int64], last: int = 1) -> NDArray[np.float32]:
        assert 1 <= last <= min(hidden.shape[1], self.max_last)
        start = self.length
        assert position_ids.tolist() == [[[*range(start, start + hidden.shape[1])]]]
        self.tokens += hidden[0].argmax(-1).tolist()
        self.steps.append(hidden.shape[1])
        return TABLE[self.tokens[-last:]]

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class Rows:
    """An embedding of each token by itself."""

    def gather(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.eye(WORDS, dtype=np.float32)[list(tokens)].reshape(-1, WORDS)


def generate(
    prompt: list[int], drafts: Drafts | None, sampler: Sampler, limit: int, *, max_last: int = 16
) -> tuple[Generation, Decoder]:
    decoder, ends = Decoder(max_last), ()
    lead = Lead(prompt, Rows().gather(prompt), np.arange(len(prompt))[None, None])
    wish = Wish(sampler, limit, ends, drafts=drafts)
    generation = Generation(decoder, Rows(), lead, wish)  # type: ignore[arg-type]
    assert [*generation] == generation.tokens
    return generation, decoder


def test_the_longest_match_is_followed() -> None:
    lookup = Drafts().begin([1, 2, 3, 7, 7, 2, 3, 8, 9, 9, 5, 3, 6, 1, 2], 4)
    lookup.add(3)
    assert lookup.guess(1) == [7]
    lookup.add(4)
    assert lookup.guess(2) == []


def test_what_most_places_agree_on_is_followed_and_else_the_last() -> None:
    known = [2, 3, 4, 9, 2, 3, 4, 8, 2, 3, 5, 7]
    lookup = Drafts().begin(known, 4)
    lookup.add(2)
    lookup.add(3)
    assert lookup.guess(1) == [4]
    lookup = Drafts().begin([2, 3, 4, 2, 3, 5, 2], 4)
    lookup.add(3)
    assert lookup.guess(1) == [5]


def test_a_draft_may_go_on_into_itself_up_to_the_limit() -> None:
    drafts = Drafts()
    drafts.chances.update(dict.fromkeys(((matched, kind) for matched in range(1, 9) for kind in KINDS), 0.99))
    assert drafts.begin([1, 2, 1, 2, 1, 2, 1], 6).guess(9) == [2, 1, 2, 1, 2, 1]
    assert drafts.begin([1, 2, 1, 2, 1, 2, 1], 6).guess(3) == [2, 1, 2]
    assert drafts.begin([], 6).guess(3) == []


def test_earlier_answers_are_followed_and_the_oldest_forgotten() -> None:
    drafts = Drafts()
    drafts.keep([5, 50, 51], [10, 11])
    assert drafts.begin([6, 50, 51], 4).guess(2) == [10, 11]
    for _ in range(ANSWERS):
        drafts.keep([60, 61], [12, 13])
    assert drafts.begin([6, 50, 51], 4).guess(2) == []


def test_drafts_end_where_guesses_of_their_kind_are_wrong_and_come_back_where_they_are_right() -> None:
    drafts, lengths = Drafts(), list[int]()
    for token in [*range(100, 130), *[7] * 30]:
        lookup = drafts.begin([1, 7, 7, 7, 7, 7, 2, 1], 8)
        lengths.append(len(lookup.guess(8)))
        lookup.add(token)
    assert lengths[0] > 0
    assert lengths[25:30] == [0] * 5
    assert lengths[-1] >= lengths[0]


@pytest.mark.parametrize("max_last", [1, 2, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_without_drafts(max_last: int, temperature: float) -> None:
    drafts, passes = Drafts(), 0
    for seed in range(60):
        sampling = Sampling(temperature, frequency_penalty=0.1, repetition_penalty=1.1)
        plain, _ = generate([1, 2, 1], None, Sampler(sampling, seed), 20)
        drafted, decoder = generate([1, 2, 1], drafts, Sampler(sampling, seed), 20, max_last=max_last)
        assert drafted.tokens == plain.tokens
        assert plain.passes == 20
        assert drafted.passes == len(decoder.steps)
        assert decoder.tokens[3:] == plain.tokens[: decoder.length - 3]
        passes += drafted.passes
    assert (passes == 60 * 20) if max_last == 1 else (passes < 60 * 20)


class Stubborn(Drafts):
    """Always guesses the same."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def begin(self, prompt: Sequence[int], limit: int) -> Stubborn:  # type: ignore[override]
        return self

    def add(self, token: int) -> None:
        pass

    def guess(self, most: int) -> list[int]:
        return [self.token] * most


@pytest.mark.parametrize("token", range(WORDS))
def test_sampling_keeps_its_distribution_whatever_is_drafted(token: int) -> None:
    count, pairs = 3000, np.zeros((WORDS, WORDS))
    sampler = Sampler(Sampling(temperature=1.0), seed=7)
    for _ in range(count):
        drafted, _ = generate([3], Stubborn(token), sampler, 2)
        pairs[tuple(drafted.tokens)] += 1
    shares = np.exp(TABLE) / np.exp(TABLE).sum(-1, keepdims=True)
    expected = count * shares[3][:, None] * shares
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert chi_square < 66.6  # 35 degrees of freedom, 99.9%


def test_a_long_prompt_and_a_draft_take_pieces_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeglm.runtimes.core.generate.PREFILL_CHUNK", 7)
    prompt = [1, 2, 3, 4] * 5
    _, decoder = generate(prompt, Stubborn(2), Sampler(Sampling()), 9)
    assert max(decoder.steps) <= 7


def longest(tokens: Sequence[int], count: int) -> tuple[int, list[int]]:
    """Return how many tokens before the end of some match elsewhere, and what follows them there."""
    for matched in range(min(LONGEST, len(tokens)), 0, -1):
        end = tokens[len(tokens) - matched :]
        starts = range(count - matched)
        if found := [tokens[start + matched] for start in starts if tokens[start : start + matched] == end]:
            return matched, found
    return 0, []


def test_a_guess_follows_all_places_of_the_longest_match() -> None:
    random, kinds = np.random.default_rng(0), set[float]()
    for words in (1, 2, 3, 9):
        known = random.integers(0, words, 40).tolist()
        lookup, answer = Drafts().begin(known, 60), [*known]
        for token in random.integers(0, words, 50).tolist():
            lookup.guess(5)  # which leaves nothing behind
            matched, followers = longest(answer, len(answer))
            found = lookup.find(len(answer))
            assert (found is None) == (not followers)
            if found:
                counts = Counter(reversed(followers))
                assert found[0] == counts.most_common(1)[0][0]
                assert found[1][0] == matched
                kinds.add(found[1][1])
            lookup.add(token)
            answer.append(token)
    assert kinds == set(KINDS)
