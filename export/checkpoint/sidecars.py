"""A checkpoint's tokenizer and template, tried before work starts: what is wrong is a line that names the file."""

from __future__ import annotations

from edgeglm.errors import EdgeglmError, UnsupportedError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.families.registry import image_key
from edgeglm.runtimes.text.chat import Chat
from edgeglm.runtimes.text.messages import message
from edgeglm.runtimes.text.sidecars import Sidecars

PROMPT = "Open the settings, 打开设置. aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!  1234\n\n"
IMAGE_TOKEN = 151343  # where a config names none (transformers 5.23, Glm4vConfig)
WORD = "settings"  # of the prompt


def open_chat(checkpoint: Checkpoint) -> Chat | None:
    """Return the checkpoint's tokenizer and chat template, tried with a prompt; None where it has no tokenizer.json.

    Raises:
        DamagedFileError, UnsupportedError: A prompt could never be made of them.
    """
    if checkpoint.sidecar("tokenizer.json") is None:
        return None
    chat = Chat(Sidecars(checkpoint.folder), None, sees=image_key(checkpoint.config) is not None)
    last = max(chat.encode([message("user", PROMPT)]))
    words = checkpoint.config.get("text_config", checkpoint.config).get("vocab_size")
    if isinstance(words, int) and last >= words:
        why = f"makes token {last} of a prompt, and the model has {words}, from 0 on"
        raise UnsupportedError(checkpoint.folder / "tokenizer.json", why, "take both files of one model")
    return chat


def text_note(chat: Chat) -> str | None:
    """Return what is to be said where a template leaves out what the user says."""
    if chat.template is None or WORD in chat.render([message("user", PROMPT)]).lower():
        return None
    return f"{chat.template.file}: a prompt leaves out what the user says, and so every answer is the same"


def picture_note(chat: Chat, checkpoint: Checkpoint) -> str | None:
    """Return what is to be said where a picture has no place in a prompt, although the model sees."""
    if chat.template is None or image_key(checkpoint.config) is None:
        return None
    token = checkpoint.config.get("image_token_id", IMAGE_TOKEN)
    try:
        tokens = chat.encode([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}])
    except EdgeglmError as error:
        return f"{chat.template.file}: {error.why}: no prompt has a place for an image"
    count = tokens.count(token)
    why = f"a prompt has {count} places for one image, and so takes none"
    return None if count == 1 else f"{chat.template.file}: {why}"
