"""Fills the matrix: what was finished before stands, the rest is measured side by side within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

from edgeglm.export.cluster import Task
from edgeglm.export.matrix.outcome import Cell, Identity, Outcome, untried
from edgeglm.export.matrix.programs import Programs
from edgeglm.export.predict.answer import Forecast
from edgeglm.export.requests import PlanRequest
from edgeglm.units import format_size

Run = Callable[[Sequence[Task[Cell]]], Generator[tuple[Cell, Outcome], None, None]]
# What a model is taken for that `edgeglm plan` refuses: the export says why.
UNPLANNED = 1 << 30


class Matrix:
    """The outcomes so far, by cell.

    Args:
        kept: From earlier runs, also of other cells, which stay.
        cells: What is asked for now.
        environment: The versions of what may change an outcome.
    """

    def __init__(self, kept: dict[Identity, Outcome], cells: Sequence[Cell], environment: dict[str, str]) -> None:
        self._environment = environment
        self._outcomes, self._planned = dict(kept), dict[tuple[str | None, str], int]()
        self.waiting = [cell for cell in cells if not self._stands(cell)]
        for cell in self.waiting:
            self._outcomes[cell.identity] = untried(cell, environment, "")

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes, in the order in which they were first asked for."""
        return list(self._outcomes.values())

    def of(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Return the outcomes of some cells."""
        return [self._outcomes[cell.identity] for cell in cells]

    def fill(self, programs: Programs, budget: int, run: Run, show: Callable[[str], object]) -> Iterator[Outcome]:
        """Measure what waits, and yield each outcome when it is there.

        Args:
            programs: Plan the cells.
            budget: Bytes of memory that one cell may take.
            run: Measures cells, side by side where their bytes have room.
            show: Told of the plans.
        """
        tasks = []
        for cell in self.waiting:
            show(f"planning {cell.model} for {cell.target}")
            needed = self._needs(programs, cell)
            if needed <= budget:
                tasks.append(Task(cell, needed))
                continue
            why = f"takes {format_size(needed)}, and --max-ram is {format_size(budget)}"
            yield self._keep(untried(cell, self._environment, why))
        with closing(run(tasks)) as results:
            for _, outcome in results:
                yield self._keep(outcome)

    def _stands(self, cell: Cell) -> bool:
        known = self._outcomes.get(cell.identity)
        return known is not None and known.answers(cell, self._environment)

    def _keep(self, outcome: Outcome) -> Outcome:
        self._outcomes[outcome.identity] = outcome
        return outcome

    def _needs(self, programs: Programs, cell: Cell) -> int:
        """Return what the cell's processes take at most: those of the export, or the original in fp32 beside torch."""
        key = cell.argument, cell.target
        if key not in self._planned:
            self._planned[key] = _bytes(
                programs.ask(PlanRequest(target=cell.target, model=cell.argument), Forecast).result
            )
        return self._planned[key]


def _bytes(plan: Forecast | None) -> int:
    if plan is None:
        return UNPLANNED
    whole = [option.bundle_bytes for option in plan.options if option.precision == "fp32"]
    return plan.export_peak_rss_bytes + max(whole, default=0)
