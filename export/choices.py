"""What is chosen for each module: precision, where it runs, and with it the engine and the dialect of its graph."""

from __future__ import annotations

from collections.abc import Iterable

from edgeglm.devices.profile import Placement, Profile
from edgeglm.errors import UsageError
from edgeglm.export.model import Choice
from edgeglm.manifest import ModuleName
from edgeglm.suggest import nearest_name

MODULES: tuple[ModuleName, ...] = ("embedding", "vision", "decoder")
# The table is gathered by rows, which only these have a form for.
EMBEDDING_PRECISIONS = ("fp32", "fp16", "int8")


def choose(profile: Profile, precision: str, modules: Iterable[ModuleName]) -> dict[ModuleName, Choice]:
    """The choices for `modules`: the profile's, changed by a ``--precision`` such as ``int4`` or ``vision=fp16``.

    A bare precision is for vision and decoder; the embedding table follows it only to fp32. One part of a module is
    named behind it, as in ``decoder.layer.0=int8``.

    Raises:
        UsageError: The text names no module, one that is not among `modules`, or one twice; precisions are not looked
            at.
    """
    asked, names = parse_precisions(precision), list(modules)
    for name in sorted({each.partition(".")[0] for each in asked} - {"*", *names}):
        raise UsageError(f"--precision {precision}", f"the model has no {name} module", f"leave {name} out")
    return {name: _choice(profile, name, asked) for name in names}


def parse_precisions(text: str) -> dict[str, str]:
    """Precision by module name; that of ``*`` is for all of them; none where it is ``auto``. Raises UsageError."""
    asked: dict[str, str] = {}
    for item in text.split(","):
        name, equals, precision = item.strip().partition("=")
        if not equals:
            name, precision = "*", name
        elif (module := name.partition(".")[0]) not in MODULES:
            raise UsageError(f"--precision {text}", f"{module!r} is not a module", nearest_name(module, MODULES))
        if not precision or name in asked:
            raise UsageError(
                f"--precision {text}", "says too little or twice", "write int4, or decoder=int4,vision=fp16"
            )
        asked[name] = precision
    return {name: precision for name, precision in asked.items() if precision != "auto"}


def _choice(profile: Profile, name: ModuleName, asked: dict[str, str]) -> Choice:
    module = getattr(profile.modules, name)
    precision = asked.get(name) or _general(name, asked) or module.precision.value
    if name == "embedding":
        if precision not in EMBEDDING_PRECISIONS:
            why = f"an embedding table has no {precision!r} form"
            raise UsageError(f"embedding={precision}", why, f"choose one of {', '.join(EMBEDDING_PRECISIONS)}")
        return Choice(name, precision, "cpu", None, "ort", _parts(name, precision, asked))
    # The NPU computes integers that a calibration has scaled; until that is built, its modules run on the CPU.
    placement: Placement = "cpu" if module.placement.value == "npu" else module.placement.value
    parts = _parts(name, precision, asked)
    if placement == "cpu":
        return Choice(name, precision, placement, "ort", "ort", parts)
    return Choice(name, precision, placement, profile.engines.value[0], "portable", parts)


def _parts(name: ModuleName, precision: str, asked: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The parts of a module that differ from it."""
    prefix = f"{name}."
    named = ((each.removeprefix(prefix), value) for each, value in sorted(asked.items()) if each.startswith(prefix))
    return tuple((part, value) for part, value in named if value != precision)


def _general(name: ModuleName, asked: dict[str, str]) -> str | None:
    precision = asked.get("*")
    return precision if name != "embedding" or precision == "fp32" else None
