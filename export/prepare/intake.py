"""Take in what a checkpoint says beside its weights: its config, its context, its conversation, and notes on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeglm import manifest
from edgeglm.engines import ENGINES
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.chat.compare import compare
from edgeglm.export.checkpoint.files import shown
from edgeglm.export.checkpoint.generation import KNOWN, SILENT, read_generation
from edgeglm.export.checkpoint.lineage import read_lineage, sparsity_of
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.sidecar_keys import unheard
from edgeglm.export.checkpoint.sidecars import open_chat, picture_note, text_note
from edgeglm.export.families.keys import unknown_keys
from edgeglm.export.families.registry import encoder_specs, family_of, image_key
from edgeglm.export.families.rope import read_positions
from edgeglm.export.model import Choice
from edgeglm.export.prepare.release import released
from edgeglm.export.prepare.types import Request

# Rotary tables inside a graph have a row for each position, so a context without bound would be a file without bound.
MAX_CONTEXT = 32768
# Of a config, how many keys that say nothing a note names.
MAX_KEYS = 12


def check_config(checkpoint: Checkpoint) -> None:
    """Raise DamagedFileError where a part of config.json is no object."""
    for part in ("text_config", *(encoder.config for encoder in encoder_specs())):
        if not isinstance(checkpoint.config.get(part, {}), dict):
            raise DamagedFileError(checkpoint.folder / "config.json", f"its {part} is no object", "download it again")


def key_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield notes on the keys of config.json and of the sidecars that are not honoured."""
    if unknown := unknown_keys(checkpoint.config, KNOWN | SILENT):
        names, more = ", ".join(map(shown, unknown[:MAX_KEYS])), len(unknown) - MAX_KEYS
        names += f" and {more} more" if more > 0 else ""
        yield f"config.json: transformers' class for the model does not know {names}, and neither does edgeglm"
    yield from unheard(checkpoint)


def choose_context(request: Request, checkpoint: Checkpoint) -> int:
    """Return the positions of the bundle. Raises UnsupportedError where more are asked for than the model has."""
    text = checkpoint.config.get("text_config", checkpoint.config)
    positions = read_positions(text, checkpoint.folder / "config.json", family_of(checkpoint.config).decoder.positions)
    if request.context is not None and request.context > positions.most:
        why = f"the model has {positions.most} positions"
        if positions.varying:
            why += f", beyond which its {positions.varying} rotary embedding turns with the prompt's length"
        raise UnsupportedError(f"--context {request.context}", why, f"give at most {positions.most}")
    return request.context or min(positions.most, MAX_CONTEXT)


@released
def read_conversation(checkpoint: Checkpoint, context: int) -> tuple[manifest.Generation, list[str]]:
    """Open tokenizer and chat template, and compare prompts; returns how answers are generated, and notes.

    Raises:
        UnsupportedError, DamagedFileError: No prompt can be made of them, or one has other tokens than in transformers.
    """
    chat, notes = open_chat(checkpoint), list[str]()
    if chat is None:
        notes.append(f"{checkpoint.folder} has no tokenizer.json: its bundle can be measured, but takes no text")
    elif chat.template is None:
        notes.append(f"{checkpoint.folder} has no chat template: its bundle completes a text, and does not converse")
    else:
        sees = image_key(checkpoint.config) is not None
        note = picture_note(chat, checkpoint)
        notes += filter(None, [text_note(chat), note, compare(chat, sees=sees, images=note is None)])
    generation, said = read_generation(checkpoint, context, chat.tokenizer if chat else None)
    return generation, [*notes, *said]


def sparse_notes(checkpoint: Checkpoint, choices: Iterable[Choice]) -> Iterator[str]:
    """Yield what the zeros of a sparse checkpoint bring: kernels that skip half of 2:4, where an engine has such."""
    if pattern := sparsity_of(read_lineage(checkpoint.folder)):
        gains = [choice.name for choice in choices if _skips_zeros(choice, pattern)]
        if gains:
            named = " and the ".join(gains)
            yield f"sparse weights {pattern}: edgeglm build tells TensorRT that it may skip zeros of the {named}"
        else:
            yield f"sparse weights {pattern} bring neither size nor speed here: zeros are stored and computed"


def _skips_zeros(choice: Choice, pattern: str) -> bool:
    """Return whether a module's engine has kernels for its zeros; INT4 is widened first."""
    if choice.engine is None or pattern != manifest.TWO_OF_FOUR:
        return False
    return ENGINES[choice.engine].skips_zeros and not choice.precisions & {"int4", "fp32"}
