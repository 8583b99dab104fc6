"""Writers of blocks killed at random moments, two at once among them: what is found is right, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.adversary.fuzzer import Fuzzer

RIGHT = {"kills", "right", "nothing"}


def test_a_killed_writer_leaves_right_blocks_or_none(tmp_path: Path, fuzz: Callable[[str], Fuzzer]) -> None:
    fuzzer = fuzz("a writer of a prefix's blocks killed at a random moment")
    arguments = [str(tmp_path), str(fuzzer.seconds), str(fuzzer.random.getrandbits(32))]
    command = [sys.executable, "-m", "tests.adversary.block_writers", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number, line in enumerate(done.stdout.splitlines()):
        for outcome in json.loads(line):
            if outcome in RIGHT:
                fuzzer.saw(outcome)
            else:
                fuzzer.fault(number, outcome)
    assert fuzzer.outcomes["right"] or fuzzer.seconds < 1
