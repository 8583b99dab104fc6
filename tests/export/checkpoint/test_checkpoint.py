"""Checkpoints as transformers writes them, and what reading them takes."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeglm.errors import DamagedFileError
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.checkpoints import ARCHITECTURES, DATA, HEADER, make, make_sharded, one, pack, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("tied", "shard_size"), [(False, "1GB"), (True, "40KB")])
def test_reads_what_transformers_saves(
    architecture: str, dtype: str, tied: bool, shard_size: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors")
    model = tiny_model(architecture, tied=tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.architecture == architecture
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) is tied
    names = set()
    for file in files:
        with safetensors.safe_open(file, "pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118 (not a mapping)
                names.add(name)
                expected = theirs.get_tensor(name).float().numpy()
                rows = checkpoint.rows(name)
                assert np.array_equal(rows, expected)
                assert rows.dtype == np.float32
                assert rows.flags.c_contiguous
                assert np.array_equal(checkpoint.rows(name, 1, 3), expected[1:3])
    assert checkpoint.tensors.keys() == names
    assert checkpoint.total_bytes == sum(t.nbytes for t in checkpoint.tensors.values())
    assert checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(file.stat().st_size for file in files) - checkpoint.total_bytes < 20_000


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_every_16_bit_pattern_is_widened_exactly(dtype: str, torch_dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    data = np.arange(65536, dtype=np.uint16)
    header = {"w": {"dtype": dtype, "shape": [65536], "data_offsets": [0, 131072]}}
    rows = Checkpoint.open(make(tmp_path, pack(header, data.tobytes()))).rows("w")
    expected = torch.from_numpy(data.view(np.int16)).view(getattr(torch, torch_dtype)).float().numpy()
    assert np.array_equal(rows, expected, equal_nan=True)
    assert np.array_equal(np.signbit(rows), np.signbit(expected))


def test_rows_of_every_range(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, pack(HEADER)))
    whole = np.frombuffer(DATA[:24], np.float32).reshape(2, 3)
    assert np.array_equal(checkpoint.rows("a.weight"), whole)
    assert np.array_equal(checkpoint.rows("a.weight", 1), whole[1:])
    assert checkpoint.rows("a.weight", 2).shape == (0, 3)
    assert checkpoint.read_bytes("b.weight", 1, 3).tobytes() == DATA[28:36]
    for start, stop in [(-1, None), (0, 3), (2, 1), (3, None)]:
        with pytest.raises(IndexError, match=r"a\.weight has 2 rows"):
            checkpoint.rows("a.weight", start, stop)


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    header = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "BF16", "shape": [0, 1 << 50], "data_offsets": [0, 0]},
        "last": {"dtype": "F16", "shape": [3, 0], "data_offsets": [4, 4]},
    }
    checkpoint = Checkpoint.open(make(tmp_path, pack(header, struct.pack("<f", 2.5))))
    assert checkpoint.rows("scalar").tolist() == [2.5]
    assert checkpoint.rows("empty").shape == (0, 1 << 50)
    assert checkpoint.rows("last", 1).shape == (2, 0)


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    make_sharded(tmp_path, {"x": "a.safetensors"}, a=one("x"))
    make(tmp_path, pack(HEADER))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.weights == tmp_path / "model.safetensors"
    assert checkpoint.tensors.keys() == {"a.weight", "b.weight"}


def test_links_out_of_the_folder_are_followed_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    make(blobs, pack(HEADER))
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../blobs/{name}")
    assert Checkpoint.open(snapshot).rows("a.weight").shape == (2, 3)


def test_sidecars(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, pack(HEADER)))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").mkdir()
    assert checkpoint.sidecar("tokenizer.json") == tmp_path / "tokenizer.json"
    assert (
        checkpoint.sidecar("chat_template.jinja") == tmp_path / "chat_template.jinja"
    )  # and refused by whoever reads it
    assert checkpoint.sidecar("preprocessor_config.json") is None


def test_header_only_files_are_enough_for_a_plan(tmp_path: Path) -> None:
    make(tmp_path, pack(HEADER, b""))
    checkpoint = Checkpoint.open(tmp_path, headers_only=True)
    assert checkpoint.total_bytes == 40
    with pytest.raises(DamagedFileError, match=r"model\.safetensors: b\.weight: is cut off by the end of the file"):
        checkpoint.rows("b.weight")


def test_thousands_of_reads_from_threads_leave_no_descriptor_open(tmp_path: Path) -> None:
    values = np.arange(40_000, dtype=np.float32).reshape(400, 100)
    header = {"w": {"dtype": "F32", "shape": [400, 100], "data_offsets": [0, values.nbytes]}}
    checkpoint = Checkpoint.open(make(tmp_path, pack(header, values.tobytes())))
    before = len(os.listdir("/proc/self/fd"))
    right: list[bool] = []

    def read() -> None:
        right.extend(np.array_equal(checkpoint.rows("w", i, i + 1), values[i : i + 1]) for i in range(400))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 1600
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: a collector closes what earlier tests left


def cached_pages(path: Path) -> int:
    """Return how many of a file's pages the page cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(view)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), pages) == 0
        del start
        return sum(page & 1 for page in pages)


def test_what_was_read_leaves_the_page_cache(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [1024, 1024], "data_offsets": [0, 4 << 20]}}
    file = make(tmp_path, pack(header, bytes(4 << 20))) / "model.safetensors"
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.read_bytes()
    assert cached_pages(file) > 1000
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(file) > 100:
        pytest.skip("this file system keeps its pages")
    file.read_bytes()
    checkpoint = Checkpoint.open(tmp_path)
    for start in range(0, 1024, 256):
        checkpoint.rows("w", start, start + 256)
    assert cached_pages(file) < 20


READ_BY_ROWS = """
import sys
from pathlib import Path
from edgeglm.export.checkpoint.reader import Checkpoint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

checkpoint, before, read = Checkpoint.open(Path(sys.argv[1])), peak(), 0
for start in range(0, 150_000, 5_000):
    read += checkpoint.rows("w", start, start + 5_000).nbytes
print(read, peak() - before, *(name for name in ("torch", "transformers", "safetensors") if name in sys.modules))
"""


@pytest.mark.slow
def test_a_file_read_by_rows_takes_the_memory_of_a_chunk(tmp_path: Path) -> None:
    header = {"w": {"dtype": "BF16", "shape": [150_000, 1000], "data_offsets": [0, 300_000_000]}}
    make(tmp_path, pack(header, b""))
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size + 300_000_000)
    command = [sys.executable, "-c", READ_BY_ROWS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read, megabytes, *libraries = done.stdout.split()
    assert int(read) == 600_000_000
    # A chunk is 10 MB as stored and 20 MB as float32; the last one is alive while the next is read.
    assert int(megabytes) < 60
    assert libraries == []
