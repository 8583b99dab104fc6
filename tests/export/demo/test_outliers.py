from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor

from edgeglm.export.demo.evaluate import CHECKPOINT
from edgeglm.export.demo.samples import make_sample
from edgeglm.export.evaluate.original.whole import WholeOriginal
from tests.export.outliers import NORM, inject_outliers


def norm_outputs(agent: WholeOriginal) -> tuple[Tensor, dict[str, float]]:
    """Logits of one sample, and the largest ratio of a channel's peak to the median peak after each norm."""
    peaks: dict[str, float] = {}

    def watch(name: str, output: Tensor) -> None:
        largest = output.detach().flatten(0, -2).abs().amax(0)
        peaks[name] = float(largest.max() / largest.median())

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: watch(name, output))
        for name, module in agent.model.named_modules()
        if NORM.fullmatch(f"{name}.weight")
    ]
    sample = make_sample("test", 1)
    with torch.no_grad():
        logits = agent.model(**agent.encode([sample.image], [sample.messages])).logits
    for handle in handles:
        handle.remove()
    return logits, peaks


def test_outliers_appear_and_outputs_stay_identical() -> None:
    agent = WholeOriginal.load(CHECKPOINT)
    before, quiet = norm_outputs(agent)
    agent.model.load_state_dict(inject_outliers(agent.model.state_dict()))
    after, loud = norm_outputs(agent)
    assert torch.equal(before, after)
    assert len(loud) == 2 * (4 + 4)
    assert all(loud[name] > 8 * quiet[name] for name in loud), (quiet, loud)


def test_a_factor_that_would_round_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        inject_outliers({}, factor=50.0)
