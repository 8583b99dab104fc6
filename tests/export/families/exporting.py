"""Families of tests: registered, saved as a checkpoint, exported, and their bundles run by the device's own code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeglm import manifest
from edgeglm.bundle import Bundle
from edgeglm.devices.loader import load_profile
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.families.spec import Family
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.trace.trace_worker import trace_all
from edgeglm.runtimes.core.embedding import EmbeddingRows
from edgeglm.runtimes.core.sessions import open_decoder

CAPACITY = 64


def register(monkeypatch: pytest.MonkeyPatch, cache: Path, *families: Family) -> None:
    """Register families, and trace in this process, where they are known, with nothing cached."""
    for family in families:
        monkeypatch.setitem(FAMILIES, family.architecture, family)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("edgeglm.export.trace.tracer._run", trace_all)


def make(model: Path, precision: str, out: Path) -> manifest.Manifest:
    """Export a checkpoint for the CPU."""
    prepared = prepare(open_export(Request(model, "test", load_profile("cpu"), precision, context=CAPACITY)))
    made, _ = export(prepared, out, predict(prepared), lambda _: None)
    return made


def steps(bundle: Bundle, tokens: Iterable[list[int]]) -> Iterator[NDArray[Any]]:
    """Yield the logits behind each step of one conversation."""
    rows, start = EmbeddingRows(bundle), 0
    decoder = open_decoder(bundle, bundle.decoder, 1, CAPACITY)
    for step in tokens:
        positions = np.arange(start, start + len(step))[None, None]
        yield decoder.step(rows.gather(step)[None], positions)
        start += len(step)
    decoder.close()


def original_steps(model: Any, tokens: Iterable[list[int]]) -> Iterator[NDArray[Any]]:  # noqa: ANN401
    """Yield the same of transformers' model, each step computed anew from the first token."""
    known: list[int] = []
    for step in tokens:
        known += step
        with torch.no_grad():
            yield model(torch.tensor([known])).logits[0, -1].numpy()


def error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(got.ravel() - want.ravel()) / np.linalg.norm(want))
