"""``python -m edgeglm`` is the ``edgeglm`` command."""

from __future__ import annotations

import sys

from edgeglm.cli.main import main

sys.exit(main())
