"""The choices that a search makes: of each module a precision, and how many of its parts take one step up; options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from edgeglm.export.pipeline.ladder import Precisions
from edgeglm.export.quantize.schemes import HIGHER
from edgeglm.export.requests import Switch
from edgeglm.manifest import Rung

# The precisions of a module's parts, and those of a table, which has none; from the smallest.
STEPS, TABLE_STEPS = ("int4", "int8", "int8-block", "fp16"), ("int8", "fp16")


class Setting(msgspec.Struct, frozen=True):
    """The choices of one attempt.

    Args:
        precision: Of all parts, as ``--precision`` takes it.
        equalization: Whether a calibration moves scales, as ``--equalization`` takes it.
        model: The name of a smaller checkpoint; empty for MODEL.
    """

    precision: str
    equalization: Switch = "on"
    model: str = ""

    @classmethod
    def of(cls, rung: Rung) -> Setting:
        """Return those of an attempt that was made."""
        return msgspec.convert({"precision": rung.precision, **rung.options}, cls)

    @property
    def options(self) -> dict[str, str]:
        """Options whose value is not the usual."""
        usual = msgspec.to_builtins(Setting(self.precision))
        return {name: value for name, value in msgspec.to_builtins(self).items() if value != usual[name]}


@dataclass(frozen=True)
class Knobs:
    """The choices that a study makes.

    Args:
        steps: The precisions that a module can have, from the smallest.
        counts: How many parts of a module can take one step up, in the model with most; those of an embedding are none.
        options: What options of a `Setting` can be, by name, the first choice first.
    """

    steps: Mapping[str, Sequence[str]]
    counts: Mapping[str, int]
    options: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls, models: Sequence[Precisions], is_possible: Callable[[str], bool], options: Mapping[str, Sequence[str]]
    ) -> Knobs:
        """Return the knobs of modules.

        Args:
            models: Of each model the precision of all parts, each in the smallest; MODEL is the first.
            is_possible: Whether a ``--precision`` has a place on the device.
            options: What they can be.
        """
        steps, counts = dict[str, Sequence[str]](), dict[str, int]()
        for module in dict.fromkeys(part.partition(".")[0] for part in models[0]):
            count = max(len(movable(parts, module)) for parts in models)
            tried = STEPS if count else TABLE_STEPS if models[0].get(module) in TABLE_STEPS else ()
            possible = [name for name in tried if is_possible(f"{module}={name}")]
            if possible:
                steps[module], counts[module] = possible, count
        return cls(steps, counts, options)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The knobs, as Optuna has them."""
        found: dict[str, BaseDistribution] = {}
        for module, names in self.steps.items():
            found[module] = CategoricalDistribution(names)
            if self.counts[module]:
                found[f"{module}.raised"] = IntDistribution(0, self.counts[module])
        return found | {name: CategoricalDistribution(values) for name, values in self._chosen.items()}

    @property
    def _chosen(self) -> dict[str, Sequence[str]]:
        return {name: values for name, values in self.options.items() if len(values) > 1}

    def first(self) -> Iterator[dict[str, object]]:
        """Yield what is tried first: all in its smallest, with each option; half of the parts raised; all of them."""
        usual = {name: values[0] for name, values in self._chosen.items()}
        smallest = {module: names[0] for module, names in self.steps.items()}
        raised = {f"{module}.raised": count for module, count in self.counts.items() if count}
        smallest_of_all = {**smallest, **dict.fromkeys(raised, 0), **usual}
        yield smallest_of_all
        for name, values in self._chosen.items():
            yield from ({**smallest_of_all, name: value} for value in values[1:])
        yield {**smallest_of_all, **{name: count // 2 for name, count in raised.items()}}
        yield {**smallest_of_all, **raised}

    def option(self, chosen: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (a choice of Optuna's)
        """Return an option of a choice."""
        return chosen.get(name, self.options[name][0])

    def parts(self, chosen: Mapping[str, Any], smallest: Precisions, order: Sequence[str]) -> Precisions:
        """Return the precision of each part.

        Args:
            chosen: A choice.
            smallest: The precision of all parts of the model, each in the smallest.
            order: Those that can take a step, the most sensitive first.
        """
        parts = dict(smallest)
        for module, count in self.counts.items():
            base = chosen[module]
            named = [part for part in order if part.startswith(f"{module}.")]
            raised = set(named[: chosen[f"{module}.raised"]] if count else ())
            parts |= {part: HIGHER.get(base, base) if part in raised else base for part in named} or {module: base}
        return parts


def movable(parts: Precisions, module: str) -> list[str]:
    """Return the parts of a module that can take a step."""
    return [part for part, precision in parts.items() if part.startswith(f"{module}.") and precision in HIGHER]
