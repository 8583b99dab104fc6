"""A decoder in ONNX Runtime: its state, its logits, and graphs of an earlier form, in every form of graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")

from edgeglm.memory import current_rss
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.session import MAX_LAST
from edgeglm.runtimes.core.window import piece_for
from edgeglm.runtimes.engines.ort.engine import Decoder

CAPACITY, LENGTH, LONG, MANY = 64, 40, 600, 20_000
# What decoders of the ``ort`` dialect were exported as at first: one buffer that the engine itself fills.
EARLIER = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
decoder (float[1,sequence,32] hidden, float[1,1,capacity,16] past_key.0, float[1,1,capacity,16] past_value.0,
         int32[1] seqlens_k, int32[1] total_length)
  => (float[1,1,48] logits, float[1,1,capacity,16] present_key.0, float[1,1,capacity,16] present_value.0)
  <int64[1] start = {-1}, int64[1] end = {2147483647}, int64[1] axis = {1}>
{
  qkv = MatMul (hidden, projection)
  mixed, present_key.0, present_value.0 = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (
    qkv, , , past_key.0, past_value.0, seqlens_k, total_length)
  last = Slice (mixed, start, end, axis)
  logits = MatMul (last, head)
}
"""
Open = Callable[[], Decoder]


def earlier(folder: Path) -> Path:
    """Write a graph of the earlier form with random weights."""
    text = EARLIER.replace("key.0", "key_0").replace("value.0", "value_0")  # which the parser takes
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("projection", (32, 64)), ("head", (32, 48))):
        weights = random.standard_normal(shape, np.float32) / np.float32(6)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def exact_portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = pytest.importorskip("tests.runtimes.demo", reason="exports, which needs torch")
    folder: Path = demo.demo_bundle(tmp_path_factory.mktemp("portable") / "bundle", "jetson", "fp32")
    return folder


@pytest.fixture(params=["ort", "portable", "earlier"])
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "earlier":
        return lambda: Decoder(earlier(tmp_path), 1, CAPACITY)
    folder: Path = request.getfixturevalue("exact" if request.param == "ort" else "exact_portable")
    return lambda: Decoder(folder / "decoder/model.onnx", 1, CAPACITY)


@pytest.fixture
def decoder(open_: Open) -> Iterator[Decoder]:
    decoder = open_()
    yield decoder
    decoder.close()


def inputs(decoder: Decoder, count: int = LENGTH) -> tuple[NDArray[Any], NDArray[Any]]:
    width = next(value.shape[-1] for value in decoder.session.get_inputs() if value.name == "hidden")
    random = np.random.default_rng(count)
    positions = np.arange(count)[None, None] // np.array([1, 2, 3])[:, None, None]
    return random.standard_normal((1, count, width), np.float32), positions


def steps(decoder: Decoder, *lengths: int) -> NDArray[np.float32]:
    """Feed the next tokens in steps of these lengths; return the last step's logits."""
    hidden, positions = inputs(decoder)
    for length in lengths:
        part = slice(decoder.length, decoder.length + length)
        logits = decoder.step(hidden[:, part], positions[:, :, part])
    return logits


def close(got: NDArray[np.float32], want: NDArray[np.float32]) -> bool:
    return got.shape == want.shape and float(np.linalg.norm(got - want) / np.linalg.norm(want)) < 1e-5


@pytest.mark.parametrize("lengths", [(1,) * 9, (5, 1, 3), (8, 1)], ids=str)
def test_logits_do_not_depend_on_the_steps(decoder: Decoder, lengths: tuple[int, ...]) -> None:
    got = steps(decoder, *lengths)
    assert decoder.length == 9
    decoder.truncate(0)
    assert close(got, steps(decoder, 9))


def test_logits_of_the_last_tokens_are_those_of_single_steps(decoder: Decoder) -> None:
    hidden, positions = inputs(decoder)
    most = decoder.max_last
    assert most == (MAX_LAST if any(value.name == "logits_to_keep" for value in decoder.session.get_inputs()) else 1)
    want = [steps(decoder, 1) for _ in range(MAX_LAST + 2)]
    for last in sorted({1, most // 2 or 1, most}):
        decoder.truncate(2)
        got = decoder.step(hidden[:, 2 : MAX_LAST + 2], positions[:, :, 2 : MAX_LAST + 2], last)
        assert close(got, np.concatenate(want[-last:]))
    for last in (0, most + 1):
        with pytest.raises(ValueError, match=f"logits of {last} of 20 tokens"):
            decoder.step(hidden[:, 18:38], positions[:, :, 18:38], last)
    with pytest.raises(ValueError, match="logits of 2 of 1 tokens"):
        decoder.step(hidden[:, 18:19], positions[:, :, 18:19], 2)
    assert decoder.length == MAX_LAST + 2


def test_a_long_past_makes_pieces_of_a_step(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_()
    last = min(5, decoder.max_last)
    hidden, positions = inputs(decoder, 23)
    want = decoder.step(hidden, positions, last)
    run = decoder.session.run_with_iobinding
    monkeypatch.setattr("edgeglm.runtimes.core.window.LEAST_PIECE", 4)
    monkeypatch.setattr("edgeglm.runtimes.core.window.SCORES_BYTES", 0)
    passes = list[object]()

    def counted(binding: object, options: object) -> None:
        passes.append(binding)
        run(binding, options)

    monkeypatch.setattr(decoder.session, "run_with_iobinding", counted)
    decoder.truncate(0)
    assert close(decoder.step(hidden, positions, last), want)
    assert decoder.length == 23
    has_scores = any(value.name == "mask" for value in decoder.session.get_inputs())
    assert len(passes) == (-(-23 // max(4, last)) if has_scores else 1)
    decoder.close()


@pytest.mark.parametrize(
    ("heads", "tokens", "piece"), [(8, 256, 1024), (32, 256, 256), (32, 1024, 64), (32, 25480, 32)]
)
def test_pieces_keep_scores_within_8_mib(heads: int, tokens: int, piece: int) -> None:
    assert piece_for(heads, tokens) == piece
    assert 4 * heads * tokens * piece <= 8 << 20 or piece == 32


def test_what_is_forgotten_leaves_no_trace(decoder: Decoder) -> None:
    want = steps(decoder, 20, 10)
    steps(decoder, 3, 5)
    decoder.truncate(23)
    decoder.truncate(30)
    assert decoder.length == 23
    assert close(steps(decoder, 7), want)


def test_more_room_changes_nothing(decoder: Decoder) -> None:
    steps(decoder, 10)
    before = decoder.state_bytes
    assert before == CAPACITY * decoder.row_bytes
    decoder.reserve(CAPACITY * 2)
    decoder.reserve(CAPACITY)
    assert decoder.state_bytes == 2 * before
    got = steps(decoder, 10, 1)
    decoder.truncate(0)
    assert close(got, steps(decoder, 21))


def test_rows_go_on_in_another_session(open_: Open) -> None:
    first, second = open_(), open_()
    steps(first, 20)
    rows = first.read_rows(0, 20)
    assert rows.shape == (20, first.row_bytes)
    assert rows.dtype == np.uint8
    want, again = steps(first, 1), first.read_rows(5, 12)
    assert np.array_equal(again, rows[5:12])
    second.write_rows(0, rows[:5])
    assert second.length == 5
    second.write_rows(5, again)
    assert np.array_equal(second.read_rows(0, 12), rows[:12])
    assert close(steps(second, 8, 1), want)
    second.write_rows(3, rows[3:20])  # over what is there
    assert second.length == 20
    assert np.array_equal(steps(second, 1), want)
    first.close()
    second.close()


def test_at_rest_the_memory_of_long_steps_goes_back_and_the_state_stays(decoder: Decoder) -> None:
    has_scores = any(value.name == "mask" for value in decoder.session.get_inputs())
    want = steps(decoder, 20, 1)
    decoder.truncate(20)
    rest(decoder)
    before = current_rss()
    decoder.reserve(20 + LONG)
    decoder.step(*inputs(decoder, LONG))
    taken = current_rss() - before
    decoder.truncate(20)
    rest(decoder)
    left = current_rss() - before
    assert not has_scores or 4 * left < taken > 16 << 20
    assert decoder.length == 20
    assert np.array_equal(steps(decoder, 1), want)


def test_at_rest_the_memory_of_forgotten_tokens_goes_back(exact: Path) -> None:
    decoder = Decoder(exact / "decoder/model.onnx", 1, MANY)
    want = steps(decoder, 20, 1)
    rows = decoder.read_rows(0, 20)
    rest(decoder)
    before = current_rss()
    decoder.write_rows(20, np.ones((MANY - 20, decoder.row_bytes), np.uint8))
    taken = current_rss() - before
    decoder.truncate(20)
    rest(decoder)
    assert 4 * (current_rss() - before) < taken > 16 << 20
    assert np.array_equal(decoder.read_rows(0, 20), rows)
    assert np.array_equal(steps(decoder, 1), want)
    decoder.close()


def rest(decoder: Decoder) -> None:
    decoder.rest()
    trim()


def test_rows_that_do_not_fit_change_nothing(decoder: Decoder) -> None:
    want = steps(decoder, 9, 1)
    rows = decoder.read_rows(0, 10)
    for start, wrong in ((11, rows), (-1, rows), (CAPACITY - 9, rows), (0, rows[:, :-1])):
        with pytest.raises(ValueError, match="rows"):
            decoder.write_rows(start, wrong)
    for start, stop in ((0, 11), (-1, 3), (5, 4)):
        with pytest.raises(ValueError, match="of a state of 10"):
            decoder.read_rows(start, stop)
    assert decoder.length == 10
    decoder.truncate(9)
    assert np.array_equal(steps(decoder, 1), want)


def test_a_graph_of_the_earlier_form_attends_as_it_did(tmp_path: Path) -> None:
    decoder = Decoder(earlier(tmp_path), 1, CAPACITY)
    got = steps(decoder, 12, 1)
    hidden, _ = inputs(decoder)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    q, k, v = np.split(hidden[0, :13] @ weights["projection"], [32, 48], axis=1)
    scores = np.exp(q[-1].reshape(2, 16) @ k.T / 4)
    mixed = (scores / scores.sum(1, keepdims=True)) @ v
    assert close(got, mixed.reshape(1, 32) @ weights["head"])
    decoder.close()
