"""Scales that move between weights: found in every family's graph, exact, and chosen where they help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np

from edgeglm.devices.loader import load_profile
from edgeglm.engines import Dialect
from edgeglm.export.calibrate.attention_heads import find_heads
from edgeglm.export.calibrate.calibrator import FEEDBACK, MOST, observe
from edgeglm.export.calibrate.equalize import Pair, choose_factor, find_pairs
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.graph.assemble import segments, stack_of
from edgeglm.export.predict.learning import feedback_bytes
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, Request
from edgeglm.export.prove.probes import Prompt, prompt_inputs
from edgeglm.export.prove.reference import OriginalWeights, Segment
from edgeglm.export.prove.values import feeds, passed_on, relative_error
from edgeglm.export.quantize.rounding import Floats
from edgeglm.export.quantize.schemes import Int4, Int8, Int8Static, Scheme
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DATA
from edgeglm.roles import DECODER


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(open_export(Request(DEMO, "demo", load_profile("cpu"), "int4")))


def pairs_of(prepared: Prepared, module: str, part: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    graph = next(model for name, model in segments(stack_of(module, prepared.probe), "portable") if name == part)  # type: ignore[arg-type]
    return {
        tuple(name.partition("0.")[2] or name for name in pair.readers): tuple(
            f"{maker.tensor.partition('0.')[2] or maker.tensor}[{maker.start}:{maker.stop}]" for maker in pair.makers
        )
        for pair in find_pairs(graph.graph)
    }


def test_sandwich_norms_and_a_fused_gate_are_told_apart(prepared: Prepared) -> None:
    """A norm before a residual sum has no matrix behind it; the half of gate_up that is the gate is no factor's."""
    attention = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
    assert pairs_of(prepared, "decoder", "layer.0") == {
        attention: ("input_layernorm.weight[0:256]",),
        ("self_attn.o_proj.weight",): ("self_attn.v_proj.weight[0:64]", "self_attn.v_proj.bias[0:64]"),
        ("mlp.gate_up_proj.weight",): ("post_attention_layernorm.weight[0:256]",),
        ("mlp.down_proj.weight",): ("mlp.gate_up_proj.weight[640:1280]",),
    }
    assert pairs_of(prepared, "decoder", "back") == {("lm_head.weight",): ("model.language_model.norm.weight[0:256]",)}
    assert pairs_of(prepared, "vision", "layer.0") == {
        ("attn.qkv.weight",): ("norm1.weight[0:160]",),
        ("attn.proj.weight",): ("attn.qkv.weight[320:480]",),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"): ("norm2.weight[0:160]",),
        ("mlp.down_proj.weight",): ("mlp.up_proj.weight[0:256]",),
    }
    assert pairs_of(prepared, "vision", "back") == {
        ("model.visual.merger.down_proj.weight",): ("model.visual.merger.up_proj.weight[0:512]",)
    }


def test_one_value_of_a_block_is_what_attention_mixes(prepared: Prepared) -> None:
    for module, size, start, stop in (("decoder", 32, 0, 64), ("vision", 32, 320, 480)):
        parts = segments(stack_of(module, prepared.probe), "portable")  # type: ignore[arg-type]
        graph = next(model for name, model in parts if name == "layer.0").graph
        known = filter(None, (find_heads(node) for node in graph if node.op_type == "Reshape"))
        assert {(heads.size, heads.start, heads.stop) for heads in known} == {(size, start, stop)}


class Forced:
    """The original with factors in every pair: rows divided, columns multiplied."""

    def __init__(self, prepared: Prepared) -> None:
        self.source, self.original = prepared.checkpoint, OriginalWeights(prepared.checkpoint)
        self.columns: dict[str, Floats] = {}
        self.rows: dict[str, Floats] = {}
        random = np.random.default_rng(0)
        for _, model in segments(stack_of(DECODER, prepared.probe), "portable"):
            for pair in find_pairs(model.graph):
                size = pair.makers[0].stop - pair.makers[0].start
                factor = np.exp2(random.integers(0, 7, size)).astype(np.float32)
                heads = np.repeat(factor.reshape(-1, 1, pair.size), pair.shared, axis=1)
                self.columns |= dict.fromkeys(pair.readers, heads.reshape(-1))
                for maker in pair.makers:
                    rows = self.rows.setdefault(maker.tensor, np.ones(self.source.find(maker.tensor).shape[0], "f4"))
                    rows[maker.start : maker.stop] = factor

    def product(self, x: Floats, weight: str) -> Floats:
        y = self.original.product(x * self.columns.get(weight, np.float32(1)), weight)
        return y / self.rows.get(weight, np.float32(1))

    def vector(self, name: str) -> Floats:
        return self.original.vector(name) / self.rows.get(name, np.float32(1))


def test_what_the_decoder_computes_does_not_change(prepared: Prepared) -> None:
    prompt = Prompt(list(range(40, 60)), np.zeros(20, bool))
    rows = np.concatenate(
        [prepared.checkpoint.rows(prepared.model.decoder.embedding, token, token + 1) for token in prompt.tokens]
    )
    forced, found = Forced(prepared), []
    assert len(forced.columns) == 4 * 6 + 1
    for weights in (OriginalWeights(prepared.checkpoint), forced):
        values = prompt_inputs(prepared, prompt, rows)
        for _, model in segments(stack_of(DECODER, prepared.probe), "portable"):
            values.update(passed_on(Segment(model, weights).run(feeds(model.graph.inputs, values))))
        found.append(values["logits"])
    assert relative_error(found[1], found[0]) < 1e-6


ONE = Pair((), ("w",))


class OneMatrix:
    """A source of one weight."""

    def __init__(self, weight: Floats) -> None:
        self.weight = weight

    def find(self, name: str) -> Floats:
        return self.weight

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        return self.weight[start:stop]


@pytest.mark.parametrize("scheme", [Int4(), Int8()])
@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_outlier_channels_move_into_the_weights(scheme: Scheme, dialect: Dialect) -> None:
    random = np.random.default_rng(5)
    tokens, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((256, 320), (600, 320)))
    loud = np.ones(320, np.float32)
    loud[random.permutation(320)[:60]] = 64
    tokens, weight = tokens * loud, weight / loud
    energy = np.square(tokens).mean(0)
    plain, best = choose_factor(ONE, tokens, energy, OneMatrix(weight), scheme, dialect)  # type: ignore[arg-type]
    even, _ = choose_factor(ONE, tokens / loud, energy / loud**2, OneMatrix(weight * loud), scheme, dialect)  # type: ignore[arg-type]
    assert plain.error > 1.5 * even.error
    assert best.error < 1.1 * even.error
    assert best.factor is not None
    assert np.array_equal(np.log2(best.factor), np.rint(np.log2(best.factor)))
    assert best.factor.min() == 1


def test_a_fixed_range_is_of_the_divided_inputs() -> None:
    random = np.random.default_rng(5)
    tokens, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((256, 64), (128, 64)))
    tokens[:, :4] *= 64
    energy = np.square(tokens).mean(0)
    plain, best = choose_factor(ONE, tokens, energy, OneMatrix(weight), Int8Static(), "ort")  # type: ignore[arg-type]
    assert best.error < 0.5 * plain.error
    assert plain.range_ is not None
    assert best.range_ is not None
    assert best.factor is not None
    assert best.range_[1] < plain.range_[1] / 4


def test_heads_that_share_values_share_a_factor() -> None:
    random = np.random.default_rng(6)
    tokens, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((256, 64), (128, 64)))
    tokens[:, 5] *= 64  # of the first of two heads of 32 channels
    pair = Pair((), ("w",), shared=2, size=32)
    _, best = choose_factor(pair, tokens, np.square(tokens).mean(0), OneMatrix(weight), Int8(), "ort")  # type: ignore[arg-type]
    assert best.factor is not None
    first, second = best.factor.reshape(2, 32)
    assert np.array_equal(first, second)
    assert first[5] > first[6]


def test_a_channel_that_was_never_seen_gets_a_bounded_factor() -> None:
    weight, tokens = np.ones((8, 64), np.float32), np.zeros((4, 64), np.float32)
    plain, best = choose_factor(ONE, tokens, np.zeros(64, np.float32), OneMatrix(weight), Int4(), "ort")  # type: ignore[arg-type]
    assert plain.error == best.error == 0
    assert best.factor is None
    tokens[:, 0] = 1e6
    _, best = choose_factor(ONE, tokens, np.square(tokens).mean(0), OneMatrix(weight), Int4(), "ort")  # type: ignore[arg-type]
    assert best.factor is None or best.factor.max() <= 2**20


def test_a_walk_learns_what_every_int4_matrix_needs(prepared: Prepared, tmp_path: Path) -> None:
    samples = list(read_samples(DATA / "calibration.jsonl", 1))
    _, learned = observe(prepared, samples, tmp_path)
    matrices = {job.stored.names[0] for module in prepared.modules[1:] for job in module.jobs if job.stored.columns > 1}
    assert {name for name in matrices if name not in learned.inputs} == {prepared.model.vision.position}  # type: ignore[union-attr]
    assert all(inputs.feedback for inputs in learned.inputs.values())
    q, k = (learned.inputs[f"model.language_model.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    assert q is k
    assert not learned.left
    assert (tmp_path / FEEDBACK).stat().st_size == feedback_bytes(prepared, MOST)
    (tmp_path / FEEDBACK).unlink()
    assert learned.divisors
    assert any(inputs.factor is not None for inputs in learned.inputs.values())
    # With less room and without equalization.
    plain = replace(prepared, opened=replace(prepared.opened, request=replace(prepared.request, equalizes=False)))
    _, learned = observe(plain, samples, tmp_path, 256)
    assert (tmp_path / FEEDBACK).stat().st_size == feedback_bytes(prepared, 256) < feedback_bytes(prepared, MOST)
    wide = learned.inputs["model.language_model.layers.0.mlp.down_proj.weight"]
    assert wide.feedback is None
    assert "model.language_model.layers.0.mlp.down_proj.weight" in learned.left
    (*_, note) = learned.notes()
    assert not learned.divisors
    assert all(inputs.factor is None for inputs in learned.inputs.values())
    assert (
        "no room to feed rounding errors back for the inputs of model.visual.patch_embed.proj.weight and 6 oth" in note
    )
