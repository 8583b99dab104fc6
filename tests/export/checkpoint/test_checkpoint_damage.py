"""Checkpoints as downloads damage them, and as an attacker would."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.checkpoints import ARCHITECTURES, DATA, HEADER, changed, make, make_sharded, one, pack, tiny_model

AGAIN = "; download it again"
NOT_JSON = "its header is not valid JSON"

DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ": is not a safetensors file" + AGAIN),
    "seven bytes": (b"\0" * 7, ": is not a safetensors file"),
    "no header": (struct.pack("<Q", 0), NOT_JSON),
    "huge header": (struct.pack("<Q", 1 << 63) + DATA, ": is not a safetensors file"),
    "header over the limit": (struct.pack("<Q", 100_000_001) + DATA, ": is not a safetensors file"),
    "web page": (b"<!DOCTYPE html><html>Not found</html>", ": is not a safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*; run git lfs pull"),
    "cut in the header": (pack(HEADER)[:100], r"ends within its header, at 100 of \d+ bytes"),
    "not utf-8": (pack(b'{"\xff": 1}'), NOT_JSON),
    "utf-16": (pack('{"a": 1}'.encode("utf-16")), NOT_JSON),
    "not json": (pack(b"{nope}"), NOT_JSON),
    "deep json": (pack(b"[" * 200_000), NOT_JSON),
    "long number": (pack(b'{"a": ' + b"9" * 9999 + b"}"), "model.safetensors: "),
    "a list": (pack([1]), "its header is not a JSON object"),
    "duplicate names": (pack(b'{"a": 1, "a": 2}'), "it has a twice"),
    "duplicate fields": (pack(b'{"a": {"dtype": "F16", "dtype": "F32"}}'), "it has dtype twice"),
    "metadata": (pack(HEADER | {"__metadata__": 3}), "its __metadata__ is not an object"),
    "entry is no object": (pack(HEADER | {"c": 3}), ": c: lacks a dtype"),
    "no dtype": (changed(dtype=None), r": b\.weight: lacks a dtype"),
    "no shape": (changed(shape=None), r": b\.weight: lacks a dtype"),
    "no offsets": (changed(data_offsets=None), r": b\.weight: lacks a dtype"),
    "one offset": (changed(data_offsets=[24]), r": b\.weight: lacks a dtype"),
    "offsets not a list": (changed(data_offsets="ab"), r": b\.weight: lacks a dtype"),
    "dtype is a number": (changed(dtype=3), r": b\.weight: lacks a dtype"),
    "dtype is prose": (changed(dtype="b\n16"), r": b\.weight: has dtype 'b\\n16'"),
    "shape is a number": (changed(shape=8), r": b\.weight: has shape 8"),
    "negative extent": (changed(shape=[-4, -2]), r"has shape \[-4, -2\]"),
    "fractional extent": (changed(shape=[4.0, 2]), r"has shape \[4\.0, 2\]"),
    "boolean extent": (changed(shape=[True, 8]), r"has shape \[True, 8\]"),
    "product beyond 64 bits": (changed(shape=[0, 1 << 40, 1 << 40]), "has shape"),
    "hundred axes": (changed(shape=[1] * 100), "has shape"),
    "negative offset": (changed(data_offsets=[-16, 0]), r"has data_offsets \[-16, 0\]"),
    "fractional offset": (changed(data_offsets=[24.0, 40.0]), r"has data_offsets \[24\.0, 40\.0\]"),
    "backward offsets": (changed(data_offsets=[40, 24]), r"has data_offsets \[40, 24\]"),
    "huge offsets": (changed(data_offsets=[1 << 70, (1 << 70) + 16]), "has data_offsets"),
    "size against shape": (changed(shape=[4, 3]), r"has 16 bytes where BF16 of shape \[4, 3\] takes 24"),
    "size against dtype": (changed(dtype="F32"), r"has 16 bytes where F32 of shape \[4, 2\] takes 32"),
    "overlap": (changed(data_offsets=[20, 36]), r": b\.weight: overlaps a\.weight"),
    "hole": (changed(data_offsets=[28, 44]), r": b\.weight: leaves 4 bytes unused after a\.weight"),
    "hole at the start": (
        pack({"c": {"dtype": "F16", "shape": [2], "data_offsets": [2, 6]}}),
        ": c: leaves 2 bytes unused after the header",
    ),
    "trailing bytes": (pack(HEADER, DATA + b"xyz"), r"model\.safetensors: has 3 bytes after its last tensor"),
    "cut in the last tensor": (pack(HEADER)[:-1], r": b\.weight: is cut off, the file ends at \d+ bytes"),
    "cut in the first tensor": (pack(HEADER)[:-30], r": a\.weight: is cut off"),
    "no data": (pack(HEADER, b""), r": a\.weight: is cut off"),
    "escape codes in a name": (pack({"\x1b[2J": 1}), r": '\\x1b\[2J': lacks"),
    "endless name": (pack({"a" * 10_000: 1}), r"aaa\.\.\.aaa"),
}


@pytest.mark.parametrize(("weights", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_are_one_line_that_names_them(weights: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=message) as caught:
        Checkpoint.open(make(tmp_path, weights))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/model.safetensors: ")
    assert line.isprintable()
    assert len(line) < 600 + len(str(tmp_path))


def test_the_undamaged_file_passes(tmp_path: Path) -> None:
    assert changed() == pack(HEADER)
    Checkpoint.open(make(tmp_path, pack(HEADER)))
    assert Checkpoint.open(make(tmp_path, pack(b"{}   ", b""))).tensors == {}


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors",
        "/a.safetensors",
        "sub/a.safetensors",
        "..",
        "",
        "a.bin",
        "a\0.safetensors",
        "\ud800",
        3,
        None,
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(shard: object, tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (tmp_path / "a.safetensors").write_bytes(one("x"))
    make_sharded(folder, {"x": shard}, a=one("x"))
    with pytest.raises(DamagedFileError, match=r"index\.json: x: lies in .* no safetensors file of that folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, r"index\.json: has no weight_map"),
        ({}, r"index\.json: has no weight_map"),
        (["x"], r"index\.json: has no weight_map"),
        ({"x": "a.safetensors", "y": "gone.safetensors"}, r"/gone\.safetensors: is missing"),
        ({"x": "a.safetensors", "z": "a.safetensors"}, r"/a\.safetensors: z: is not there, where the index has it"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, r"/a\.safetensors: y: is not there, where the index has it"),
        ({"x": "a.safetensors", "y": "b.safetensors", "w": "c.safetensors"}, r"/c\.safetensors: x: is in a\.saf.* too"),
    ],
)
def test_an_index_that_contradicts_its_shards(weight_map: object, message: str, tmp_path: Path) -> None:
    twice = {n: {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate("xw")}
    make_sharded(tmp_path, weight_map, a=one("x"), b=one("y"), c=pack(twice, bytes(8)))
    with pytest.raises(DamagedFileError, match=message):
        Checkpoint.open(tmp_path)


def test_a_weight_that_is_missing_or_foreign(tmp_path: Path) -> None:
    header = HEADER | {"ids": {"dtype": "I64", "shape": [1], "data_offsets": [40, 48]}}
    checkpoint = Checkpoint.open(make(tmp_path, pack(header, DATA + bytes(8))))
    assert checkpoint.find("a.weight").shape == (2, 3)
    assert checkpoint.foreign == {"ids": "I64"}
    assert checkpoint.total_bytes == 40
    with pytest.raises(DamagedFileError, match=r"/model\.safetensors: c: is missing, and the model needs it; "):
        checkpoint.find("c")
    reads: list[Callable[[], object]] = [lambda: checkpoint.find("ids"), lambda: checkpoint.rows("ids")]
    for read in reads:
        with pytest.raises(UnsupportedError, match="ids: is stored as I64; use a checkpoint in F32, F16, BF16"):
            read()
    with pytest.raises(DamagedFileError, match="c: is missing"):
        checkpoint.rows("c")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (b"", DamagedFileError, "its content is not valid JSON"),
        (b"[]", DamagedFileError, "its content is not a JSON object"),
        (b'{"a": 1, "a": 2}', DamagedFileError, "it has a twice"),
        (
            {"quantization_config": {"quant_method": "quark"}},
            UnsupportedError,
            "is quantized by 'quark', and edgeglm reads fp8.*; use the original, unquantized checkpoint",
        ),
        (
            {"text_config": {"quantization_config": {}}},
            UnsupportedError,
            "is quantized in a way that it does not name",
        ),
        (
            {"quantization_config": {"quant_method": 3}},
            DamagedFileError,
            "its quantization_config has 3 as quant_method",
        ),
    ],
)
def test_a_config_that_cannot_be_used(config: object, error: type[EdgeglmError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=rf"/config\.json: .*{message}"):
        Checkpoint.open(make(tmp_path, pack(HEADER), config))


def test_a_config_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    os.truncate(make(tmp_path, pack(HEADER)) / "config.json", 100_000_001)
    with pytest.raises(DamagedFileError, match=r"config\.json: has 100000001 bytes, too many for such a file"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("architectures", [None, [], "GlmForCausalLM", [3]])
def test_a_config_without_an_architecture(architectures: object, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, pack(HEADER), {"architectures": architectures}))
    with pytest.raises(UnsupportedError, match=r"config\.json: names no architecture"):
        checkpoint.check_architecture(ARCHITECTURES)


def test_another_architecture_is_named_with_those_supported(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, pack(HEADER)))
    assert checkpoint.check_architecture(ARCHITECTURES) == "Glm4ForCausalLM"
    with pytest.raises(UnsupportedError, match="Glm4ForCausalLM is not supported; use one of LlamaForCausalLM, Other"):
        checkpoint.check_architecture(["LlamaForCausalLM", "Other"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_conversion(name: str, tmp_path: Path) -> None:
    (make(tmp_path) / name).write_bytes(b"cos\nsystem\n")
    remedy = r"Glm4ForCausalLM\.from_pretrained\(DIR\)\.save_pretrained\(NEW_DIR\)"
    with pytest.raises(UnsupportedError, match=rf"/{name}: is a pickle.*; convert it with transformers: {remedy}"):
        Checkpoint.open(tmp_path)


def test_the_conversion_of_a_pickle_works(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = tiny_model("Glm4ForCausalLM")
    model.config.architectures = ["Glm4ForCausalLM"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="is a pickle"):
        Checkpoint.open(tmp_path)
    type(model).from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    weights = Checkpoint.open(tmp_path / "new").rows("lm_head.weight")
    assert np.array_equal(weights, model.lm_head.weight.detach().numpy())


def test_a_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    (make(tmp_path, pack(HEADER)) / "pytorch_model.bin").write_bytes(b"x")
    Checkpoint.open(tmp_path)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config").mkdir()
    make(tmp_path / "config")
    for name, why in {
        "gone": "does not exist; give a directory",
        "file": "is not a directory; give a directory",
        "file/below": "cannot be read: Not a directory",
        "nul\0": "cannot be read: embedded null",
        "a" * 300: "cannot be read: File name too long",
        "empty": r"holds no config\.json; give a directory",
        "config": r"holds neither model\.safetensors nor model\.safetensors\.index\.json; download the whole",
    }.items():
        with pytest.raises(UsageError, match=why):
            Checkpoint.open(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("replace", "why"),
    [
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (lambda path: os.symlink("gone", path), "is missing, or a link to nothing"),
    ],
    ids=["fifo", "directory", "broken link"],
)
def test_special_files_neither_block_nor_pass(
    name: str, replace: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    make(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    replace(tmp_path / name)
    with pytest.raises(DamagedFileError, match=f"/{name}: {why}"):
        Checkpoint.open(tmp_path)


def test_a_link_in_a_circle_is_a_usage_error(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(UsageError, match="cannot be read: Too many levels of symbolic links"):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_after_it_was_checked(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, pack(HEADER)))
    os.truncate(tmp_path / "model.safetensors", len(pack(HEADER)) - 1)
    assert checkpoint.rows("b.weight", 0, 3).shape == (3, 2)
    with pytest.raises(DamagedFileError, match=r"b\.weight: is cut off by the end of the file"):
        checkpoint.rows("b.weight")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    size=st.integers(0, 400) | st.none(),
)
def test_no_damage_raises_anything_but_our_errors(
    tmp_path: Path, flips: list[tuple[int, int]], size: int | None
) -> None:
    data = bytearray(pack(HEADER))
    for at, value in flips:
        data[at % len(data)] = value
    make(tmp_path, bytes(data[:size]))
    try:
        checkpoint = Checkpoint.open(tmp_path)
        for name, tensor in checkpoint.tensors.items():
            assert checkpoint.rows(name).shape == (tensor.shape or (1,))
    except EdgeglmError:
        pass
