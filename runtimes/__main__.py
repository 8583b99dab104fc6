"""``python -m edgeglm.runtimes BUNDLE …`` is ``edgeglm run BUNDLE …``, and what ``run.pyz`` starts.

With ``serve`` as the first argument it is ``edgeglm serve``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeglm.exits import installed, run_program

# What the server needs besides.
SERVE = "starlette uvicorn prometheus-client"


def main(what: str, package: str, bundle: Path | None = None) -> int:
    """Run the runner's program and return its exit code.

    Args:
        what: The program, as the line about a package that is missing calls it.
        package: What to install then.
        bundle: The bundle, where the command line need not name it.
    """

    def body() -> None:
        if sys.argv[1:2] == ["serve"]:
            with installed(f"{what} serve", f"{package} {SERVE}"):
                from edgeglm.runtimes.serve.program import serve  # noqa: PLC0415

                serve(sys.argv[2:], bundle)
            return
        with installed(what, package):  # an engine is imported when a module for it is opened
            from edgeglm.runtimes.program import run  # noqa: PLC0415

            run(bundle=bundle)

    return run_program(body, debug=lambda: "--debug" in sys.argv, again="run it again with --debug")


if __name__ == "__main__":
    sys.exit(main("run", "edgeglm"))
