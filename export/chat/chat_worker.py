"""The worker with transformers: conversations as its own tokenizer and template have them."""

from __future__ import annotations

import sys
from datetime import datetime, tzinfo
from typing import Any

from edgeglm.export.chat.chat_request import NOW, Answer, Case, Rendered, Request
from edgeglm.worker import serve

# Neither is needed for a tokenizer, and importing them takes seconds and hundreds of megabytes.
for name in ("torch", "torchao", "torchvision", "torchaudio", "tensorflow", "jax"):
    sys.modules[name] = None  # type: ignore[assignment]

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin
from transformers.utils import chat_template_utils


class _Clock(datetime):
    """The time that a template is told."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Clock:
        """Return always the same."""
        return cls(*NOW.timetuple()[:6])


def answer(request: Request) -> Answer:
    """Render and encode all conversations of a request."""
    vars(chat_template_utils)["datetime"] = _Clock
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(request.folder, local_files_only=True, trust_remote_code=False)
        template = _processor_template(request.folder) if request.sees else None
    except Exception as error:
        return Answer(error=_said(error))
    return Answer([_render(tokenizer, template, case) for case in request.cases])


def _processor_template(folder: str) -> str | None:
    """Return the template of the checkpoint's processor, which goes before its tokenizer's."""
    settings, _ = ProcessorMixin.get_processor_dict(folder, local_files_only=True)
    template = settings.get("chat_template")
    found: str | None = template.get("default") if isinstance(template, dict) else template
    return found


def _render(tokenizer: PreTrainedTokenizerBase, template: str | None, case: Case) -> Rendered:
    try:
        text: Any = tokenizer.apply_chat_template(
            case.messages, tools=case.tools, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        return Rendered(text, tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:
        return Rendered(error=_said(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def main() -> int:
    """Answer a request."""
    return serve(Request, lambda request, show: answer(request))
