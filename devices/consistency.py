"""Rules between the keys of a profile: each key may be well-formed and the whole still impossible."""

from __future__ import annotations

from collections.abc import Iterator

from edgeglm.devices.profile import (
    NAME,
    BeyondLimitError,
    InvalidValueError,
    Module,
    Profile,
)
from edgeglm.engines import ENGINES
from edgeglm.roles import DECODER


def check_consistency(profile: Profile) -> None:
    """Raise `InvalidValueError` for the first rule between keys that ``profile`` breaks."""
    _check_names(profile)
    _check_memory(profile)
    _check_engines(profile)
    _check_npu_limits(profile)
    for name, module in _modules(profile):
        _check_placement(profile, name, module)
        _check_limits(profile, name, module)


def _modules(profile: Profile) -> Iterator[tuple[str, Module]]:
    return ((name, getattr(profile.modules, name)) for name in profile.modules.__struct_fields__)


def _check_names(profile: Profile) -> None:
    for key, names in (("name", (profile.name,)), ("aliases", profile.aliases)):
        for name in names:
            if not NAME.fullmatch(name):
                remedy = "use lower-case letters and digits, separated by '-'"
                raise InvalidValueError(key, f"{name!r} is not a profile name", remedy)


def _check_memory(profile: Profile) -> None:
    total, usable = profile.memory.total.value, profile.memory.usable.value
    if usable > total:
        why = f"{usable} is more than memory.total"
        raise InvalidValueError("memory.usable.value", why, f"write {total} or less")


def _check_engines(profile: Profile) -> None:
    engines = profile.engines.value
    if not engines or len(set(engines)) < len(engines):
        remedy = f"list each of {', '.join(ENGINES)} at most once, the preferred one first"
        raise InvalidValueError("engines.value", "is empty or names an engine twice", remedy)
    for engine in engines:
        if ENGINES[engine].toolchain and getattr(profile.toolchain, engine) is None:
            why = f"is missing, and engines.value names {engine}"
            raise InvalidValueError(f"toolchain.{engine}", why, f"add the table or drop {engine}")


def _check_npu_limits(profile: Profile) -> None:
    if profile.accelerators.npu is None:
        return
    for key in ("npu_float", "npu_decoder"):
        if getattr(profile.limits, key) is None:
            remedy = "say whether the NPU can do it (true or false), with the source"
            raise InvalidValueError(f"limits.{key}", "is missing, and accelerators.npu is there", remedy)


def _check_placement(profile: Profile, name: str, module: Module) -> None:
    key, placement = f"modules.{name}.placement.value", module.placement.value
    if placement != "cpu" and getattr(profile.accelerators, placement) is None:
        remedy = f"place it on cpu or add accelerators.{placement}"
        raise InvalidValueError(key, f"the profile has no {placement}", remedy)
    if placement not in {ENGINES[engine].placement for engine in profile.engines.value}:
        fitting = [name for name, engine in ENGINES.items() if engine.placement == placement]
        why = f"no engine in engines.value runs on the {placement}"
        raise InvalidValueError(key, why, f"add {' or '.join(fitting)} to engines.value")


def _check_limits(profile: Profile, name: str, module: Module) -> None:
    placement, precision = module.placement.value, module.precision.value
    floats, decoder = (getattr(profile.limits, f"{placement}_{key}", None) for key in ("float", "decoder"))
    if floats and not floats.value and precision in ("fp32", "fp16"):
        why = f"the {placement.upper()} computes no {precision} (limits.{placement}_float)"
        raise BeyondLimitError(f"modules.{name}.precision.value", why, "write int8 or place it on cpu")
    if name == DECODER and decoder and not decoder.value:
        why = f"the {placement.upper()} runs no decoder (limits.{placement}_decoder)"
        raise BeyondLimitError("modules.decoder.placement.value", why, "place it on gpu or cpu")
