"""A node of a graph that an engine or a device refuses: plain data, of plans and manifests too."""

from __future__ import annotations

from dataclasses import dataclass, replace

WHOLE = "graph"
ANOTHER = "take it out of the model, or choose another --target"
FIXED_LENGTH = "export it with one fixed length"
SAMPLED_LENGTH = f"{FIXED_LENGTH}, or give samples of one length by --calibration"


@dataclass(frozen=True)
class Violation:
    """A node that the engine or the device refuses, why, what the user can do, and the fix that was applied if any."""

    node: str
    block: str
    operator: str
    reason: str
    remedy: str = ANOTHER
    fix: str | None = None

    @property
    def place(self) -> str:
        """The node with its block and its operator."""
        where = "" if self.block == WHOLE else f"{self.block}: "
        return f"{where}{self.node} ({self.operator})"

    @property
    def is_final(self) -> bool:
        """Whether no fix may take it away but the sizes of samples: one length for many would be another model."""
        return self.remedy in (FIXED_LENGTH, SAMPLED_LENGTH)

    def fixed(self, fix: str) -> Violation:
        """Return the same, with its fix."""
        return replace(self, fix=fix)

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f"; fixed: {self.fix}" if self.fix else "")
