"""The record of a request's cost: phases of this request alone, and modules that are released whatever happens."""

from __future__ import annotations

import pytest

from edgeglm.manifest import Module
from edgeglm.runtimes.core.costs import Costs


class _Session:
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


MODULE = Module(
    name="decoder", file="decoder/model.onnx", format="onnx", precision="fp32", placement="cpu", engine="ort",
    dialect="ort", inputs=(), outputs=(),
)  # fmt: skip


def test_the_first_request_has_the_start_and_the_next_only_its_own() -> None:
    costs = Costs()
    with costs.phase("start"):
        pass
    costs.begin()
    assert [phase.name for phase in costs.phases] == ["start"]
    costs.notes.append("a note")
    costs.begin()
    assert (costs.phases, costs.notes) == ([], [])


def test_a_module_is_released_by_an_error_and_leaves_the_record_with_the_next_request() -> None:
    costs, session = Costs(), _Session()
    held = costs.loaded(MODULE, 7, lambda _: session)  # type: ignore[type-var]

    def fail() -> None:
        with held:
            assert costs.modules[0].unloaded is None
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert session.closed == 1
    (stay,) = costs.modules
    assert (stay.name, stay.bytes) == ("decoder", 7)
    assert stay.unloaded is not None
    assert [phase.name for phase in costs.phases] == ["load decoder", "release decoder"]
    costs.begin()
    assert costs.modules == []
