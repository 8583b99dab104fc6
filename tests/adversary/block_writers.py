"""Kill processes while they keep blocks, and read what they left: ``python -m tests.adversary.block_writers``.

A process of its own, without an engine's threads, forks the writers. It prints what came of each attempt, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from edgeglm import store
from edgeglm.blocks import Blocks, block_name

SIZE, COUNT = 1 << 18, 8
# Some of them have to go for the others.
CAP = 5 * (SIZE + 4096)
PATIENCE = 0.02  # seconds; a writer takes about half of that


def content(head: bytes) -> bytes:
    """Return the one right content of a block."""
    return random.Random(head).randbytes(SIZE)


def write(blocks: Blocks, wanted: dict[bytes, bytes], seed: float) -> None:
    """Keep all blocks, in an order of its own."""
    heads = random.Random(seed).sample(sorted(wanted), len(wanted))
    for head in heads:
        blocks.keep(head, memoryview(wanted[head]), [block_name(heads[0])])


def attempt(blocks: Blocks, wanted: dict[bytes, bytes], choose: random.Random) -> list[str]:
    """Kill one or two writers at a random moment, and return what is found of each block."""
    children = []
    for _ in range(choose.randint(1, 2)):
        seed, number = choose.random(), os.fork()
        if number == 0:
            write(blocks, wanted, seed)
            os._exit(0)
        children.append(number)
    time.sleep(choose.uniform(0, PATIENCE))
    for number in children:
        os.kill(number, signal.SIGKILL)
    kills = sum(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL for number in children)
    outcomes = ["kills"] * kills
    store._swept.clear()  # as a new process
    for head, right in wanted.items():
        block = blocks.find(head)
        outcomes.append("nothing" if block is None else "right" if block.file[block.start :] == right else "WRONG")
    assert blocks.folder
    left = [path for path in blocks.folder.glob("*") if path.name.endswith(store.PARTIAL)]
    used = sum(path.stat().st_size for path in blocks.folder.glob("*"))
    return outcomes + ["LEFT"] * len(left) + ["OVER THE CAP"] * (used > CAP)


def main(folder: Path, seconds: float, seed: int) -> None:
    """Make attempts, and print the outcomes of each as a line."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    blocks, choose = Blocks(CAP), random.Random(seed)
    wanted = {f"head {number}".encode(): content(b"%d" % number) for number in range(COUNT)}
    end = time.monotonic() + seconds
    while True:
        print(json.dumps(attempt(blocks, wanted, choose)), flush=True)
        if time.monotonic() > end:
            return
        if choose.random() < 0.1 and blocks.folder:
            shutil.rmtree(blocks.folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
