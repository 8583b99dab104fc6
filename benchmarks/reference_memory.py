"""What the streamed original takes: ``python benchmarks/reference_memory.py WORK_DIR [SHAPE]``.

Writes a random checkpoint of the shape (default: autoglm-phone-9b), and lets the original judge the draft of one answer
behind one screenshot, as `edgeglm validate` does where the original does not fit into memory: in a fresh process, whose
peak is printed, beside the bytes of the hidden states that pass through the blocks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgeglm.units import format_size

HERE = Path(__file__).parent
# A phone's screenshot of 1176 x 560 pixels in patches, and tokens of text.
ROWS, COLUMNS, TEXT, ANSWER = 84, 40, 160, 48
JUDGE = """
import json, sys, time; from pathlib import Path
import numpy as np, torch
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.evaluate.original.streamed import Drafted, verdicts
from edgeglm.memory import peak_rss
from edgeglm.runtimes.inputs.positions import prompt_positions

folder, rows, columns, text, answer = Path(sys.argv[1]), *map(int, sys.argv[2:])
source, random = Checkpoint.open(folder), np.random.default_rng(0)
vision = source.config["vision_config"]
merge = vision["spatial_merge_size"]
pieces = rows * columns // merge**2
width = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
is_picture = np.arange(pieces + text + answer - 1) < pieces
draft = random.integers(0, 1000, answer)
drafted = Drafted(
    tokens=np.concatenate([np.zeros(pieces + text, np.int64), draft[:-1]]),
    is_picture=is_picture,
    positions=prompt_positions(is_picture.tolist(), [(rows // merge, columns // merge)]),
    pixels=torch.from_numpy(random.standard_normal((rows * columns, width), np.float32)),
    grid=torch.tensor([[1, rows, columns]]),
    draft=draft,
)
start = time.monotonic()
(verdict,) = verdicts(source, [drafted])
assert len(verdict) == answer
print(json.dumps([source.parameters, len(is_picture), peak_rss(), time.monotonic() - start]))
"""


def main() -> None:
    """Print the figures."""
    work, shape = Path(sys.argv[1]), (sys.argv[2:] or ["autoglm-phone-9b"])[0]
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / shape
    if not checkpoint.exists():
        subprocess.run([sys.executable, HERE / "random_checkpoint.py", shape, checkpoint], check=True)
    sizes = [str(size) for size in (ROWS, COLUMNS, TEXT, ANSWER)]
    done = subprocess.run([sys.executable, "-c", JUDGE, checkpoint, *sizes], stdout=subprocess.PIPE, check=True)
    parameters, tokens, peak, seconds = json.loads(done.stdout)
    print(f"{shape}: {parameters / 1e9:.1f}B parameters, {format_size(4 * parameters)} in fp32")
    print(f"{tokens} tokens of a screenshot, a prompt and the draft of its answer: {seconds:.0f} s")
    print(f"peak RSS {format_size(peak)}")


if __name__ == "__main__":
    main()
