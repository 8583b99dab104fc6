"""The choices that a search makes: of each module a precision, and how many of its parts take one step up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from edgeglm.export.pipeline.ladder import Precisions
from edgeglm.export.quantize.schemes import HIGHER

# The precisions of a module's parts, and those of a table, which has none; from the smallest.
STEPS, TABLE_STEPS = ("int4", "int8", "int8-block", "fp16"), ("int8", "fp16")


@dataclass(frozen=True)
class Knobs:
    """The choices that a study makes.

    Args:
        steps: The precisions that a module can have, from the smallest.
        order: The parts of a module, the most sensitive first; none of an embedding.
        fixed: The precision of what is not chosen.
    """

    steps: Mapping[str, Sequence[str]]
    order: Mapping[str, Sequence[str]]
    fixed: Precisions

    @classmethod
    def of(cls, parts: Precisions, order: Sequence[str], is_possible: Callable[[str], bool]) -> Knobs:
        """Return the knobs of modules.

        Args:
            parts: The precision of all parts, each in the smallest.
            order: Those that can take a step up, the most sensitive first.
            is_possible: Whether a ``--precision`` has a place on the device.
        """
        steps, named = dict[str, Sequence[str]](), dict[str, Sequence[str]]()
        for module in dict.fromkeys(part.partition(".")[0] for part in parts):
            named[module] = [part for part in order if part.startswith(f"{module}.")]
            tried = STEPS if named[module] else TABLE_STEPS if parts.get(module) in TABLE_STEPS else ()
            possible = [name for name in tried if is_possible(f"{module}={name}")]
            if possible:
                steps[module] = possible
        fixed = {part: name for part, name in parts.items() if part.partition(".")[0] not in steps}
        return cls(steps, named, fixed)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The knobs, as Optuna has them."""
        found: dict[str, BaseDistribution] = {}
        for module, names in self.steps.items():
            found[module] = CategoricalDistribution(names)
            if self.order[module]:
                found[f"{module}.raised"] = IntDistribution(0, len(self.order[module]))
        return found

    def first(self) -> Iterator[dict[str, object]]:
        """Yield what is tried first: all in its smallest, then half of the parts raised, then all of them."""
        smallest = {module: names[0] for module, names in self.steps.items()}
        for raised in (0.0, 0.5, 1.0):
            counts = {f"{module}.raised": int(raised * len(self.order[module])) for module in self.steps}
            yield {**smallest, **{name: count for name, count in counts.items() if name in self.distributions}}

    def parts(self, chosen: Mapping[str, Any]) -> Precisions:
        """Return the precision of each part."""
        parts = dict(self.fixed)
        for module in self.steps:
            base, order = chosen[module], self.order[module]
            raised = set(order[: chosen.get(f"{module}.raised", 0)])
            parts |= {part: HIGHER.get(base, base) if part in raised else base for part in order} or {module: base}
        return parts
