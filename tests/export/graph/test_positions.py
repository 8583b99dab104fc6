from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionEmbeddings
from transformers.vision_utils import get_vision_position_ids

from edgeglm.export.graph.position_embedding import position_embedding


@pytest.mark.parametrize("grid", [(24, 24), (24, 12), (8, 12), (2, 4), (30, 46)], ids=str)
@pytest.mark.parametrize("merge", [1, 2])
def test_equals_transformers(grid: tuple[int, int], merge: int) -> None:
    torch.manual_seed(0)
    config = Glm4vVisionConfig(hidden_size=16, image_size=336, patch_size=14)
    embeddings = Glm4vVisionEmbeddings(config)
    count = grid[0] * grid[1]
    shape = torch.tensor([[1, *grid]])
    where = get_vision_position_ids(shape, merge)
    with torch.no_grad():
        want = embeddings(torch.zeros(count, 16), [count], shape, where[:, 0], where[:, 1]).numpy()
    got = position_embedding(embeddings.position_embedding.weight.detach().numpy(), grid, merge)
    # transformers computes the places in fp32, which is what differs.
    assert np.linalg.norm(got - want) <= 3e-6 * np.linalg.norm(want)
