"""``python -m edgeglm`` is the ``edgeglm`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code, also where Ctrl-C comes while it is imported."""
    try:
        from edgeglm.cli.main import main as run  # noqa: PLC0415 (which takes a moment)
    except KeyboardInterrupt:
        print("edgeglm: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
