"""What is removed of small checkpoints of every family, and what transformers makes of the rest."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.checkpoint.lineage import Lineage
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.choose import Chosen, Observer, best, choose_by_l1
from edgeglm.export.compress.cuts import cut_config, cut_tensors
from edgeglm.export.compress.moments import Moments
from edgeglm.export.compress.parts import Part, find_parts, units_of
from edgeglm.export.compress.rates import Left, block_parameters, parse_rates, plan_parts
from edgeglm.export.compress.write import write_checkpoint
from edgeglm.export.families.building import build_config
from edgeglm.export.families.registry import family_of
from tests.export.tiny import SHAPES, save

LINEAGE = Lineage(original="tiny", place=None, sha256="0" * 64, steps=())


def opened(family: str, folder: Path) -> tuple[Any, Checkpoint, list[Part]]:
    model = save(SHAPES[family], folder)
    checkpoint = Checkpoint.open(folder)
    return model, checkpoint, find_parts(checkpoint)


def written(folder: Path, checkpoint: Checkpoint, plan: dict[Part, Left], chosen: Chosen) -> Any:  # noqa: ANN401
    """Return what transformers loads of the smaller checkpoint, which must be all of it."""
    cuts = cut_tensors(checkpoint, plan, chosen)
    write_checkpoint(folder, cuts, checkpoint, cut_config(checkpoint.config, plan), LINEAGE, lambda done: None)
    Checkpoint.open(folder)
    model, said = getattr(transformers, checkpoint.architecture).from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert not said["mismatched_keys"]
    return model.eval()


def silence(model: Any, plan: dict[Part, Left], chosen: Chosen) -> Iterator[str]:  # noqa: ANN401
    """Give the columns of all units that go the weight zero in the original; yield which matrices had some."""
    state = model.state_dict()
    for part in plan:
        for units in units_of(part):
            if units.reader in chosen.units:
                mask = torch.ones(state[units.reader].shape[1], dtype=torch.bool)
                mask[torch.from_numpy(units.columns(chosen.units[units.reader]))] = False
                state[units.reader][:, mask] = 0
                yield units.reader


def logits(model: Any) -> Any:  # noqa: ANN401
    tokens = torch.arange(2, 26)[None]
    with torch.inference_mode():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("family", ["glm", "glm4", "glm4v"])
def test_what_is_left_computes_as_the_original_with_the_rest_silent(family: str, tmp_path: Path) -> None:
    model, checkpoint, parts = opened(family, tmp_path / "whole")
    heads = family != "glm4v"
    plan = plan_parts(parts, parse_rates("mlp=40%,heads=40%" if heads else "mlp=40%"), checkpoint)
    chosen = choose_by_l1(plan, checkpoint)
    smaller = written(tmp_path / "less", checkpoint, plan, chosen)
    text = smaller.config.get_text_config()
    assert text.intermediate_size == plan[parts[0]].width < 160
    assert text.num_key_value_heads == (plan[parts[0]].groups if heads else SHAPES[family].kv_heads)
    silenced = set(silence(model, plan, chosen))
    assert any(name.endswith("mlp.down_proj.weight") for name in silenced)
    assert any(name.endswith("o_proj.weight") for name in silenced) is (family == "glm4")  # 40% of two groups is none
    assert any("merger" in name for name in silenced) is (family == "glm4v")
    assert torch.allclose(logits(smaller), logits(model), atol=1e-4)


@pytest.mark.parametrize("family", ["glm4", "glm4v"])
def test_layers_are_left_out_and_renumbered(family: str, tmp_path: Path) -> None:
    model, checkpoint, parts = opened(family, tmp_path / "whole")
    plan = plan_parts(parts, parse_rates("layers=1"), checkpoint)
    chosen = Chosen(layers={part.module: [0, *range(2, part.layers)] for part in parts})
    smaller = written(tmp_path / "less", checkpoint, plan, chosen)
    assert smaller.config.get_text_config().num_hidden_layers == SHAPES[family].layers - 1
    stacks = model.model.language_model if family == "glm4v" else model.model
    del stacks.layers[1]
    for index, layer in enumerate(stacks.layers):
        layer.self_attn.layer_idx = index
    assert torch.allclose(logits(smaller), logits(model), atol=1e-5)
    if family == "glm4v":
        assert smaller.config.vision_config.depth == 1


@pytest.mark.parametrize("family", SHAPES)
def test_config_and_headers_say_of_stacks_what_transformers_reads(family: str, tmp_path: Path) -> None:
    _, checkpoint, (text, *towers) = opened(family, tmp_path)
    model = family_of(checkpoint.config).describe(build_config(checkpoint.config), SHAPES[family].grid)
    decoder, free = model.decoder, "glm4v" not in family
    assert (text.blocks, text.layers, text.width) == (decoder.blocks, decoder.layers, decoder.intermediate)
    heads = (decoder.kv_heads, decoder.heads // decoder.kv_heads, decoder.head_dim)
    assert (text.groups, text.heads, text.head_dim) == (heads if free else (0, 0, 0))
    found = {tower.module: (tower.blocks, tower.layers) for tower in towers}
    assert found == {name: (encoder.blocks, encoder.layers) for name, encoder in model.encoders.items()}


def test_layers_that_a_config_leaves_out_are_those_of_the_weights(tmp_path: Path) -> None:
    _, checkpoint, _ = opened("glm4v", tmp_path)
    config = {**checkpoint.config, "text_config": {**checkpoint.config["text_config"]}}
    del config["text_config"]["num_hidden_layers"]
    decoder, _ = find_parts(replace(checkpoint, config=config))
    assert decoder.layers == SHAPES["glm4v"].layers


def test_a_share_is_one_of_all_blocks_and_the_decoder_makes_up_for_a_tower(tmp_path: Path) -> None:
    _, checkpoint, parts = opened("glm4v", tmp_path)
    plan = plan_parts(parts, parse_rates("25%"), checkpoint)
    decoder, tower = parts
    assert plan[tower].layers == tower.layers  # 25% of two is none
    before = sum(part.layers * block_parameters(part, checkpoint) for part in parts)
    cuts = cut_tensors(checkpoint, plan, choose_by_l1(plan, checkpoint))
    stacks = tuple(part.blocks.partition("{")[0] for part in parts)
    after = sum(int(np.prod(cut.shape)) for cut in cuts if cut.name.startswith(stacks))
    assert 0.25 <= 1 - after / before < 0.4
    assert plan[decoder].width % 32 == 0


def test_the_least_columns_go_by_l1(tmp_path: Path) -> None:
    _, checkpoint, parts = opened("glm", tmp_path)
    plan = plan_parts(parts, parse_rates("mlp=20%"), checkpoint)
    name = "model.layers.1.mlp.{}.weight"
    down, both = checkpoint.rows(name.format("down_proj")), checkpoint.rows(name.format("gate_up_proj"))
    scores = np.abs(down).sum(0) + np.abs(both).sum(1).reshape(2, -1).sum(0)
    kept = choose_by_l1(plan, checkpoint).units[name.format("down_proj")]
    assert kept.tolist() == sorted(np.argsort(-scores)[: len(kept)].tolist())


def test_refitted_columns_make_up_for_those_that_go(tmp_path: Path) -> None:
    _, checkpoint, _ = opened("glm", tmp_path)
    name, random = "model.layers.0.mlp.down_proj.weight", np.random.default_rng(0)
    tokens = (random.standard_normal((400, 40)) @ random.standard_normal((40, 160))).astype(np.float32)
    moments = Moments(160, covariance=True)
    for start in range(0, 400, 100):
        moments.add(tokens[start : start + 100])
    kept = best(moments.energy, 100)
    weight = checkpoint.rows(name)
    want = tokens @ weight.T
    left_out = np.linalg.norm(tokens[:, kept] @ weight[:, kept].T - want)
    refitted = np.linalg.norm(tokens[:, kept] @ moments.refit(checkpoint, name, kept).T - want)
    assert refitted < 0.2 * left_out


def test_columns_that_the_disk_has_no_room_for_are_an_error_of_the_system(tmp_path: Path) -> None:
    _, checkpoint, parts = opened("glm", tmp_path)
    observer = Observer(plan_parts(parts, parse_rates("mlp=20%"), checkpoint), checkpoint, tmp_path, widest=160)
    tokens = np.random.default_rng(0).standard_normal((20, 160)).astype(np.float32)
    observer.see("model.layers.0.mlp.down_proj.weight", tokens)
    handler, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            observer.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert full.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("rate", "why"),
    [
        ("100%", "would leave none of the 2 groups of heads of the decoder"),
        ("layers=3", "would leave none of the 3 layers of the decoder"),
        ("heads=100%", "would leave none of the 2 groups of heads"),
        ("mlp=99%", "would leave fewer than 32 of the 160 MLP channels of the decoder"),
        ("0%", "removes nothing"),
        ("heads=10%", "rounds to nothing"),
        ("40", "is more than 100%"),
        ("width=10%", "width is not one of mlp, heads, layers"),
        ("mlp=10%,mlp=20%", "has mlp twice"),
        ("layers=x", "is not a percentage"),
    ],
)
def test_rates_that_leave_nothing_or_say_nothing_are_refused(rate: str, why: str, tmp_path: Path) -> None:
    _, checkpoint, parts = opened("glm", tmp_path)
    with pytest.raises(UsageError, match=why):
        plan_parts(parts, parse_rates(rate), checkpoint)


def test_heads_are_refused_where_no_config_could_say_it(tmp_path: Path) -> None:
    _, checkpoint, parts = opened("glm4v", tmp_path)
    with pytest.raises(UnsupportedError, match="derives a head's size from the number of heads"):
        plan_parts(parts, parse_rates("heads=50%"), checkpoint)
