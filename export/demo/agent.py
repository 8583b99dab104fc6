"""The demo model as a user of plain transformers runs it: checkpoint in, text out, greedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, Glm4vForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from edgeglm.export.families.building import reference_config

IMAGE = "<|image|>"
MAX_NEW_TOKENS = 96
Chat = Sequence[dict[str, Any]]  # messages as the chat template knows them, with one picture among them


class Prompts:
    """The tokenizer and image processor of a GLM-4.1V checkpoint."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, processor: Glm4vImageProcessorPil) -> None:
        self.tokenizer, self.processor = tokenizer, processor

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Load a Hugging Face checkpoint directory."""
        return cls(PreTrainedTokenizerFast.from_pretrained(folder), Glm4vImageProcessorPil.from_pretrained(folder))

    def encode(self, images: Sequence[Image.Image], chats: Sequence[Chat]) -> BatchFeature:
        """Return the model inputs for one screenshot and one chat each, padded on the left."""
        pixels = self.processor(images=list(images), return_tensors="pt")
        counts = (pixels["image_grid_thw"].prod(-1) // self.processor.merge_size**2).tolist()
        texts = [self._render(chat).replace(IMAGE, IMAGE * count) for chat, count in zip(chats, counts, strict=True)]
        inputs: BatchFeature = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        inputs.update(pixels)
        image = self.tokenizer.convert_tokens_to_ids(IMAGE)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == image).long()
        return inputs

    def _render(self, chat: Chat) -> str:
        return str(self.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True))


class Agent(Prompts):
    """The whole checkpoint, which answers them."""

    def __init__(
        self,
        model: Glm4vForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        processor: Glm4vImageProcessorPil,
    ) -> None:
        super().__init__(tokenizer, processor)
        self.model = model

    @classmethod
    def load(cls, folder: Path) -> Agent:
        """Load a Hugging Face checkpoint directory, to compute in fp32."""
        disable_progress_bar()
        prompts = Prompts.load(folder)
        config = reference_config(folder)
        model = Glm4vForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32).eval()
        return cls(model, prompts.tokenizer, prompts.processor)

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], chats: Sequence[Chat], batch_size: int = 32) -> Iterator[str]:
        """Answer greedily, once a screenshot, whatever the checkpoint's own generation settings."""
        for start in range(0, len(chats), batch_size):
            batch = slice(start, start + batch_size)
            inputs = self.encode(images[batch], chats[batch]).to(self.model.device)
            output = self.model.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, repetition_penalty=1.0
            )
            yield from self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
