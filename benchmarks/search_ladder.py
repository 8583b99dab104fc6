"""A search beside the ladder on the demo's first screens: ``python -m benchmarks.search_ladder WORK_DIR``.

Both begin with the demo, uncalibrated, and end with the smallest bundle that they find to pass. What was measured is
printed as it comes. ``--kill SECONDS`` kills the search's process after that time, as ``kill -9`` does, and has another
go on with its study.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from edgeglm.errors import AccuracyError
from edgeglm.export.api import search
from edgeglm.export.pipeline.opening import open_job
from edgeglm.export.requests import Progress, SearchRequest
from edgeglm.machine import memory_budget
from edgeglm.manifest import Rung
from edgeglm.units import format_size


def shown(name: str) -> Callable[[Progress], None]:
    """Return what prints the bundles that are measured."""

    def show(progress: Progress) -> None:
        if isinstance(progress.rung, Rung):
            rung = progress.rung
            drops = ", ".join(f"{metric.name} {metric.drop:.4g}" for metric in rung.metrics)
            verdict = "pass" if rung.passed else "fail"
            print(f"{name:<7} {format_size(rung.bundle_bytes):>9} {verdict}  {rung.precision}  {drops}", flush=True)

    return show


def climb(request: SearchRequest, folder: Path) -> None:
    """Climb the ladder from INT4, on as many screens."""
    job = open_job(request, memory_budget(None))
    job = replace(job, request=replace(job.request, precision="int4"), folder=folder)
    try:
        job.run(shown("ladder"), resume=False)
    except AccuracyError as error:
        print(f"ladder  {error}")


def look(request: SearchRequest) -> None:
    """Search; ends with what passes, or without."""
    try:
        search(request, shown("search"))
    except AccuracyError as error:
        print(f"search  {error}")


def main() -> None:
    """Search, killed once if asked, then climb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--accuracy-drop", type=float, default=0.015, metavar="SHARE")
    parser.add_argument("--limit", type=int, default=256, metavar="N", help="screens")
    parser.add_argument("--trials", type=int, default=12, metavar="N")
    parser.add_argument("--kill", type=float, metavar="SECONDS")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work / "found", ignore_errors=True)
    request = SearchRequest(
        target="cpu",
        output=arguments.work / "found",
        accuracy_drop=arguments.accuracy_drop,
        limit=arguments.limit,
        trials=arguments.trials,
    )
    if arguments.kill:
        process = multiprocessing.get_context("spawn").Process(target=look, args=(request,))
        process.start()
        process.join(arguments.kill)
        process.kill()
        process.join()
        print(f"killed after {arguments.kill:.0f} s")
    look(request)
    climb(request, arguments.work / "ladder")


if __name__ == "__main__":
    main()
