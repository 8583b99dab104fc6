"""What a step of several sequences costs beside a step of one: processor time on one thread, in turns.

``python -m benchmarks.slots BUNDLE`` opens a decoder's graph for several sequences and its first graph, both with
``--tokens`` tokens behind. It prints the processor time of a step of one, two and four sequences, and how many times
the tokens of one sequence four have in the same time: medians, and of the ratios the median of the turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from edgeglm.bundle import load_bundle
from edgeglm.runtimes.core.generate import PREFILL_CHUNK
from edgeglm.runtimes.core.heap import bound_heap
from edgeglm.runtimes.core.session import Asked
from edgeglm.runtimes.core.sessions import open_decoder, open_slots

TOKENS, TURNS, COUNTS = 128, 40, (1, 2, 4)


class Steps:
    """Steps of a bundle's decoder behind so many tokens, in sequences and in the first graph."""

    def __init__(self, folder: Path, tokens: int) -> None:
        bundle = load_bundle(folder)
        self.tokens, self.random = tokens, np.random.default_rng(0)
        positions = next(tensor for tensor in bundle.decoder.inputs if tensor.name == "position_ids")
        self.axes = int(positions.shape[0])
        self.first = open_decoder(bundle, bundle.decoder, 1, tokens + 1, low_rss=False)
        self.slots = open_slots(bundle, bundle.decoder, 1)
        self.width = bundle.manifest.model.hidden_size
        self.sequences = [self.slots.slot(index, tokens + 1) for index in range(max(COUNTS))]
        for session in (self.first, *self.sequences):
            for start in range(0, tokens, PREFILL_CHUNK):
                asked = self._asked(start, min(PREFILL_CHUNK, tokens - start))
                session.step(asked.hidden, asked.position_ids)

    def seconds(self, count: int) -> float:
        """Return the processor seconds of a step of so many sequences; of the first graph if it is 0."""
        asked = self._asked(self.tokens, 1)
        start = time.process_time()
        if count:
            self.slots.step(dict.fromkeys(range(count), asked))
        else:
            self.first.step(asked.hidden, asked.position_ids)
        took = time.process_time() - start
        for session in (self.first, *self.sequences):
            session.truncate(self.tokens)
        return took

    def _asked(self, start: int, count: int) -> Asked:
        hidden = self.random.standard_normal((1, count, self.width)).astype(np.float32)
        places = np.broadcast_to(start + np.arange(count), (self.axes, 1, count))
        return Asked(hidden, np.ascontiguousarray(places), 1)


def main() -> int:
    """Measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    bound_heap()
    steps = Steps(options.bundle, options.tokens)
    turns = [{count: steps.seconds(count) for count in (0, *COUNTS)} for _ in range(options.turns)]
    for count in (0, *COUNTS):
        name = f"{count} of {max(COUNTS)} sequences" if count else "first graph"
        print(f"{name:<20}{1e3 * statistics.median(turn[count] for turn in turns):8.2f} ms")
    beside_one, beside_first = (statistics.median(4 * turn[count] / turn[4] for turn in turns) for count in (1, 0))
    print(f"4 sequences have {beside_one:.2f}x the tokens of 1, {beside_first:.2f}x those of the first graph")
    return 0


if __name__ == "__main__":
    sys.exit(main())
