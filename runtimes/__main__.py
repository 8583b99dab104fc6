"""``python -m edgeglm.runtimes BUNDLE …`` is ``edgeglm run BUNDLE …``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from edgeglm.runtimes.program import main
    except ModuleNotFoundError as error:
        print(f"edgeglm: run: needs {error.name}, which is not installed; run pip install edgeglm", file=sys.stderr)
        sys.exit(3)
    sys.exit(main())
