"""The accuracy of a bundle as `edgeglm validate` finds it, in a process of its own: torch never comes into this one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeglm.errors import AccuracyError, EdgeglmError
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.validation.memory import BASE_BYTES, is_streamed, streamed_bytes, whole_bytes
from edgeglm.manifest import Metric
from edgeglm.process import run_program


@dataclass(frozen=True)
class Validation:
    """The options of `edgeglm validate`; `data` and `reference` are given for all but the demo."""

    accuracy_drop: float
    budget: int
    data: Path | None = None
    reference: Path | None = None
    limit: int | None = None
    adapter: Path | None = None

    def metrics(self, bundle: Path) -> tuple[Metric, ...]:
        """Return all metrics of a bundle, whether they pass or not.

        Raises:
            EdgeglmError: It cannot be validated, for the reason that the command gives.
        """
        command = [sys.executable, "-m", "edgeglm", "validate", str(bundle), "--json", *self._options()]
        ran = run_program(command)
        if ran.code not in (0, AccuracyError.exit_code):
            raise _failure(ran.code, ran.err)
        return msgspec.json.decode(ran.out, type=_Result).metrics

    def peak(self, original: Checkpoint, loaded: int) -> int:
        """Return the predicted bytes of all processes, where a session of the bundle takes `loaded`."""
        streamed = is_streamed(original, self.budget) or (self.data is not None and self.data.suffix != ".jsonl")
        return max(streamed_bytes(original) if streamed else whole_bytes(original), BASE_BYTES + loaded)

    def _options(self) -> list[str]:
        given = {
            "--accuracy-drop": f"{self.accuracy_drop:.18f}",
            "--max-ram": self.budget,
            "--data": self.data,
            "--reference": self.reference,
            "--limit": self.limit,
            "--adapter": self.adapter,
        }
        return [text for name, value in given.items() if value is not None for text in (name, str(value))]


class _Result(msgspec.Struct):
    """The keys of the command's output that count here; a metric has keys beyond those of a manifest."""

    found: list[dict[str, object]] = msgspec.field(name="metrics")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        names = Metric.__struct_fields__
        return tuple(msgspec.convert({name: each[name] for name in names}, Metric) for each in self.found)


def _failure(code: int, text: str) -> EdgeglmError:
    """Return the command's own error, or a bug where it ended otherwise."""
    line = (text.strip().splitlines() or [""])[-1].removeprefix("edgeglm: ")
    what, _, rest = line.partition(": ")
    why, _, remedy = rest.rpartition("; ")
    kinds = {kind.exit_code: kind for kind in EdgeglmError.__subclasses__()}
    if code in kinds and why:
        return kinds[code](what, why, remedy)
    return EdgeglmError("validate", f"ended with {code}: {line}", "this is a bug in edgeglm, please report it")
