"""Options of a compression, checked before anything is made."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgeglm.digest import hash_range
from edgeglm.errors import UsageError
from edgeglm.export.calibrate.calibrator import read_calibration
from edgeglm.export.checkpoint.lineage import read_lineage, sparsity_of
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.compress.rates import parse_rates
from edgeglm.export.compress.zeros import parse_sparse
from edgeglm.export.evaluate.original.memory import base_bytes, streamed_bytes
from edgeglm.export.families.registry import family_of, image_config
from edgeglm.export.predict.peaks import check_peak
from edgeglm.export.prove.probes import Example
from edgeglm.export.requests import SAMPLES, CompressRequest
from edgeglm.export.samples.screenshots import read_samples
from edgeglm.export.samples.shipped import DEMO_DATA
from edgeglm.export.samples.windows import cut_windows, read_tokenizer
from edgeglm.export.write.disk import explained
from edgeglm.files import opened
from edgeglm.suggest import nearest_name

EPOCHS, LEARNING_RATE = 3, 1e-4
ACTIVATIONS, L1 = "activations", "l1"
# Tokens of a window of text that a recovery learns from.
WINDOW = 128
# With fewer a recovery would learn the samples by heart, and the held-out ones would say nothing.
FEWEST = 32
# Bytes of a weight that learns: itself, its gradient, and two moments.
LEARNING = 16
# Of one in fp32: every process of a team loads it once, and the leader keeps it to judge.
LOADED = 4


def check_what(request: CompressRequest) -> None:
    """Check what is asked for, one of pruning and sparsity, and the measure of importance. Raises UsageError."""
    if request.prune is None and request.sparse is None:
        raise UsageError("compress", "is not told what to remove", "give --prune 40%, --sparse 2:4 or --sparse 50%")
    if request.prune is not None and request.sparse is not None:
        why = "is a run of its own: what matters is measured again once the pruned parts are gone"
        raise UsageError("--sparse", why, "give --prune alone, then --sparse for what it wrote")
    if request.prune is not None:
        parse_rates(request.prune)
    else:
        parse_sparse(str(request.sparse))
    if request.distill is None:
        _check_no_recovery(request)
    if request.by not in (ACTIVATIONS, L1):
        raise UsageError(f"--by {request.by}", "is no measure of importance", f"give {ACTIVATIONS} or {L1}")


def _check_no_recovery(request: CompressRequest) -> None:
    """Check that nothing is asked for that only a recovery does. Raises UsageError."""
    given = {
        "--epochs": request.epochs is not None,
        "--learning-rate": request.learning_rate is not None,
        "--freeze": bool(request.freeze),
        "--no-resume": not request.resume,
        "--distributed": request.distributed,
    }
    for option in (option for option, is_given in given.items() if is_given):
        raise UsageError(option, "is about a recovery, and none is asked for", "give --distill FILE too")


def check_source(folder: Path) -> None:
    """Check that a checkpoint is not sparse already: pruning would refit its zeros. Raises UsageError."""
    if sparsity_of(read_lineage(folder)):
        raise UsageError(folder, "is sparse, and would lose its zeros", "prune first, then make that sparse")


def check_output(output: Path, source: Path) -> None:
    """Check that a checkpoint may be written there, beside its source. Raises UsageError."""
    with explained(output, output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(output, "exists already", "give a new folder")
        if os.path.realpath(output).startswith(os.path.realpath(source) + os.sep):
            raise UsageError(output, "lies in the checkpoint's own folder", "give another folder")


def read_examples(request: CompressRequest, checkpoint: Checkpoint, name: str) -> Sequence[Example]:
    """Return the samples that importance is measured on; none for L1.

    Args:
        request: What is asked for.
        checkpoint: The original.
        name: Its name.

    Raises:
        UsageError: They are missing, too few, or not wanted.
    """
    if request.by == L1:
        if request.calibration:
            raise UsageError("--calibration", "is not read by l1, which looks at weights alone", "leave it out")
        return []
    file = request.calibration or (DEMO_DATA.calibration if request.model is None else None)
    if file is None:
        why = f"is needed: the importance of channels is measured on what {name} reads"
        raise UsageError("--calibration", why, "give samples (.jsonl) or a text, or choose --by l1")
    return read_calibration(file, checkpoint.folder)[0]


def pace_of(request: CompressRequest) -> tuple[int, float]:
    """Return the epochs of a recovery, and its highest learning rate."""
    epochs, rate = request.epochs, request.learning_rate
    return EPOCHS if epochs is None else epochs, LEARNING_RATE if rate is None else rate


def check_recovery(request: CompressRequest, original: Checkpoint) -> None:
    """Check the names of ``--freeze``, the numbers of the recovery, and what it learns from. Raises UsageError."""
    names = family_of(original.config).modules(original.config)
    for name in request.freeze:
        if name not in names:
            raise UsageError(f"--freeze {name}", "is not a module of the model", nearest_name(name, names))
    if set(request.freeze) == set(names):
        raise UsageError("--freeze", "leaves nothing to learn", "name fewer modules")
    epochs, rate = pace_of(request)
    if epochs < 1:
        raise UsageError(f"--epochs {epochs}", "is none", "give 1 or more")
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise UsageError(f"--learning-rate {rate}", "is no rate", "give one such as 1e-4")
    if request.distill:
        _check_lessons(request.distill, original)


def _check_lessons(file: Path, original: Checkpoint) -> None:
    """Check that a file has as many samples, or windows of a text, as a recovery needs. Raises UsageError."""
    screens, sees = file.suffix == SAMPLES, image_config(original.config) is not None
    if screens != sees:
        wants = f"samples ({SAMPLES})" if sees else "a text"
        raise UsageError(f"--distill {file}", "is not what the model reads", f"give {wants}")
    if screens:
        count, kind = len(list(read_samples(file, FEWEST))), "samples"
    else:
        tokenizer = find_tokenizer(original.folder)
        windows = cut_windows(read_tokenizer(tokenizer), file, WINDOW, WINDOW, FEWEST)
        count, kind = windows.count, f"windows of {WINDOW} tokens"
    if count < FEWEST:
        raise UsageError(f"--distill {file}", f"holds {count} {kind}", f"recover with {FEWEST} or more")


def find_tokenizer(folder: Path) -> Path:
    """Return the file of a checkpoint's tokenizer. Raises UsageError."""
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise UsageError(folder, "has no tokenizer.json, and reads no text", "give a checkpoint that has one")
    return source


def check_learning(request: CompressRequest, original: Checkpoint, parameters: int, budget: int, size: int = 1) -> int:
    """Return the memory that a recovery takes while it learns.

    Args:
        request: What is asked for.
        original: The teacher.
        parameters: Weights of the smaller checkpoint.
        budget: Bytes of memory.
        size: Processes that share it out.

    Raises:
        BudgetError: It does not fit, or the teacher does not.
    """
    each, learning = base_bytes() + LOADED * parameters, base_bytes() + LEARNING * parameters
    if size > 1:
        learning = max(learning + each + (size - 1) * base_bytes(), size * each)
    check_peak(max(learning, streamed_bytes(original)), budget, f"to recover {request.output}")
    return learning


def hash_data(file: Path) -> str:
    """Hash a file of samples or text. Raises UsageError."""
    with opened(file, "give samples (.jsonl) or a text in UTF-8") as stream:
        digest = hashlib.sha256()
        hash_range(digest, stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
        return digest.hexdigest()
