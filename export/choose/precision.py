"""Choose each module's precision and placement, and with it the engine and the dialect of its graph."""

from __future__ import annotations

from collections.abc import Iterable

from edgeglm.devices.profile import Profile
from edgeglm.engines import DIALECTS, Engine, Placement, engine_for
from edgeglm.errors import UnsupportedError, UsageError
from edgeglm.export.model import Choice
from edgeglm.roles import ENCODERS, MODULES, TABLE, ModuleName, encoder_of
from edgeglm.suggest import nearest_name

# The table is gathered by rows, which only these have a form for.
EMBEDDING_PRECISIONS = ("fp32", "fp16", "int8")
# INT8 weights under activations of 8 and of 16 bits; until they are compared, the wider one stands for both.
NPU_PRECISIONS = ("a8w8", "a16w8")
NPU_USUAL = "a16w8"


def choose(profile: Profile, precision: str, modules: Iterable[ModuleName]) -> dict[ModuleName, Choice]:
    """Choose precision, placement and engine of modules.

    Args:
        profile: What is chosen where `precision` says nothing.
        precision: A ``--precision`` such as ``int4`` or ``vision=fp16``. A bare one is for vision and decoder; the
            embedding table follows it only to fp32. One part of a module is named behind it, as in
            ``decoder.layer.0=int8``.
        modules: Their names.

    Raises:
        UsageError: The text names no module, one that is not among `modules`, or one twice; precisions are not looked
            at.
    """
    asked, names = parse_precisions(precision), list(modules)
    for name in sorted({part.partition(".")[0] for part in asked} - {"*", *names}):
        raise UsageError(f"--precision {precision}", f"the model has no {name} module", f"leave {name} out")
    return {name: _choice(profile, name, asked) for name in names}


def parse_precisions(text: str) -> dict[str, str]:
    """Return the precision by module name, ``*`` for all; empty if it is ``auto``. Raises UsageError."""
    asked: dict[str, str] = {}
    for item in text.split(","):
        name, equals, precision = item.strip().partition("=")
        if not equals:
            name, precision = "*", name
        elif (module := name.partition(".")[0]) not in MODULES:
            raise UsageError(f"--precision {text}", f"{module!r} is not a module", nearest_name(module, MODULES))
        if not precision or name in asked:
            raise UsageError(f"--precision {text}", "is empty or repeated", "write int4, or decoder=int4,vision=fp16")
        asked[name] = precision
    return {name: precision for name, precision in asked.items() if precision != "auto"}


def _choice(profile: Profile, name: ModuleName, asked: dict[str, str]) -> Choice:
    # A profile decides on an encoder of its own or, as of audio, leaves it where the decoder is.
    module = getattr(profile.modules, name, profile.modules.decoder)
    precision = asked.get(name) or _general(name, asked) or module.precision.value
    if name == TABLE:
        if precision not in EMBEDDING_PRECISIONS:
            why = f"an embedding table has no {precision!r} form"
            raise UsageError(f"embedding={precision}", why, f"choose one of {', '.join(EMBEDDING_PRECISIONS)}")
        return Choice(name, precision, "cpu", None, "ort", _parts(name, precision, asked))
    placement: Placement = module.placement.value
    engine = engine_for(placement, profile.engines.value)
    assert engine  # as the profile's reader asks for it
    if DIALECTS[engine.dialect].integers:
        return _on_npu(profile, name, asked, engine)
    if precision in NPU_PRECISIONS:
        why = f"is made for an NPU, and {profile.name} has its {name} on the {placement}"
        raise UnsupportedError(f"--precision {name}={precision}", why, "choose int8")
    parts = _parts(name, precision, asked)
    return Choice(name, precision, placement, engine.name, engine.dialect, parts)


def _on_npu(profile: Profile, name: ModuleName, asked: dict[str, str], engine: Engine) -> Choice:
    """Choose for a module on the NPU: another precision is refused if it names the module, and ignored otherwise."""
    if ENCODERS.get(name) != "image":
        why = f"puts the {name} on the NPU, and edgeglm compiles image encoders alone for one"
        raise UnsupportedError(profile.name, why, f"place the {name} on the cpu in the profile")
    usual = profile.modules.vision.precision.value
    if usual != "int8":
        raise UnsupportedError(f"{profile.name}: {name} in {usual}", *_npu_refusal(profile, name, usual))
    for key, value in asked.items():
        if key.partition(".")[0] == name and (key != name or value not in ("int8", *NPU_PRECISIONS)):
            raise UnsupportedError(f"--precision {key}={value}", *_npu_refusal(profile, key, value))
    named = asked.get(name)
    precision = named if named in NPU_PRECISIONS else NPU_USUAL
    return Choice(name, precision, engine.placement, engine.name, engine.dialect)


def _npu_refusal(profile: Profile, key: str, precision: str) -> tuple[str, str]:
    """Return why the NPU does not take a precision, and what to do."""
    remedy = f"choose {' or '.join(NPU_PRECISIONS)}, or a profile with vision on the cpu"
    if "." in key:
        return "a module on the NPU has one precision for all of its parts", remedy
    qnn, floats = profile.toolchain.qnn, profile.limits.npu_float
    version = f" (Hexagon v{qnn.htp_arch.value})" if qnn else ""
    if precision in ("fp32", "fp16") and floats and not floats.value:
        return f"the NPU of {profile.name}{version} computes integers, not {precision}", remedy
    return "edgeglm compiles INT8 weights under calibrated integers for an NPU, and nothing else", remedy


def is_measured(precision: str) -> bool:
    """Return whether the bits of an NPU's activations are chosen by measured error, because none are named."""
    return parse_precisions(precision).get(encoder_of("image")) not in NPU_PRECISIONS


def npu_note(choice: Choice, precision: str) -> str | None:
    """Return what to tell who asked for a precision of all modules that one on the NPU does not have."""
    asked = parse_precisions(precision)
    general = asked.get("*", "int8")
    if not choice.kind.integers or choice.name in asked or general in ("int8", *NPU_PRECISIONS):
        return None
    return f"{choice.name} stays INT8: it is on the NPU, which has no {general}"


def _parts(name: ModuleName, precision: str, asked: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the parts of a module that differ from it."""
    prefix = f"{name}."
    named = ((part.removeprefix(prefix), value) for part, value in sorted(asked.items()) if part.startswith(prefix))
    return tuple((part, value) for part, value in named if value != precision)


def _general(name: ModuleName, asked: dict[str, str]) -> str | None:
    precision = asked.get("*")
    return precision if name != TABLE or precision == "fp32" else None
