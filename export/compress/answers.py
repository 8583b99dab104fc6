"""The answers of a student as logits, what they cost beside the teacher's, and the gradient of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeglm.export.compress.teacher import TEMPERATURE, Records

# The share of the loss that the soft targets have.
WEIGHT = 0.7


class Answers(torch.nn.Module):
    """A model that gives logits at places alone, by one call, as FSDP2 wants it."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """Return logits (n, vocabulary) at places (2, n)."""
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[places[0], places[1]])
        return logits


def distillation_loss(logits: Tensor, records: Records, right: Tensor) -> Tensor:
    """Return the loss of places, their mean.

    Args:
        logits: (n, vocabulary) of the student.
        records: n of the teacher.
        right: (n) tokens.
    """
    log_probabilities = (logits / TEMPERATURE).log_softmax(-1)
    mine = log_probabilities.gather(1, torch.from_numpy(records["ids"].astype(np.int64)))
    others = torch.log1p(-mine.exp().sum(1, keepdim=True).clamp(max=1 - 1e-6))
    wanted = np.concatenate([records["logits"] / np.float32(TEMPERATURE), records["rest"][:, None]], 1)
    soft = F.kl_div(torch.cat([mine, others], 1), torch.from_numpy(wanted).softmax(-1), reduction="batchmean")
    return WEIGHT * TEMPERATURE**2 * soft + (1 - WEIGHT) * F.cross_entropy(logits, right)


def keep_zeros(model: torch.nn.Module) -> None:
    """Take the gradient from what is zero in matrices: neither AdamW nor its decay moves it then."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.ndim > 1:
            parameter.grad.mul_(parameter.detach() != 0)
