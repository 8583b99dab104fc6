"""Files that the user names: whatever they are, they are read in bounded time and memory, or are one line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeglm.devices.loader import load_profile
from edgeglm.errors import EdgeglmError, UsageError
from edgeglm.files import opened, read_bytes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.foreign.read import arrays
from edgeglm.export.foreign.read.graph_file import Input, graph_bytes, read_graph
from edgeglm.export.samples import screenshots, windows
from edgeglm.runtimes.inputs.image import MAX_PIXELS

INPUTS = [Input("x", np.dtype(np.float32), (2, 2))]


def text(file: Path) -> object:
    return windows.cut_windows(windows.read_tokenizer(DEMO / "tokenizer.json"), file, 256, 4096, None)


def checkpoint(file: Path) -> object:
    folder = file.parent / f"checkpoint {file.name}"
    folder.mkdir()
    (folder / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    (folder / "model.safetensors").symlink_to(file)
    return Checkpoint.open(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "samples": lambda file: list(screenshots.read_samples(file)),
    "text": text,
    "graph": lambda file: read_graph(file, file.parent),
    "arrays": lambda file: arrays.SampleFiles(file, INPUTS, finite=True),
    "checkpoint": checkpoint,
    "profile": lambda file: load_profile(str(file)),
}


def strange(folder: Path) -> Iterator[Path]:
    """What is no file, never ends, or is far larger than memory."""
    for name in ("fifo", "device", "folder", "sparse", "nothing"):
        file = folder / f"{name}.toml"
        if name == "fifo":
            os.mkfifo(file)
        elif name == "device":
            file.symlink_to("/dev/zero")
        elif name == "folder":
            file.mkdir()
        elif name == "sparse":
            with file.open("wb") as stream:
                stream.truncate(1 << 40)
        yield file


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_or_never_ends_is_one_line_at_once(tmp_path: Path, reader: str) -> None:
    """In bounded memory: this process may not grow by more than a GiB meanwhile."""
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before + (1 << 30), hard))
    try:
        for file in strange(tmp_path):
            with pytest.raises(EdgeglmError) as caught:
                READERS[reader](file)
            assert caught.value.exit_code in (2, 6), file
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_size_of_a_graph_that_is_none_is_none(tmp_path: Path) -> None:
    for file in strange(tmp_path):
        assert graph_bytes(file) == 0


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    assert read_bytes(file, "give another", 5) == b"12345"
    with pytest.raises(UsageError, match="has 5B, and up to 4B are read; give another"):
        read_bytes(file, "give another", 4)
    with opened(file, "give another") as stream:
        assert stream.read() == b"12345"


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_weights_beside_a_graph_that_never_end_are_one_line(tmp_path: Path, kind: str) -> None:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([], "g", [], [value], [tensor])
    onnx.save(
        onnx.helper.make_model(graph), tmp_path / "g.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    (tmp_path / "w").unlink()
    if kind == "fifo":
        os.mkfifo(tmp_path / "w")
    else:
        (tmp_path / "w").symlink_to("/dev/zero")
    with pytest.raises(EdgeglmError, match="its weights are not there: it is not a regular file"):
        read_graph(tmp_path / "g.onnx", tmp_path)


def test_a_line_without_end_is_read_in_parts(tmp_path: Path) -> None:
    """A word is not cut, and what is cut is tokenized as the parts are."""
    tokenizer = windows.read_tokenizer(DEMO / "tokenizer.json")
    file = tmp_path / "line.txt"
    file.write_text("Open the settings of this phone now " * 20_000)
    found = windows.cut_windows(tokenizer, file, 64, 4096, None)
    whole = tokenizer.encode(file.read_text(), add_special_tokens=False).ids
    assert found.sequences.reshape(-1).tolist() == whole[: found.sequences.size]
    assert len(whole) - found.sequences.size < 64
    file.write_text("无" * 300_032)
    assert windows.cut_windows(tokenizer, file, 64, 4096, None).sequences.size == 300_032


def test_a_long_text_is_read_as_far_as_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_BYTES", 10_000)
    tokenizer = windows.read_tokenizer(DEMO / "tokenizer.json")
    (tmp_path / "long.txt").write_text("Open the settings\n" * 1000)
    with pytest.raises(UsageError, match=r"long\.txt: has .*, and up to .* are read; .*--limit"):
        windows.cut_windows(tokenizer, tmp_path / "long.txt", 64, 4096, None)
    assert len(windows.cut_windows(tokenizer, tmp_path / "long.txt", 64, 4096, 8).sequences) == 8


def test_arrays_that_unpack_to_more_than_memory_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 19))
    with pytest.raises(UsageError, match=r"bomb\.npz: takes 4MiB, and 1MiB are read"):
        arrays.SampleFiles(tmp_path / "bomb.npz", INPUTS, finite=True)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }".ljust(117) + b"\n"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UsageError, match=r"lie\.npz: (has an array that is larger than memory|is no \.npz file)"):
        arrays.SampleFiles(tmp_path / "lie.npz", INPUTS, finite=True)


def test_samples_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.full((2, 2), number, np.float32))
    monkeypatch.setattr(arrays, "MAX_BYTES", 200)  # each has a header and 16 bytes
    samples = arrays.SampleFiles(tmp_path, INPUTS, finite=True)
    assert [int(sample["x"][0, 0]) for sample in samples] == [0, 1, 2]
    assert [int(sample["x"][0, 0]) for sample in samples[1:]] == [1, 2]
    monkeypatch.setattr(arrays, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match=r"0\.npz: takes"):
        arrays.SampleFiles(tmp_path, INPUTS, finite=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_a_picture_of_a_sample_has_no_more_pixels_than_the_runner_takes(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    data = zlib.compress(bytes((3 * side + 1) * side))
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(picture)
    content = [{"type": "image_url", "image_url": {"url": "bomb.png"}}, {"type": "text", "text": "x"}]
    record = {"messages": [{"role": "user", "content": content}], "target": 'finish(message="x")'}
    (tmp_path / "s.jsonl").write_text(json.dumps(record))
    with pytest.raises(EdgeglmError, match=r"s\.jsonl:1: its image cannot be read: it has more pixels than"):
        list(screenshots.read_samples(tmp_path / "s.jsonl"))


def with_tensors(folder: Path, count: int) -> Path:
    """The demo with more tensors, all of them empty."""
    folder.mkdir()
    for file in DEMO.iterdir():
        (folder / file.name).symlink_to(file)
    data = (DEMO / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    header |= {f"x{index}": {"dtype": "F16", "shape": [0], "data_offsets": [end, end]} for index in range(count)}
    made = json.dumps(header).encode()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(len(made).to_bytes(8, "little") + made + data[8 + length :])
    return folder


def test_a_header_of_many_megabytes_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    code = (
        "import resource, sys, pathlib\nfrom edgeglm.errors import EdgeglmError\n"
        "from edgeglm.export.checkpoint.reader import Checkpoint\nstart = resource.getrusage(0).ru_maxrss\n"
        "try: Checkpoint.open(pathlib.Path(sys.argv[1]))\nexcept EdgeglmError as error: print(error)\n"
        "print(resource.getrusage(0).ru_maxrss - start)"
    )
    command = [sys.executable, "-c", code, str(with_tensors(tmp_path / "c", 150_000))]
    said, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    assert "has a header of" in said
    assert int(grown) < 20_000  # KiB
