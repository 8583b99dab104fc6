"""``python -m edgeglm.runtimes BUNDLE …`` is ``edgeglm run BUNDLE …``."""

from __future__ import annotations

import sys

from edgeglm.runtimes.program import main

if __name__ == "__main__":
    sys.exit(main())
