"""The original as transformers itself loads and runs it, of any family: checkpoint in, text out, greedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, GenerationConfig
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from edgeglm.export.evaluate.original.drafter import MAX_NEW_TOKENS
from edgeglm.export.families.building import reference_config
from edgeglm.export.families.registry import image_key

Chat = Sequence[dict[str, Any]]  # messages as the chat template knows them


class Prompts:
    """The tokenizer of a checkpoint, and the image processor of one that sees, as transformers reads them.

    Args:
        tokenizer: Pads on the left from now on.
        processor: Of images; None for a model that sees none.
        image: The token that stands for a merged patch.
        template: The processor's chat template, which goes before the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 (a class that transformers chooses by name, as the next)
        processor: Any = None,  # noqa: ANN401
        image: int | None = None,
        template: str | None = None,
    ) -> None:
        self.tokenizer, self.processor, self.image, self.template = tokenizer, processor, image, template
        tokenizer.padding_side = "left"  # so that the answers begin together
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Load a Hugging Face checkpoint directory."""
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = reference_config(folder)
        if image_key(config) is None:
            return cls(tokenizer)
        return cls(tokenizer, image_processor(folder), config.image_token_id, _processor_template(folder))

    def encode(self, images: Sequence[Image.Image], chats: Sequence[Chat]) -> BatchFeature:
        """Return the model inputs for some chats, padded on the left; `images` are those of all chats, in order."""
        texts = [self._render(chat) for chat in chats]
        pixels = self.processor(images=list(images), return_tensors="pt") if images else {}
        if images:
            texts = self._expanded(texts, pixels["image_grid_thw"])
        inputs: BatchFeature = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        inputs.update(pixels)
        if self.processor is not None:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image).long()
        return inputs

    def texts(self, answers: Sequence[Sequence[int]], ends: Collection[int]) -> list[str]:
        """Return the text of answers' tokens, each up to the first of the `ends`, which is no text."""
        spoken = [list(takewhile(lambda token: token not in ends, answer)) for answer in answers]
        return list(self.tokenizer.batch_decode(spoken, skip_special_tokens=True))

    def _render(self, chat: Chat) -> str:
        template = {"chat_template": self.template} if self.template else {}
        return str(
            self.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True, **template)
        )

    def _expanded(self, texts: Sequence[str], grids: torch.Tensor) -> list[str]:
        """Repeat the token of each image, once for each of its merged patches."""
        token = self.tokenizer.convert_ids_to_tokens(self.image)
        counts = iter((grids.prod(-1) // self.processor.merge_size**2).tolist())
        expanded = []
        for text in texts:
            first, *rest = text.split(token)
            expanded.append(first + "".join(token * next(counts) + piece for piece in rest))
        return expanded


class WholeOriginal(Prompts):
    """The whole checkpoint in memory, which answers them."""

    def __init__(self, model: Any, prompts: Prompts) -> None:  # noqa: ANN401 (a class of transformers, chosen by name)
        super().__init__(prompts.tokenizer, prompts.processor, prompts.image, prompts.template)
        self.model = model
        ends = model.generation_config.eos_token_id
        self.ends: tuple[int, ...] = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        # Its end tokens alone: the answers are greedy, whatever the checkpoint's own settings.
        self.settings = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    @classmethod
    def load(cls, folder: Path) -> WholeOriginal:
        """Load a Hugging Face checkpoint directory, to compute in fp32, by the class that its config names."""
        disable_progress_bar()
        config = reference_config(folder)
        architecture = getattr(transformers, config.architectures[0])
        model = architecture.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        whole = cls(model, Prompts.load(folder))
        model.generation_config = whole.settings
        return whole

    def answer(self, images: Sequence[Image.Image], chats: Sequence[Chat], batch_size: int = 32) -> Iterator[str]:
        """Answer greedily; `images` has one a chat, or none."""
        for start in range(0, len(chats), batch_size):
            batch = slice(start, start + batch_size)
            answers = self.generate(self.encode(images[batch], chats[batch])).tolist()
            yield from self.texts(answers, self.ends)

    @torch.inference_mode()
    def generate(self, inputs: BatchFeature) -> torch.Tensor:
        """Return the tokens of the answers to what `encode` gives, (n, length), padded behind their ends."""
        output: torch.Tensor = self.model.generate(**inputs.to(self.model.device), generation_config=self.settings)
        return output[:, inputs["input_ids"].shape[1] :]


def image_processor(folder: Path) -> Any:  # noqa: ANN401 (a class that transformers chooses by name)
    """Return the image processor that transformers takes for a checkpoint; GLM-4.1V's own where it has no file."""
    with suppress(OSError, ValueError):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    return Glm4vImageProcessorPil()


def _processor_template(folder: Path) -> str | None:
    """Return the chat template of the checkpoint's processor, if it has one."""
    settings, _ = ProcessorMixin.get_processor_dict(folder, local_files_only=True)
    template = settings.get("chat_template")
    named: str | None = template.get("default") if isinstance(template, dict) else template
    return named
