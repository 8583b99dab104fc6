"""Keys of a tokenizer's and a processor's files that mean something; a note names those that are not honoured.

The library refuses a tokenizer.json with a key that it does not know. The settings of pictures are
`edgeglm.export.checkpoint.processor`'s, those of answers `generation`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.runtimes.text.sidecars import Sidecars

TEMPLATE = {"chat_template": "is honoured"}
# Of transformers 5.23: why each key is none that could change a prompt or an answer unseen.
TOKENIZER_CONFIG = TEMPLATE | {
    "added_tokens_decoder": "is honoured",
    "additional_special_tokens": "is honoured",
    "extra_special_tokens": "is honoured",
    "model_specific_special_tokens": "is honoured",
    "add_bos_token": "is dropped by transformers where there is a tokenizer.json",
    "add_eos_token": "is dropped by transformers where there is a tokenizer.json",
    "add_prefix_space": "is in tokenizer.json",
    "do_lower_case": "is in tokenizer.json",
    "remove_space": "is in tokenizer.json",
    "keep_accents": "is in tokenizer.json",
    "strip_accents": "is in tokenizer.json",
    "tokenize_chinese_chars": "is in tokenizer.json",
    "sp_model_kwargs": "is in tokenizer.json",
    "legacy": "is in tokenizer.json",
    "errors": "is of tokenizers in Python",
    "use_fast": "is of tokenizers in Python",
    "clean_up_tokenization_spaces": "is ignored for BPE, which GLM's tokenizers are",
    "model_max_length": "is a warning of transformers",
    "max_len": "is a warning of transformers",
    "max_length": "is for cutting prompts, which edgeglm refuses instead",
    "stride": "is for cutting prompts, which edgeglm refuses instead",
    "truncation": "is for cutting prompts, which edgeglm refuses instead",
    "truncation_side": "is for cutting prompts, which edgeglm refuses instead",
    "truncation_strategy": "is for cutting prompts, which edgeglm refuses instead",
    "padding": "is of batches",
    "padding_side": "is of batches",
    "pad_to_multiple_of": "is of batches",
    "pad_token_type_id": "is of batches",
    "model_input_names": "names what is returned",
    "return_token_type_ids": "names what is returned",
    "response_schema": "reads answers in programs, not in a conversation",
    "response_template": "reads answers in programs, not in a conversation",
    "use_default_system_prompt": "is of templates that are no longer built in",
    "tokenizer_class": "names a class; prompts are compared with what it makes",
    "processor_class": "names a class",
    "tokenizer_type": "names a class",
    "auto_map": "is for code that is not run",
    "backend": "is of the program that wrote the file",
    "files_loaded": "is of the program that wrote the file",
    "init_inputs": "is of the program that wrote the file",
    "is_local": "is of the program that wrote the file",
    "local_files_only": "is of the program that wrote the file",
    "name_or_path": "is of the program that wrote the file",
    "special_tokens_map_file": "is of the program that wrote the file",
    "tokenizer_file": "is of the program that wrote the file",
    "transformers_version": "is of the program that wrote the file",
    "verbose": "is of the program that wrote the file",
}
PROCESSOR_CONFIG = TEMPLATE | {
    "image_processor": "is honoured",
    "video_processor": "is of videos, which a bundle does not take",
    "video_token": "is of videos, which a bundle does not take",
    "image_token": "is in config.json, by its number",
    "tokenizer": "is read from the tokenizer's own files",
    "processor_class": "names a class",
    "auto_map": "is for code that is not run",
    "transformers_version": "is of the program that wrote the file",
}
SPECIAL_TOKENS_MAP = {
    "additional_special_tokens": "is honoured",
    "extra_special_tokens": "is honoured",
    "model_specific_special_tokens": "is honoured",
}
FILES: dict[str, Mapping[str, str]] = {
    "tokenizer_config.json": TOKENIZER_CONFIG,
    "processor_config.json": PROCESSOR_CONFIG,
    "special_tokens_map.json": SPECIAL_TOKENS_MAP,
    "chat_template.json": TEMPLATE,
}
MAX_KEYS = 8


def unheard(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note for each file with keys that nobody honours, but for those that are turned off.

    Raises:
        DamagedFileError: A file is not a JSON object.
    """
    for name, known in FILES.items():
        members = Sidecars(checkpoint.folder).object(name)
        unknown = sorted(key for key, value in members.items() if not _is_known(key, value, known))
        if unknown:
            more = f" and {len(unknown) - MAX_KEYS} more" if len(unknown) > MAX_KEYS else ""
            yield f"{name}: not honoured: {', '.join(map(shown, unknown[:MAX_KEYS]))}{more}"


def _is_known(key: str, value: Any, known: Mapping[str, str]) -> bool:  # noqa: ANN401
    if key.endswith("_token") and known is not PROCESSOR_CONFIG:  # a token that templates may name
        return True
    return key in known or not value
