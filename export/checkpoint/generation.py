"""Read a checkpoint's generation settings: ``generation_config.json`` by types, and the end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from tokenizers import Tokenizer

from edgeglm import manifest
from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.files import AGAIN, read_json, shown
from edgeglm.export.checkpoint.reader import Checkpoint

FILE, CONFIG = "generation_config.json", "config.json"
# transformers' for whoever samples and does not say (5.23, GenerationMixin).
TOP_K = 50
# transformers' classes' own end tokens, for a config that names none (5.23); Glm4vTextConfig has none.
CLASS_ENDS = {"GlmForCausalLM": (151329, 151336, 151338), "Glm4ForCausalLM": (151329, 151336, 151338)}
# What changes no token of one answer: names, speed, what is returned, and beam search's, which `num_beams` speaks for.
SILENT = frozenset({
    "_commit_hash", "_from_model_config", "_name_or_path", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_lookbehind", "bos_token_id", "cache_config", "cache_implementation", "compile_config",
    "continuous_batching_config", "decoder_start_token_id", "disable_compile", "diversity_penalty", "early_stopping",
    "is_assistant", "length_penalty", "low_memory", "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "output_attentions", "output_hidden_states", "output_logits", "output_scores",
    "prefill_chunk_size", "prompt_lookup_num_tokens", "renormalize_logits", "return_dict_in_generate",
    "speculation_type", "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
})  # fmt: skip
# The values with which a setting does nothing.
IDLE = {
    "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "guidance_scale": 1, "min_length": 0, "min_new_tokens": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "penalty_alpha": 0, "remove_invalid_values": False, "token_healing": False,
}  # fmt: skip
# As the manifest has them.
HONOURED = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size",
    "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip

Token = Annotated[int, Meta(ge=0, lt=2**31)]
T = TypeVar("T", bound=Struct)
Share = Annotated[float, Meta(ge=0, le=1)]


class Settings(Struct):
    """The settings that edgeglm honours, as transformers' logits processors take them (5.23)."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    top_k: Token | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6, le=1e6)] | None = None
    no_repeat_ngram_size: Token | None = None
    suppress_tokens: tuple[Token, ...] | None = None
    begin_suppress_tokens: tuple[Token, ...] | None = None
    bad_words_ids: tuple[Annotated[tuple[Token, ...], Meta(min_length=1)], ...] | None = None
    eos_token_id: Token | tuple[Token, ...] | None = None
    pad_token_id: int | None = None


SPECIAL = frozenset({"eos_token_id", "pad_token_id"})
KNOWN = frozenset({*Settings.__struct_fields__, *IDLE})


class _Content(Struct):
    content: str


class _Tokens(Struct):
    """The end token of ``tokenizer_config.json`` and ``special_tokens_map.json``."""

    eos_token: str | _Content | None = None


def read_generation(
    checkpoint: Checkpoint, context: int, tokenizer: Tokenizer | None
) -> tuple[manifest.Generation, tuple[str, ...]]:
    """Return the manifest's defaults for generating, and what the user should know of them.

    The settings are those of ``generation_config.json``, or of ``config.json`` where there is no such file, as in
    transformers. The end tokens are the first that are there: of either file, the tokenizer, transformers' class.

    Args:
        checkpoint: Its config is read already.
        context: The most tokens of a prompt and an answer.
        tokenizer: The checkpoint's, where it has one.

    Raises:
        DamagedFileError: A member has another type, or a value that cannot be; the message names file and key.
    """
    file, config = checkpoint.sidecar(FILE), checkpoint.folder / CONFIG
    inherited = _inherited(checkpoint.config, SPECIAL if file else KNOWN)
    members = read_json(file) if file else inherited
    settings, fallback = _convert(file or config, members, Settings), _convert(config, inherited, Settings)
    named = fallback.eos_token_id if settings.eos_token_id in (None, ()) else settings.eos_token_id
    ends, notes = _end_tokens(checkpoint, named, tokenizer)
    notes += _unheard(file or config, members, context)
    if settings.do_sample and settings.temperature == 0:
        notes.append(f"{FILE}: temperature 0 is greedy here, and transformers refuses it")
    pad = settings.pad_token_id if settings.pad_token_id is not None else fallback.pad_token_id
    return _generation(settings, ends, pad), tuple(notes)


def _inherited(config: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Return the settings that stand in a config, its outer ones before its text model's."""
    parts = (config.get("text_config") or {}, config)
    return {key: value for part in parts for key, value in part.items() if key in known and value is not None}


def _generation(settings: Settings, ends: tuple[int, ...], pad: int | None) -> manifest.Generation:
    given = {name: value for name in HONOURED if (value := getattr(settings, name)) is not None}
    if settings.do_sample:
        given = {"temperature": 1.0, "top_k": TOP_K} | given
    else:
        given["temperature"] = 0.0
    words = tuple(word for word in settings.bad_words_ids or () if len(word) > 1 or word[0] not in ends)
    pad = pad if pad is not None and pad >= 0 else None
    return manifest.Generation(eos_token_ids=ends, pad_token_id=pad, bad_words_ids=words, **given)


def _convert(file: Path, members: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(dict(members), kind)
    except msgspec.ValidationError as error:
        why, _, place = str(error).partition(" - at ")
        raise DamagedFileError(
            f"{file}: {place.strip('`').removeprefix('$.')}", why, f"correct it, or {AGAIN}"
        ) from error


def _unheard(file: Path, members: Mapping[str, Any], context: int) -> list[str]:
    """Return a note on the settings by which transformers would answer otherwise, if there are any."""
    unknown = members.keys() - SILENT - set(Settings.__struct_fields__)
    idle = {key for key in unknown if members[key] is None or (key in IDLE and members[key] == IDLE[key])}
    longest = members.get("max_length")
    if isinstance(longest, int) and longest >= context:  # the context says as much
        idle.add("max_length")
    names = ", ".join(shown(name) for name in sorted(unknown - idle))
    return [f"{file.name}: not honoured: {names}"] if names else []


def _end_tokens(
    checkpoint: Checkpoint, named: int | tuple[int, ...] | None, tokenizer: Tokenizer | None
) -> tuple[tuple[int, ...], list[str]]:
    """Return the tokens that end an answer, of those `named` or else by default, and notes on them."""
    text = checkpoint.config.get("text_config") or checkpoint.config
    vocabulary = text.get("vocab_size")
    wanted = () if named is None else (named,) if isinstance(named, int) else named
    ends = tuple(token for token in wanted if not isinstance(vocabulary, int) or token < vocabulary)
    notes = [f"end token {token} is beyond the vocabulary of {vocabulary}" for token in wanted if token not in ends]
    if tokenizer:
        unknown = [token for token in ends if tokenizer.id_to_token(token) is None]
        notes += [f"end token {token} is none of tokenizer.json" for token in unknown]
    if ends:
        return ends, notes
    name = _named_end(checkpoint)
    if name and tokenizer and (token := tokenizer.token_to_id(name)) is not None:
        return (token,), [*notes, f"no config names an end token: the tokenizer's, {shown(name)}, ends an answer"]
    ends = tuple(token for token in CLASS_ENDS.get(checkpoint.architecture, ()) if token < (vocabulary or 0))
    if ends:
        return ends, [*notes, f"no file names an end token: {checkpoint.architecture}'s own end an answer"]
    return (), [*notes, "no file names an end token: every answer is as long as --max-new-tokens allows"]


def _named_end(checkpoint: Checkpoint) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if file := checkpoint.sidecar(name):
            token = _convert(file, read_json(file), _Tokens).eos_token
            if token is not None:
                return token if isinstance(token, str) else token.content
    return None
