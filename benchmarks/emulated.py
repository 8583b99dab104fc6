"""Outputs of graphs on an emulated x86 CPU without VNNI, where ONNX Runtime's fast INT8 kernels saturate.

It needs Debian's ``qemu-user``. What a graph takes there says nothing about its speed on such a processor.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
CPU = "Haswell"  # of 2013: AVX2, no VNNI
QEMU = "qemu-x86_64"


def run_there(files: Sequence[Path], samples: Sequence[Arrays], work: Path) -> list[list[Arrays]]:
    """Return the outputs of each file for each sample, as any program computes them there.

    Args:
        files: Graphs.
        samples: Their inputs.
        work: A folder for what goes in and comes out.
    """
    emulator = shutil.which(QEMU)
    if emulator is None:
        raise SystemExit(f"no {QEMU}: apt install qemu-user")
    for index, sample in enumerate(samples):
        np.savez(work / f"sample-{index}.npz", **sample)  # type: ignore[arg-type]
    (work / "task.json").write_text(json.dumps([list(map(str, files)), len(samples)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [emulator, "-cpu", CPU, sys.executable, "-m", "benchmarks.emulated", str(work)]
    subprocess.run(command, check=True, env=environment)
    return [
        [dict(np.load(work / f"outputs-{number}-{index}.npz")) for index in range(len(samples))]
        for number in range(len(files))
    ]


def main() -> None:
    """Run what the task names, inside the emulator."""
    work = Path(sys.argv[1])
    files, count = json.loads((work / "task.json").read_text())
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    for number, file in enumerate(files):
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        for index in range(count):
            sample = dict(np.load(work / f"sample-{index}.npz"))
            np.savez(
                work / f"outputs-{number}-{index}.npz", **dict(zip(names, session.run(names, sample), strict=True))
            )


if __name__ == "__main__":
    main()
