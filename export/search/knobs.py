"""The choices that a search makes: of each module a precision, and how many of its parts take one step up; options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from edgeglm.engines import USUAL_FORMAT
from edgeglm.errors import UnsupportedError
from edgeglm.export.choose.formats import TFLITE
from edgeglm.export.pipeline.ladder import Precisions
from edgeglm.export.quantize.schemes import HIGHER
from edgeglm.export.requests import Switch
from edgeglm.manifest import Rung

# The precisions of a module's parts by format, and those of a table, which has none; from the smallest.
STEPS: Mapping[str, Sequence[str]] = {
    USUAL_FORMAT: ("int4-128", "int4", "int8", "int8-block", "fp16"),
    TFLITE.format: TFLITE.precisions[::-1],
}
TABLE_STEPS = ("int8", "fp16")


class Setting(msgspec.Struct, frozen=True):
    """The choices of one attempt.

    Args:
        precision: Of all parts, as ``--precision`` takes it.
        equalization: Whether a calibration moves scales, as ``--equalization`` takes it.
        model: The name of a smaller checkpoint; empty for MODEL.
        format: Of the modules, as ``--format`` takes it.
    """

    precision: str
    equalization: Switch = "on"
    model: str = ""
    format: str = USUAL_FORMAT

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
        steps: What a module can be, from the smallest of each format: ``int8``, or ``tflite int8``.
        counts: How many parts of a module can take one step up, in the model with most; those of an embedding are none.
        options: What options of a `Setting` can be, by name, the first choice first.
    """

    steps: Mapping[str, Sequence[str]]
    counts: Mapping[str, int]
    options: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls,
        models: Sequence[Precisions],
        is_possible: Callable[[str, str], bool],
        options: Mapping[str, Sequence[str]],
        formats: Sequence[str] = (USUAL_FORMAT,),
    ) -> Knobs:
        """Return the knobs of modules.

        Args:
            models: Of each model the precision of all parts, each in the smallest; MODEL is the first.
            is_possible: Whether a ``--precision`` and ``--format`` have a place on the device.
            options: What they can be.
            formats: What those of modules can be.

        Raises:
            UnsupportedError: A module has none of them.
        """
        steps, counts = dict[str, Sequence[str]](), dict[str, int]()
        for module in dict.fromkeys(part.partition(".")[0] for part in models[0]):
            count = max(len(movable(parts, module)) for parts in models)
            table = TABLE_STEPS if models[0].get(module) in TABLE_STEPS else ()
            tried = [_form(name, step) for name in formats for step in STEPS[name]] if count else table
            possible = [form for form in tried if is_possible(*_asked(module, form))]
            if count and not possible:
                what = f"--formats {','.join(formats)}"
                raise UnsupportedError(what, f"the {module} cannot be made in it", f"add {USUAL_FORMAT}")
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
        """Yield what is tried first: the smallest, with each option and format; half of the parts raised; all."""
        usual = {name: values[0] for name, values in self._chosen.items()}
        smallest, *others = self._by_format()
        raised = {f"{module}.raised": count for module, count in self.counts.items() if count}
        smallest_of_all = {**smallest, **dict.fromkeys(raised, 0), **usual}
        yield smallest_of_all
        for name, values in self._chosen.items():
            yield from ({**smallest_of_all, name: value} for value in values[1:])
        yield from ({**smallest_of_all, **forms} for forms in others)
        yield {**smallest_of_all, **{name: count // 2 for name, count in raised.items()}}
        yield {**smallest_of_all, **raised}

    def _by_format(self) -> Iterator[dict[str, str]]:
        """Yield by module the smallest of a format; of the first one that it has where it has not that."""
        for format_ in dict.fromkeys(format_of(form) for forms in self.steps.values() for form in forms):
            yield {
                module: next((form for form in forms if format_of(form) == format_), forms[0])
                for module, forms in self.steps.items()
            }

    def format(self, chosen: Mapping[str, Any]) -> str:
        """Return the ``--format`` of a choice."""
        formats = {module: format_of(chosen[module]) for module in self.steps}
        others = (f"{module}={format_}" for module, format_ in formats.items() if format_ != USUAL_FORMAT)
        return ",".join(others) or USUAL_FORMAT

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
            base, is_usual = precision_of(chosen[module]), format_of(chosen[module]) == USUAL_FORMAT
            named = [part for part in order if part.startswith(f"{module}.")]
            raised = set(named[: chosen[f"{module}.raised"]] if count and is_usual else ())
            parts |= {part: HIGHER.get(base, base) if part in raised else base for part in named} or {module: base}
        return parts


def _form(format_: str, precision: str) -> str:
    return precision if format_ == USUAL_FORMAT else f"{format_} {precision}"


def _asked(module: str, form: str) -> tuple[str, str]:
    """Return the ``--precision`` and the ``--format`` that a module is one of these by."""
    name = format_of(form)
    return f"{module}={precision_of(form)}", name if name == USUAL_FORMAT else f"{module}={name}"


def format_of(form: str) -> str:
    """Return the format of what a module can be."""
    return form.rpartition(" ")[0] or USUAL_FORMAT


def precision_of(form: str) -> str:
    """Return the precision of what a module can be."""
    return form.rpartition(" ")[2]


def movable(parts: Precisions, module: str) -> list[str]:
    """Return the parts of a module that can take a step."""
    return [part for part, precision in parts.items() if part.startswith(f"{module}.") and precision in HIGHER]
