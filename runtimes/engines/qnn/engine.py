"""QNN on a Qualcomm NPU: encoders that its compiler has made; on x86-64, on the simulator that comes with it."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgeglm.bundle import Bundle
from edgeglm.devices.profile import Profile
from edgeglm.engines import ENGINES
from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.session import DecoderSession, Feeds
from edgeglm.runtimes.engines.ort.options import session_options

PROVIDER = "QNNExecutionProvider"
DISTRIBUTION = "onnxruntime-qnn"
INSTALL = "pip install 'edgeglm[qnn]'"
# At most so many go through the NPU's simulator, which takes seconds for the demo's picture.
SIMULATED_SCREENS = 64

Chip = tuple[int, int]  # soc_model and htp_arch, as QNN numbers them


def available(module: Module, inputs: int = 1) -> bool:
    """Return whether an NPU runs a module here, or a simulator for so few inputs."""
    npu = npu_for(module)[0]
    return npu is not None and (not npu.is_simulator or inputs <= SIMULATED_SCREENS)


def place(module: Module, inputs: int) -> str:
    """Return the NPU or its simulator, or what runs the quantized ONNX in their place, and why."""
    npu, why = npu_for(module)
    if npu and available(module, inputs):
        return npu.name
    if npu:
        why = f"the simulator would take too long for {inputs} screens, and takes {SIMULATED_SCREENS}"
    return f"{ENGINES['qnn'].everywhere.place}, from the quantized ONNX: {why}"


def note(module: Module) -> str | None:
    """Return what runs a module in place of the NPU, and why."""
    npu, why = npu_for(module)
    if npu is None:
        return f"the CPU, from the quantized ONNX: {why}"
    return "the NPU's simulator, whose time is not the device's" if npu.is_simulator else None


def version() -> str:
    """Return the provider's and ONNX Runtime's versions, and the backend."""
    return f"{_version()} {onnxruntime.__version__} {find_npu().name}"


def open_encoder(bundle: Bundle, module: Module, threads: int) -> Encoder:
    """Open a module without a state. Raises UnsupportedError, DamagedFileError."""
    assert module.compiled  # as `available` has it
    return Encoder(find_npu(), bundle.path(module.compiled.file), chip_of(bundle.manifest.profile))


def open_decoder(bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool) -> DecoderSession:
    """Raise UnsupportedError: no decoder runs on an NPU."""
    raise UnsupportedError(bundle.path(module.file), "is a decoder for an NPU, and none runs there", "export it again")


@dataclass(frozen=True)
class Npu:
    """The provider's device: the NPU itself, or on x86-64 its simulator."""

    device: Any
    backend: str
    version: str
    is_simulator: bool

    @property
    def title(self) -> str:
        """Distribution and version, as reports name them."""
        return f"{DISTRIBUTION} {self.version}"

    @property
    def name(self) -> str:
        """The name of the executor, for reports."""
        return f"{self.title}, HTP simulator" if self.is_simulator else f"{self.title}, NPU"

    def session(self, path: str | Path, chip: Chip, entries: Mapping[str, str]) -> onnxruntime.InferenceSession:
        """Return a session of a file, all of it on the NPU. Raises as ONNX Runtime does."""
        options = session_options(path, entries={"session.disable_cpu_ep_fallback": "1", **entries})
        # The device knows its own chip; the compiler and the simulator must be told, the number too: without it they
        # take another chip of the same architecture.
        told = {"soc_model": str(chip[0]), "htp_arch": str(chip[1])} if self.is_simulator else {}
        options.add_provider_for_devices([self.device], {"backend_path": self.backend, **told})
        return onnxruntime.InferenceSession(path, options)


class Encoder:
    """A module without a state, compiled for the NPU."""

    def __init__(self, npu: Npu, path: Path, chip: Chip) -> None:
        try:
            with quiet():
                self.session = npu.session(path, chip, {})
        except Exception as error:  # the engine's own exceptions have no common base
            why = f"{npu.title} cannot load it: {str(error).splitlines()[0]}"
            raise DamagedFileError(path, why, "export the bundle again with this version of it") from error

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        inputs = {tensor.name: feeds[tensor.name].astype("float32", copy=False) for tensor in self.session.get_inputs()}
        names = [tensor.name for tensor in self.session.get_outputs()]
        with quiet():
            return dict(zip(names, self.session.run(names, inputs), strict=True))

    def close(self) -> None:
        """Drop the session."""
        with quiet():
            del self.session


def npu_for(module: Module) -> tuple[Npu | None, str | None]:
    """Return the NPU that runs a module here, or None and why there is none."""
    try:
        npu = find_npu()
    except UnsupportedError as error:
        return None, error.why
    if module.compiled is None:
        return None, "the bundle has none that is compiled"
    if npu.is_simulator and module.compiled.executed_on is None:
        return None, "the NPU's simulator would take too long"
    return npu, None


def chip_of(profile: Profile) -> Chip:
    """Return the numbers of the chip that a profile is of."""
    qnn = profile.toolchain.qnn
    assert qnn  # the profile's reader asks for it where an engine is QNN
    return qnn.soc_model.value, qnn.htp_arch.value


@cache
def find_npu() -> Npu:
    """Return the NPU of this machine.

    Raises:
        UnsupportedError: The provider is not installed, cannot be loaded, or has no device here.
    """
    kinds, backend = _devices()
    title = f"{DISTRIBUTION} {_version()}"
    if "NPU" in kinds:
        return Npu(kinds["NPU"], backend, _version(), is_simulator=False)
    # On x86-64 the provider lists the CPU, on which it simulates; on Arm without the NPU it lists nothing.
    if "CPU" in kinds and platform.machine() == "x86_64":
        return Npu(kinds["CPU"], backend, _version(), is_simulator=True)
    remedy = "run it on the board, as a user who may open its /dev/fastrpc"
    raise UnsupportedError("NPU", f"{title} lists none here", remedy)


@cache
def _devices() -> tuple[dict[str, Any], str]:
    """Return the provider's devices by their kinds, and its library for an NPU; a process can ask once."""
    try:
        library: Any = importlib.import_module("onnxruntime_qnn")
    except ModuleNotFoundError as error:
        raise UnsupportedError("NPU", f"{DISTRIBUTION} is not installed", INSTALL) from error
    try:
        with quiet():
            onnxruntime.register_execution_provider_library(PROVIDER, library.get_library_path())
            devices = [ep_device for ep_device in onnxruntime.get_ep_devices() if ep_device.ep_name == PROVIDER]
    except Exception as error:  # the engine's own exceptions have no common base
        reason = str(error).splitlines()[0]
        why = f"{DISTRIBUTION} cannot be loaded into ONNX Runtime {onnxruntime.__version__}: {reason}"
        raise UnsupportedError("NPU", why, "install both again") from error
    return {ep_device.device.type.name: ep_device for ep_device in devices}, library.get_qnn_htp_path()


def _version() -> str:
    return metadata.version(DISTRIBUTION)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the vendor's own messages from the terminal; exceptions say what failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)
