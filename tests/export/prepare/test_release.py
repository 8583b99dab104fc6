"""What a tokenizer of GLM-4's size takes: predicted on a device, and given back by an export before it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.random_tokenizer import SPECIAL, WORDS, write_tokenizer
from edgeglm.devices.loader import load_profile
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.predict.peaks import LOADING, WORD_BYTES
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.release import released
from edgeglm.export.prepare.types import Request
from tests.test_random_checkpoint import tiny_config

MIB = 1 << 20
# RSS in bytes: at the start, with a chat, its peak, after an export was opened, and after a conversation was made.
CHILD = """
import sys
from pathlib import Path
from edgeglm.devices.loader import load_profile
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.checkpoint.sidecars import open_chat
from edgeglm.memory import current_rss, peak_rss
folder = Path(sys.argv[1])

print(current_rss())
if sys.argv[2] == "chat":
    chat = open_chat(Checkpoint.open(folder))
    print(current_rss(), peak_rss())
else:
    opened = open_export(Request(folder, "tiny", load_profile("cpu"), "int8"))
    print(current_rss(), peak_rss())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose words are nearly all of its bytes."""
    folder = tmp_path_factory.mktemp("words") / "model"
    ends = {"eos_token_id": [WORDS], "pad_token_id": WORDS}
    write_checkpoint(tiny_config("glm4-1b") | {"vocab_size": WORDS + len(SPECIAL), "hidden_size": 16} | ends, folder)
    write_tokenizer(folder)
    return folder


def measure(model: Path, what: str) -> tuple[int, int]:
    """How much a child's memory has grown, and how much it had grown at most."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model, what], check=True, capture_output=True, text=True, timeout=300
    )
    before, after, peak = map(int, done.stdout.split())
    return after - before, peak - before


def test_a_words_bytes_are_those_of_a_tokenizer_in_memory(model: Path) -> None:
    grown, peak = measure(model, "chat")
    assert grown == pytest.approx(WORD_BYTES * WORDS, rel=0.15)
    assert peak == pytest.approx(LOADING * WORD_BYTES * WORDS, rel=0.15)


def test_the_prediction_of_a_device_has_the_tokenizer_in_it(model: Path, tmp_path: Path) -> None:
    prepared = prepare(open_export(Request(model, "tiny", load_profile("cpu"), "int8")))
    made, _ = export(prepared, tmp_path / "bundle", predict(prepared), lambda _: None)
    command = [sys.executable, "-m", "edgeglm.runtimes", f"{tmp_path / 'bundle'}", "--prompt", "a", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    peak = json.loads(done.stdout)["peak_rss_bytes"]
    predicted = made.predicted.device_peak_rss_bytes[1024]
    assert 0.8 * predicted < peak < predicted


def test_an_export_gives_the_tokenizer_back_before_it_goes_on(model: Path) -> None:
    grown, peak = measure(model, "open")
    assert peak > 100 * MIB
    assert grown < 40 * MIB


def test_a_step_is_released_where_it_fails_too() -> None:
    @released
    def step(number: int) -> int:
        return 10 // number

    assert step(5) == 2
    with pytest.raises(ZeroDivisionError):
        step(0)
