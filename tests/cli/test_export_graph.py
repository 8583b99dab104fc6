"""``edgeglm export model.onnx``: graphs of the user's to bundles, and one line for all that is wrong with one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from edgeglm.bundle import read_sealed
from edgeglm.manifest import GraphManifest
from edgeglm.runtimes.engines.ort.options import open_session
from tests.cli.commands import check_failure, left_of, run
from tests.export.user_graphs import FEATURES, IMAGE, LENGTH, write_cnn, write_lstm, write_samples

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs and their samples, by name."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, write in (("cnn", write_cnn), ("lstm", write_lstm)):
        write(folder / f"{name}.onnx")
        write(folder / f"{name}-dynamic.onnx", dynamic=True)
    write_samples(folder / "images", "image", (1, *IMAGE), 16)
    write_samples(folder / "sequences", "sequence", (LENGTH, 1, FEATURES), 16)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


@pytest.mark.parametrize(
    ("graph", "options", "precision", "limit"),
    [
        ("cnn", "--target cpu --precision fp32", "fp32", 1e-6),
        ("cnn", "--target cpu --precision fp16", "fp16", 2e-3),
        ("cnn", "--target cpu --calibration images", "int8", 0.05),
        ("cnn-dynamic", "--target cpu --precision fp16", "fp16", 2e-3),
        ("cnn-dynamic", "--target qcs6490 --calibration images", "int8", 0.05),
        ("lstm", "--target cpu --calibration sequences", "int8", 0.1),
        ("lstm-dynamic", "--target cpu --precision fp32", "fp32", 1e-6),
    ],
)
def test_a_graph_becomes_a_bundle_that_computes_the_same(
    graph: str, options: str, precision: str, limit: float, files: Path, target: Path, capsys: Capture
) -> None:
    words = [str(files / word) if (files / word).is_dir() else word for word in options.split()]
    status, out, err = run(capsys, "export", files / f"{graph}.onnx", *words, "-o", target, "--json")
    assert status == 0, err
    result = json.loads(out)
    (module,) = result["modules"]
    assert (module["name"], module["precision"]) == ("graph", precision)
    assert 0 <= module["max_relative_error"] < limit
    assert left_of(target) == ["bundle"]
    sample = dict(np.load(next((files / ("images" if "cnn" in graph else "sequences")).glob("*.npz"))))
    want, got = (
        open_session(path, 1).run(None, sample)[0] for path in (files / f"{graph}.onnx", target / "graph/model.onnx")
    )
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 2 * limit


def test_inspect_and_verify_read_the_bundle_and_others_say_what_it_is(
    files: Path, target: Path, capsys: Capture
) -> None:
    assert run(capsys, "export", files / "cnn.onnx", "--target", "cpu", "--precision", "fp16", "-o", target)[0] == 0
    manifest = read_sealed(target)
    assert isinstance(manifest, GraphManifest)
    assert (manifest.graph.name, manifest.graph.opset) == ("cnn", 17)
    status, out, _ = run(capsys, "inspect", target)
    assert (status, out.splitlines()[0]) == (0, "graph   cnn (ONNX, of opset 17)")
    assert run(capsys, "verify", target)[0] == 0
    for command in (["validate"], ["build"], ["run", "--prompt", "x"]):
        check_failure(run(capsys, *command, target), 3, "holds the graph cnn, and no language model; edgeglm inspect")
    (target / "graph/model.onnx").write_bytes(b"")
    assert run(capsys, "verify", target)[0] == 6


def test_the_same_graph_gives_the_same_bytes(files: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("a", "b"):
        options = ("--target", "cpu", "--calibration", files / "images", "-o", tmp_path / name)
        assert run(capsys, "export", files / "cnn.onnx", *options)[0] == 0
    for file in ("manifest.json", "graph/model.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("options", ["", "--precision int8 --calibration"])
def test_for_a_jetson_tensorrt_for_rtx_builds_it(options: str, files: Path, target: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeglm[tensorrt]'")
    words = [*options.split(), *([files / "images"] if options else [])]
    status, out, err = run(capsys, "export", files / "cnn.onnx", "--target", "jetson", "-o", target, "--json", *words)
    assert status == 0, err
    assert json.loads(out)["proof"].startswith("built for SM86 by tensorrt-rtx ")
    assert json.loads(out)["proof"].endswith("proven, not executed")
    if options:
        graph = onnx.load(target / "graph/model.onnx").graph
        zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
        points = [onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name in zeros]
        assert {(array.dtype.name, int(np.abs(array).max())) for array in points} == {("int8", 0)}


def test_what_was_fixed_is_said(files: Path, target: Path, capsys: Capture) -> None:
    options = ("--target", "qcs6490", "--calibration", files / "images", "-o", target)
    status, _, err = run(capsys, "export", files / "cnn.onnx", *options)
    assert status == 0
    assert "(Erf): QNN HTP v68 does not have the operator; fixed: GELU as one operator\n" in err


def test_a_variable_length_lstm_is_refused_on_qcs6490(files: Path, target: Path, capsys: Capture) -> None:
    options = ("--target", "qcs6490", "--calibration", files / "sequences", "-o", target)
    refused = "/lstm/LSTM (LSTM): QNN HTP v68 does not have the operator; take it out of the model"
    # Nor is it asked for samples that would not help.
    for given in (options, ("--target", "qcs6490", "-o", target)):
        status, out, err = run(capsys, "export", files / "lstm-dynamic.onnx", *given)
        assert (status, out, refused in err) == (3, "", True), err
    assert left_of(target) == []


def samples(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "sample.npz", **arrays)  # type: ignore[arg-type]
    return folder / "sample.npz"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"image": zeros(1, *IMAGE) * np.nan}, "image has values that are not finite"),
        ({"image": zeros(1, 3, 8, 8)}, r"image has the shape \[1, 3, 8, 8\], and the graph takes \[1, 3, 16, 16\]"),
        ({"picture": zeros(1, *IMAGE)}, "has no array image; give one array for each of image"),
        ({"image": zeros(1, *IMAGE), "x": zeros(1)}, "has an array x, which is no input of the graph"),
        ({"image": zeros(1, *IMAGE).astype(np.int64)}, "image is int64, and the graph takes float32"),
    ],
)
def test_samples_that_do_not_fit_are_one_line(
    arrays: dict[str, np.ndarray],
    why: str,
    files: Path,
    tmp_path: Path,
    target: Path,
    capsys: Capture,
) -> None:
    options = ("--target", "cpu", "--calibration", samples(tmp_path, **arrays), "-o", target)
    check_failure(run(capsys, "export", files / "cnn.onnx", *options), 2, why)
    assert left_of(target) == []


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (
            "",
            2,
            "--precision auto: is int8 for cpu, which takes ranges of activations; give .* or choose --precision fp32",
        ),
        ("--precision int8", 2, "--precision int8: takes ranges of activations; give a .npz file"),
        ("--precision int2", 2, "int2: is not available for ONNX graphs"),
        ("--precision fp32 --context 5", 2, "--context: is only for checkpoints"),
        ("--precision fp32 --accuracy-drop 2%", 2, "--accuracy-drop: is only for checkpoints"),
        ("--precision fp32 --max-error=", 2, "--max-error '': is not a percentage"),
        ("--precision fp32 --max-error 5", 2, "--max-error 5: is more than 100%; write 5%"),
        ("--precision fp32 --max-ram=", 2, "--max-ram '': is not a size"),
        ("--precision fp32 --max-ram 100MiB", 5, "100MiB is too little for .*; it takes at least"),
        ("--precision fp16 --target qcs6490", 3, r"qcs6490 computes no fp16 \(limits.npu_float\)"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: str, status: int, why: str, files: Path, target: Path, capsys: Capture
) -> None:
    done = run(capsys, "export", files / "cnn.onnx", "--target", "cpu", "-o", target, *options.split())
    check_failure(done, status, why)
    assert left_of(target) == []


def test_sizes_that_nothing_fixes_are_one_line(files: Path, target: Path, capsys: Capture) -> None:
    for name, why in (("jetson", "TensorRT builds for sizes that are known"), ("qcs6490", "takes ranges")):
        done = run(capsys, "export", files / "cnn-dynamic.onnx", "--target", name, "-o", target)
        check_failure(done, 3 if name == "jetson" else 2, why)
    assert left_of(target) == []


def test_samples_that_the_graph_does_not_take_are_one_line_in_int8(
    tmp_path: Path, target: Path, capsys: Capture
) -> None:
    words, weights = (np.ones((8, 64), np.float32), np.ones((64, 64), np.float32))
    nodes = [make_node("Gather", ["words", "ids"], ["rows"]), make_node("MatMul", ["rows", "weights"], ["y"])]
    ids, y = make_tensor_value_info("ids", TensorProto.INT64, [2]), make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [from_array(words, "words"), from_array(weights, "weights")]
    model = make_model(make_graph(nodes, "words", [ids], [y], constants), opset_imports=[make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "words.onnx")
    options = ("--target", "cpu", "--calibration", samples(tmp_path, ids=np.array([1, 9])), "-o", target)
    done = run(capsys, "export", tmp_path / "words.onnx", "--precision", "int8", *options)
    check_failure(done, 3, "words.onnx: ONNX Runtime cannot run it on the samples.*; give samples that it takes")


def test_a_pointer_of_git_lfs_is_named_as_that(files: Path, tmp_path: Path, target: Path, capsys: Capture) -> None:
    pointer, graph = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", tmp_path / "whole.onnx"
    data = onnx.load(files / "cnn.onnx")
    onnx.save(data, graph, save_as_external_data=True, location="weights.bin", size_threshold=10)
    for name in ("weights.bin", "graph.onnx", "program.pt2", "sample.npz"):
        (tmp_path / name).write_bytes(pointer)
    options = ("--target", "cpu", "--precision", "fp32", "-o", target)
    sample = ("--calibration", tmp_path / "sample.npz")
    for name, given in (
        ("weights.bin", [graph]),
        ("graph.onnx", [tmp_path / "graph.onnx"]),
        ("program.pt2", [tmp_path / "program.pt2"]),
        ("sample.npz", [files / "cnn.onnx", *sample]),
    ):
        check_failure(run(capsys, "export", *given, *options), 6, f"{name}: is a Git LFS pointer.*; run git lfs pull")
    assert left_of(target) == []


def test_a_file_that_is_no_whole_graph_is_one_line(files: Path, tmp_path: Path, target: Path, capsys: Capture) -> None:
    data = (files / "cnn.onnx").read_bytes()
    model = onnx.load_from_string(data)
    external, custom = tmp_path / "external.onnx", tmp_path / "custom.onnx"
    onnx.save(model, external, save_as_external_data=True, location="gone.bin", size_threshold=10)
    os.remove(tmp_path / "gone.bin")
    model = onnx.load_from_string(data)
    model.graph.node[0].op_type = "Twirl"
    onnx.save(model, custom)
    cut, text = tmp_path / "cut.onnx", tmp_path / "text.onnx"
    cut.write_bytes(data[: len(data) // 2])
    text.write_text("hello")
    for file, status, why in (
        (tmp_path / "missing.onnx", 2, "cannot be read: No such file"),
        (text, 2, "is not an ONNX file"),
        (cut, 6, "is cut off or damaged"),
        (external, 6, "gone.bin.*; export it again, with its external data beside it"),
        (custom, 3, r"\(Twirl\): ONNX Runtime 1.31 does not have the operator"),
    ):
        done = run(capsys, "export", file, "--target", "cpu", "--precision", "fp32", "-o", target)
        check_failure(done, status, why)
    assert left_of(target) == []


@pytest.mark.parametrize(
    ("options", "precisions"),
    [
        ("--target cpu", ["int8", "fp32", "fp16"]),
        ("--target cpu --precision fp16", ["fp16", "fp32", "int8"]),
        ("--target qcs6490 --precision a16w8", ["a16w8", "int8"]),
    ],
)
def test_a_plan_has_a_row_for_each_precision_the_chosen_one_first(
    options: str, precisions: list[str], files: Path, capsys: Capture
) -> None:
    status, out, err = run(capsys, "plan", files / "cnn.onnx", *options.split())
    assert (status, err) == (0, "")
    rows = out.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in rows] == ["PRECISION", *precisions]
