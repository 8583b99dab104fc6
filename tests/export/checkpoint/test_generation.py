"""How a checkpoint's answers are generated: as by transformers' own logits processors, or named in a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models

from edgeglm import manifest
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.generation import CLASS_ENDS, IDLE, SILENT, Settings, read_generation
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.runtimes.core.sampling import Sampler, Sampling
from tests.export.checkpoints import make, pack, tiny_model

VOCABULARY = 160
CONFIG = {"architectures": ["GlmForCausalLM"], "vocab_size": VOCABULARY, "eos_token_id": [3, 5]}


def read(
    folder: Path, settings: object = None, config: dict[str, Any] | None = None, tokenizer: Tokenizer | None = None
) -> tuple[manifest.Generation, tuple[str, ...]]:
    make(folder, pack({}, b""), config or CONFIG)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if settings is not None:
        content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
        (folder / "generation_config.json").write_bytes(content)
    return read_generation(Checkpoint.open(folder), 100, tokenizer)


def words(**ids: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "d": 3}, unk_token="a"))
    tokenizer.add_special_tokens([AddedToken(name) for name in ids])
    return tokenizer


def transformers_scores(
    settings: dict[str, Any], prompt: list[int], answer: list[int], logits: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the scores that transformers' `generate` draws by, or takes the greatest of."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = tiny_model("GlmForCausalLM")
    model.generation_config = transformers.GenerationConfig(eos_token_id=[3, 5], **settings)
    config, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(config, device="cpu")
    processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
    scores = processors(torch.tensor([prompt + answer]), torch.from_numpy(logits.copy())[None])
    return np.asarray(scores[0].double().numpy())


DRAWN = {"do_sample": True}
CASES: list[dict[str, Any]] = [
    {},
    {"top_k": 1, "temperature": 0.8, "top_p": 0.6},  # greedy: GLM-4.6V-Flash's and GLM-4's own
    DRAWN,
    DRAWN | {"top_k": 0},
    DRAWN | {"temperature": 0.8, "top_k": 2, "top_p": 0.6},
    DRAWN | {"temperature": 0.3},
    DRAWN | {"temperature": 5.0, "top_k": 500},
    DRAWN | {"top_p": 0.3},
    DRAWN | {"top_p": 0.0},
    DRAWN | {"top_k": 0, "min_p": 0.2},
    DRAWN | {"top_k": 0, "min_p": 1.0},
    DRAWN | {"top_k": 0, "typical_p": 0.5},
    DRAWN | {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9, "temperature": 2.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.5},
    DRAWN | {"repetition_penalty": 1.3, "top_k": 5},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 30},
    {"suppress_tokens": [0, 7, 159]},
    {"begin_suppress_tokens": [1, 2, 150]},
    {"bad_words_ids": [[7], [3], [8, 9], [9, 8, 10], [11] * 40]},
    DRAWN | {"bad_words_ids": [[8, 9]], "no_repeat_ngram_size": 2, "suppress_tokens": [4], "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_every_setting_is_honoured_as_in_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    generation, notes = read(tmp_path, {"eos_token_id": [3, 5], **settings})
    assert notes == ()
    sampling, drawn = Sampling.of(generation), bool(settings.get("do_sample"))
    for seed, answer in enumerate(([], [9], [8], [6, 9, 8], [9, 8, 9])):
        logits = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
        prompt = [9, 8, 10, 9, 8, 7]
        sampler = Sampler(sampling)
        sampler.chosen = len(answer)
        scores = sampler.allow(logits.astype(np.float64), prompt + answer)
        if drawn:
            scores = sampler.warp(scores)
        wanted = transformers_scores(settings, prompt, answer, logits)
        assert np.array_equal(np.isfinite(scores), np.isfinite(wanted))
        assert np.allclose(scores, wanted, atol=1e-5)
        assert drawn or sampler.choose(logits, prompt + answer) == int(wanted.argmax())


def test_tokens_are_drawn_by_their_shares() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=3), seed=4)
    drawn = np.bincount([sampler.choose(logits, []) for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(drawn, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.03)


def test_top_k_of_one_is_greedy_whatever_the_seed() -> None:
    logits = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32)
    for seed in range(5):
        assert Sampler(Sampling(temperature=3.0, top_k=1), seed).choose(logits, []) == logits.argmax()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_no_token_can_be_drawn_by_are_no_crash(value: float) -> None:
    assert Sampler(Sampling(temperature=1.0)).choose(np.full(4, value, np.float32), []) == 0


def test_every_setting_of_transformers_is_honoured_silent_or_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = {name for name in vars(transformers.GenerationConfig()) if name != "_original_object_hash"}
    assert len(names) > 50
    assert {*Settings.__struct_fields__} <= names
    for name in names - SILENT - {*Settings.__struct_fields__}:
        _, notes = read(tmp_path, {name: 7})
        assert notes == (f"generation_config.json: not honoured: {name}",)


def test_what_is_unknown_is_named(tmp_path: Path) -> None:
    settings = {
        "do_sample": True,
        "beam_me": "up",
        "a\nb": 1,
        "stop_strings": ["x"],
        "max_new_tokens": 9,
        "max_time": 1,
    }
    _, notes = read(tmp_path, settings)
    assert notes == ("generation_config.json: not honoured: 'a\\nb', beam_me, max_new_tokens, max_time, stop_strings",)


def test_what_says_nothing_is_not_named(tmp_path: Path) -> None:
    idle = IDLE | {
        "max_length": 100,
        "min_p": None,
        "watermarking_config": None,
    }
    _, notes = read(tmp_path, {"transformers_version": "5.23.0", "_from_model_config": True, "bos_token_id": 1, **idle})
    assert notes == ()
    assert read(tmp_path, {"max_length": 99})[1] == ("generation_config.json: not honoured: max_length",)


def test_without_the_file_the_config_speaks(tmp_path: Path) -> None:
    config = CONFIG | {"do_sample": True, "temperature": 0.5, "num_beams": 4, "pad_token_id": 2}
    generation, notes = read(tmp_path, config=config)
    assert (generation.temperature, generation.top_k, generation.pad_token_id) == (0.5, 50, 2)
    assert notes == ("config.json: not honoured: num_beams",)
    assert read(tmp_path, {}, config)[0].temperature == 0


def test_settings_of_a_greedy_checkpoint_serve_whoever_draws(tmp_path: Path) -> None:
    generation, _ = read(tmp_path, {"do_sample": False, "temperature": 0.8, "top_p": 0.6})
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.0, 0, 0.6)


def test_temperature_zero_is_greedy_and_said(tmp_path: Path) -> None:
    generation, notes = read(tmp_path, {"do_sample": True, "temperature": 0.0})
    assert generation.temperature == 0
    assert notes == ("generation_config.json: temperature 0 is greedy here, and transformers refuses it",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "content is not a JSON object"),
        (b"{", "content is not valid JSON"),
        (b'{"top_k": 1, "top_k": 2}', "has top_k twice"),
        (b'{"eos_token_id": "x"}', "eos_token_id: Expected"),
        (b'{"eos_token_id": -5}', "eos_token_id: Expected `int` >= 0"),
        (b'{"eos_token_id": [1, 2.5]}', r"eos_token_id\[1\]: Expected `int`"),
        (b'{"do_sample": 1}', "do_sample: Expected"),
        (b'{"do_sample": true, "temperature": "hot"}', "temperature: Expected"),
        (b'{"temperature": NaN}', "temperature: Expected"),
        (b'{"temperature": Infinity}', "temperature: Expected"),
        (b'{"temperature": -1}', "temperature: Expected `float` >= 0.0"),
        (b'{"top_p": 7}', "top_p: Expected `float` <= 1.0"),
        (b'{"top_k": -1}', "top_k: Expected `int` >= 0"),
        (b'{"top_k": 2.5}', "top_k: Expected"),
        (b'{"top_k": 99999999999}', "top_k: Expected"),
        (b'{"min_p": 2}', "min_p: Expected"),
        (b'{"typical_p": 0}', "typical_p: Expected"),
        (b'{"repetition_penalty": -1}', "repetition_penalty: Expected `float` >= 1e-06"),
        (b'{"repetition_penalty": 0}', "repetition_penalty: Expected"),
        (b'{"no_repeat_ngram_size": true}', "no_repeat_ngram_size: Expected"),
        (b'{"suppress_tokens": [-1]}', r"suppress_tokens\[0\]: Expected"),
        (b'{"bad_words_ids": [[]]}', r"bad_words_ids\[0\]: Expected"),
        (b'{"bad_words_ids": ["x"]}', r"bad_words_ids\[0\]: Expected"),
        (b'{"pad_token_id": []}', "pad_token_id: Expected"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_and_key(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"generation_config\.json: .*{why}.*download it again"):
        read(tmp_path, content)


def test_end_tokens_are_the_first_that_are_there(tmp_path: Path) -> None:
    tokenizer = words(end=4)
    bare = {key: value for key, value in CONFIG.items() if key != "eos_token_id"}
    nested = {**bare, "text_config": {"vocab_size": VOCABULARY, "eos_token_id": 0}}
    assert read(tmp_path, {"eos_token_id": 1})[0].eos_token_ids == (1,)
    assert read(tmp_path, {"eos_token_id": 0})[0].eos_token_ids == (0,)
    assert read(tmp_path, {})[0].eos_token_ids == (3, 5)
    assert read(tmp_path, {"eos_token_id": []})[0].eos_token_ids == (3, 5)
    assert read(tmp_path, None, nested)[0].eos_token_ids == (0,)

    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "end", "lstrip": False}}))
    said = ("no config names an end token: the tokenizer's, end, ends an answer",)
    generation, notes = read(tmp_path, None, bare, tokenizer)
    assert (generation.eos_token_ids, notes) == ((4,), said)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "b"}))
    assert read(tmp_path, {}, bare, tokenizer)[0].eos_token_ids == (1,)
    assert read(tmp_path, {"eos_token_id": 200}, bare, tokenizer)[0].eos_token_ids == (1,)


@pytest.mark.parametrize("token", ["nowhere", None])
def test_without_any_the_class_has_its_own_or_the_bundle_knows_none(tmp_path: Path, token: str | None) -> None:
    bare = {"architectures": ["GlmForCausalLM"], "vocab_size": 151552}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    generation, notes = read(tmp_path, None, bare, words())
    assert generation.eos_token_ids == (151329, 151336, 151338)
    assert notes == ("no file names an end token: GlmForCausalLM's own end an answer",)
    generation, notes = read(tmp_path, None, bare | {"vocab_size": 160}, words())
    assert generation.eos_token_ids == ()
    assert notes == ("no file names an end token: every answer is as long as --max-new-tokens allows",)


def test_end_tokens_of_the_classes_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for name in ("GlmForCausalLM", "Glm4ForCausalLM", "Glm4vForConditionalGeneration"):
        ends = getattr(getattr(transformers, name).config_class().get_text_config(), "eos_token_id", None)
        assert tuple(ends or ()) == CLASS_ENDS.get(name, ())


def test_an_end_token_that_cannot_come_is_named(tmp_path: Path) -> None:
    generation, notes = read(tmp_path, {"eos_token_id": [3, 160, 70]}, tokenizer=words())
    assert generation.eos_token_ids == (3, 70)
    assert notes == ("end token 160 is beyond the vocabulary of 160", "end token 70 is none of tokenizer.json")


def test_a_tokenizers_end_token_of_another_type_is_one_line(tmp_path: Path) -> None:
    bare = {key: value for key, value in CONFIG.items() if key != "eos_token_id"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": 5}))
    with pytest.raises(DamagedFileError, match=r"tokenizer_config\.json: eos_token: Expected"):
        read(tmp_path, {}, bare, words())
