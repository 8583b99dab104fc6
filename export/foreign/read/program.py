"""A program of torch.export (``.pt2``) as an ONNX graph, made by torch's own exporter in a process of its own."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import msgspec

from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.files import POINTER, refuse_pointer
from edgeglm.files import opened
from edgeglm.worker import Crashed, Worker

SUFFIX = ".pt2"
# What torch.export.save writes into an archive, below a folder of its own.
MODEL, COMPILED = "models/model.json", "data/aotinductor"
# Resident memory of the converter, as `edgeglm export` of programs prints it: torch with its exporter, and for a byte
# of the program.
BASE_BYTES, GROWTH = 620 << 20, 6
# What else is a model, by the ends of names, and the way on.
OTHERS = {
    (".pt", ".pth", ".ts", ".bin", ".ckpt"): (
        "is a file of torch that holds weights or TorchScript",
        "save torch.export.export(model, inputs) with torch.export.save as .pt2, or export it to .onnx",
    ),
    (".tflite", ".litert"): (
        "is a TFLite file, which LiteRT runs as it is",
        "give the .onnx or .pt2 file that it was made from",
    ),
    (".keras", ".h5", ".pb"): ("is a file of TensorFlow", "export it to .onnx with tf2onnx"),
    (".safetensors", ".gguf"): ("is a file of weights", "give the folder of the checkpoint"),
}
CONVERTER_SECONDS = 1800
CHUNK = 1 << 20


class Task(msgspec.Struct, frozen=True):
    """A program to write as the ONNX file `output`."""

    program: str
    output: str


class Answer(msgspec.Struct, frozen=True):
    """The version of torch, and the error of the graph on the program's own example, None where it has none."""

    torch: str
    error: float | None


CONVERTER = Worker(
    "edgeglm.export.foreign.read.program_worker", Answer, "torch's exporter", "free some memory", CONVERTER_SECONDS
)
ALLOWED_ERROR = 1e-3
RAISED = re.compile(r"^[\w.]*(Error|Exception|Unsupported)\w*: .")
# How torch begins a line that it logs, what it colours, and what it says where the cause is said before.
LOGGED, COLOUR = re.compile(r"^[WE]\d{4} .*?\] "), re.compile(r"(\x1b|\\x1b)\[\d+m")
VAGUE = ("Failed to convert the exported program", "We ran into an error when deserializing")


def is_program(file: Path) -> bool:
    """Tell whether a file is meant as a program of torch.export."""
    return file.suffix == SUFFIX


def refuse_others(file: Path) -> None:
    """Raise UsageError, with the way on, for a file whose name is that of another kind of model."""
    for suffixes, (why, remedy) in OTHERS.items():
        if file.suffix.lower() in suffixes:
            raise UsageError(file, why, remedy)


def hash_program(file: Path) -> str:
    """Return the SHA-256 of a program's file."""
    digest = hashlib.sha256()
    with opened(file, f"give a {SUFFIX} file") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def convert_program(file: Path, work: Path) -> tuple[Path, str]:
    """Return a program as an ONNX file in `work`, and a note on how it was made.

    Raises:
        UsageError: It is no program of torch.export.
        DamagedFileError: It is cut off or damaged.
        UnsupportedError: torch's exporter refuses it, or its graph computes something else.
        BudgetError: The converter was killed, most likely for its memory.
    """
    _check_archive(file)
    output = work / "program.onnx"
    try:
        answer = CONVERTER.run(Task(str(file), str(output)), str(file))
    except Crashed as error:
        why = f"torch's exporter does not convert it: {_reason(error)}"
        raise UnsupportedError(file, why, "export it to .onnx with torch.onnx.export, and give that") from error
    if answer.error is not None and not answer.error <= ALLOWED_ERROR:
        why = f"its ONNX graph is {answer.error:.2g} away from the program on the program's own example"
        raise UnsupportedError(file, why, "export it to .onnx yourself, and compare")
    proof = "it has no example to compare on" if answer.error is None else f"error {answer.error:.1e} on its example"
    return output, f"converted by the exporter of torch {answer.torch}: {proof}"


def _check_archive(file: Path) -> None:
    with opened(file, f"give a {SUFFIX} file of torch.export.save") as stream:
        refuse_pointer(file, stream.read(len(POINTER)))
        try:
            names = zipfile.ZipFile(stream).namelist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise DamagedFileError(file, "is cut off, or no archive of torch.export.save", "save it again") from error
    if any(COMPILED in name for name in names):
        raise UsageError(file, "is compiled by AOTInductor", "save the program itself, with torch.export.save")
    if not any(name.endswith(MODEL) for name in names):
        raise UsageError(file, "holds no program of this torch's form", "save it again with torch.export.save")


def _reason(error: Crashed) -> str:
    lines = (COLOUR.sub("", LOGGED.sub("", line)) for line in error.lines)
    raised = [line for line in lines if RAISED.match(line)]
    clear = [line for line in raised if not any(words in line for words in VAGUE)]
    return (clear or raised or [str(error)])[-1]
