"""The names that other code may import: a change here is a change for users, and belongs in CHANGELOG.md."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import edgeglm

SHARED = {
    "edgeglm.actions": {"Action", "parse_action", "write_action"},
    "edgeglm.cache": {"cache_folder"},
    "edgeglm.blocks": {"Block", "Blocks", "block_name", "read_block", "read_head"},
    "edgeglm.bundle": {
        "Bundle",
        "is_bundle",
        "load_bundle",
        "read_manifest",
        "read_sealed",
        "verify_bundle",
    },
    "edgeglm.contract": {"faults", "graph_faults", "model_faults", "scales_offset", "slot_name"},
    "edgeglm.damage": {"Damage", "extra_files", "find_damage", "hash_all", "hash_one", "look"},
    "edgeglm.digest": {"Hashed", "Identity", "KnownHashes", "hash_range"},
    "edgeglm.errors": {
        "AccuracyError",
        "BudgetError",
        "DamagedFileError",
        "EdgeglmError",
        "UnsupportedError",
        "UsageError",
        "printable",
    },
    "edgeglm.engines": {"Engine", "GraphKind", "engine_for"},
    "edgeglm.exits": {"explain", "installed", "run_program"},
    "edgeglm.files": {"open_regular", "opened", "read_bytes"},
    "edgeglm.machine": {"Machine", "describe_kernels", "memory_budget", "processor_lines", "read_machine"},
    "edgeglm.manifest": {
        "File",
        "Generation",
        "Graph",
        "GraphAccuracy",
        "GraphManifest",
        "Manifest",
        "Measured",
        "Metric",
        "Predicted",
        "Provenance",
        "Rung",
        "Sealed",
        "parse_manifest",
    },
    "edgeglm.modules": {"Audio", "Compiled", "Model", "Module", "Rope", "Shape", "Slots", "Tensor", "Vision"},
    "edgeglm.roles": {"HasRole", "encoder_of"},
    "edgeglm.scratch": {"scratch_folder"},
    "edgeglm.process": {"Ran", "at_fixed_addresses", "child", "die_with_parent", "ended", "run_program"},
    "edgeglm.large_entries": {"LargeEntry", "find", "find_or_make"},
    "edgeglm.store": {
        "find",
        "is_private",
        "keep",
        "locked_folder",
        "making",
        "partial",
        "publish",
        "read_private",
        "remove",
        "seal",
        "sweep",
        "sweep_once",
        "unseal",
    },
    "edgeglm.memory": {"MemoryCurve", "MemorySampler", "Phase", "PhaseLog", "current_rss", "peak_rss"},
    "edgeglm.strict_json": {"StrictJsonError", "check_json", "fitted"},
    "edgeglm.suggest": {"nearest_name"},
    "edgeglm.telemetry": {"disable_telemetry", "telemetry_is_off"},
    "edgeglm.units": {"format_size", "parse_percent", "parse_size"},
    "edgeglm.worker": {
        "Crashed",
        "Failure",
        "Overdue",
        "Progress",
        "Result",
        "Worker",
        "error_of",
        "failure_of",
        "serve",
    },
}
DEVICES = {
    "edgeglm.devices.loader": {"load_profile", "profile_names", "read_profile"},
    "edgeglm.devices.operator_table": {"Operator", "Table", "read_table", "table_for"},
}


@pytest.mark.parametrize(("module", "names"), (SHARED | DEVICES).items(), ids=[*SHARED, *DEVICES])
def test_a_module_defines_exactly_its_public_names(module: str, names: set[str]) -> None:
    members = vars(importlib.import_module(module)).items()
    defined = {
        name
        for name, value in members
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module
    }
    assert {name for name in defined if not name.startswith("_")} == names


def test_every_shared_module_is_pinned_above() -> None:
    modules = {f"edgeglm.{module.name}" for module in pkgutil.iter_modules(edgeglm.__path__) if not module.ispkg}
    assert modules - {"edgeglm.__main__"} == SHARED.keys()
