"""TensorRT's builder: a module's graph to the engine of one GPU, in a process of its own.

A worker of its own, because a builder that crashes or takes all memory must not take the runner with it, and what it
took is given back.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError
from edgeglm.runtimes.engines.tensorrt.library import Library, load_library, new_log, reason
from edgeglm.worker import serve

Shape = tuple[int, ...]
# The smallest, the usual and the largest shape of an input.
Range = tuple[Shape, Shape, Shape]
REMEDY = "export it in another precision, or for a target without TensorRT"
AGAIN = "export the bundle again"


class Task(msgspec.Struct, frozen=True):
    """A build: a graph, the GPU's compute capability, the ranges of the inputs that vary, and if it has 2:4 zeros."""

    library: str
    graph: str
    sm: int
    ranges: dict[str, Range]
    output: str
    sparse: bool = False


def build(task: Task, library: Library, show: Callable[[float], None]) -> None:
    """Write the engine of a graph to ``task.output``.

    Args:
        task: The graph and what it is built for.
        library: TensorRT.
        show: Told how far it is, from 0 to 1.

    Raises:
        UnsupportedError: TensorRT refuses the graph, its types, shapes or ranges, or builds for no such GPU.
        DamagedFileError: The graph or its weights cannot be read.
    """
    trt, log = library.module, new_log(library)
    # A failed build's builder is garbage in a cycle. Freed in TensorRT's call of the log, it waits for itself forever.
    gc.collect()
    builder = trt.Builder(log)
    network = builder.create_network(_flags(library))
    parser = trt.OnnxParser(network, log)
    path = Path(task.graph)
    # The path is where the parser finds the weights.
    if not parser.parse(path.read_bytes(), task.graph):
        raise _refusal(path, library, parser, log.errors)
    if not network.num_outputs:
        raise DamagedFileError(path, "is an empty graph", AGAIN)
    config = configure(task, library, builder, network)
    config.progress_monitor = _monitor(library, show)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        why = reason(log.errors) or "it gives no reason"
        raise UnsupportedError(path, f"{library.title} cannot build it: {why}", REMEDY)
    Path(task.output).write_bytes(engine)


def configure(task: Task, library: Library, builder: Any, network: Any) -> Any:  # noqa: ANN401
    """Return the builder's config: the GPU, the ranges, and whether it may take kernels that skip zeros.

    Args:
        task: The ranges, the GPU, and whether weights have 2:4 zeros.
        library: TensorRT.
        builder: Its builder.
        network: The parsed graph.

    Raises:
        UnsupportedError: A range is missing or refused.
    """
    config = builder.create_builder_config()
    if task.sparse:
        config.set_flag(library.module.BuilderFlag.SPARSE_WEIGHTS)
    _choose_gpu(task, library, config)
    _add_profile(task, library, builder, network, config)
    return config


def _flags(library: Library) -> int:
    """Return the flag for strong types, so that the graph sets precisions; TensorRT 11 has nothing else."""
    flag = getattr(library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _choose_gpu(task: Task, library: Library, config: Any) -> None:  # noqa: ANN401
    """Set the GPU to build for: TensorRT takes this machine's, TensorRT for RTX the one that is named."""
    if library.name == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.module.ComputeCapability, f"SM{task.sm}"), 0)


def _add_profile(task: Task, library: Library, builder: Any, network: Any, config: Any) -> None:  # noqa: ANN401
    """Add one optimization profile with the ranges of all inputs that vary, if any do."""
    profile, varies = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in task.ranges:
            why = f"its input {tensor.name} has the shape {tuple(tensor.shape)}, and no range for what varies in it"
            raise UnsupportedError(task.graph, why, AGAIN)
        profile.set_shape(tensor.name, *task.ranges[tensor.name])
        varies = True
    if varies and config.add_optimization_profile(profile) < 0:
        ranges = {name: task.ranges[name] for name in sorted(task.ranges)}
        raise UnsupportedError(task.graph, f"{library.title} refuses the ranges {ranges}", AGAIN)


def _refusal(path: Path, library: Library, parser: Any, logged: list[str]) -> EdgeglmError:  # noqa: ANN401
    """Return the parser's first error, with the node that it is about."""
    error = parser.get_error(0)
    said, node, operator = reason([error.desc()]), error.node_name(), error.node_operator()
    if not operator:
        # The log knows more, such as the file of weights that is not there.
        return DamagedFileError(path, f"{library.title} cannot read it: {reason(logged) or said}", AGAIN)
    if not parser.supports_operator(operator):
        said = f"it does not have the operator {operator}"
    why = f"{library.title} refuses it: {said or 'it gives no reason'}"
    return UnsupportedError(f"{path}: node {node} ({operator})", why, REMEDY)


def _monitor(library: Library, show: Callable[[float], None]) -> Any:  # noqa: ANN401
    """Show how much of the outermost phase is done, its inner phases included."""

    class Monitor(library.module.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.module.IProgressMonitor.__init__(self)
            self.phases: list[list[Any]] = []  # name, steps, steps done; each inside the one before it

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            while self.phases and self.phases[-1][0] != parent:
                self.phases.pop()
            self.phases.append([name, max(steps, 1), 0])

        def step_complete(self, name: str, step: int) -> bool:
            for phase in self.phases:
                if phase[0] == name:
                    phase[2] = step + 1
            show(self._done())
            return True

        def phase_finish(self, name: str) -> None:
            self.phases = [phase for phase in self.phases if phase[0] != name]

        def _done(self) -> float:
            done = 0.0
            for _, steps, finished in reversed(self.phases):
                done = min((finished + done) / steps, 1.0)
            return done

    return Monitor()


def main() -> int:
    """Build what the task says."""

    def work(task: Task, show: Callable[[float], None]) -> None:
        shown = 0.0

        def step(done: float) -> None:
            nonlocal shown
            if done >= shown + 0.01:
                shown = done
                show(done)

        build(task, load_library([task.library]), step)

    return serve(Task, work)
