"""``edgeglm doctor``: every fact it prints, and that it finds out without importing an engine."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgeglm.cli import doctor
from edgeglm.machine import read_machine


def run_json() -> dict[str, object]:
    result = CliRunner().invoke(doctor.command, ["--json"], catch_exceptions=False)
    report: dict[str, object] = json.loads(result.stdout)
    return report


def test_json_has_the_documented_keys_and_the_machines_facts() -> None:
    report = run_json()
    assert list(report) == [
        "edgeglm",
        "python",
        "platform",
        "machine",
        "disks",
        "engines",
        "extras",
        "telemetry",
        "warnings",
    ]
    assert report["edgeglm"] == metadata.version("edgeglm")
    machine = report["machine"]
    assert isinstance(machine, dict)
    assert machine["memory_total_bytes"] == read_machine().memory_total_bytes
    assert machine["int8_kernels"] == read_machine().int8_kernels
    assert report["telemetry"] is False


def test_the_table_shows_what_the_json_holds() -> None:
    text = CliRunner().invoke(doctor.command, [], catch_exceptions=False).stdout
    report = doctor.examine()
    assert report.machine.cpu_model in text
    assert all(f"free in {disk.path}\n" in text for disk in report.disks)
    assert all(engine.module in text for engine in report.engines)
    assert all(extra.name in text for extra in report.extras)


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ("avx512_vnni", "avx512_vnni kernels"),
        ("avx2", "avx2 without VNNI: exact kernels, slower than VNNI's"),
        ("i8mm", "i8mm kernels"),
        ("none", "no fast kernels"),
    ],
)
def test_int8_kernels_are_named_in_words(kernels: str, words: str) -> None:
    report = doctor.examine()
    machine = dataclasses.replace(report.machine, int8_kernels=kernels)
    assert f"int8      {words}" in list(doctor._lines(dataclasses.replace(report, machine=machine)))


def test_telemetry_that_was_turned_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "telemetry off" in list(doctor._lines(doctor.examine()))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert "telemetry on" in list(doctor._lines(doctor.examine()))


def test_an_installed_engine_is_reported_with_its_version() -> None:
    engines = {engine.module: engine for engine in doctor.examine().engines}
    assert engines["onnxruntime"] == doctor.Engine("onnxruntime", True, metadata.version("onnxruntime"))


def test_an_engine_without_a_distribution_is_importable_with_unknown_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What JetPack's own package of tensorrt may look like: a module and no metadata.
    monkeypatch.setattr(doctor, "find_spec", lambda name: ModuleSpec(name, None) if name == "tensorrt" else None)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    report = doctor.examine()
    assert doctor.Engine("tensorrt", True, None) in report.engines
    assert doctor.Engine("torch", False, None) in report.engines
    assert "  tensorrt        importable, version unknown" in list(doctor._lines(report))


def test_an_extra_would_add_what_pyproject_names_and_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda distribution: distribution == "torch")
    pyproject = msgspec.toml.decode((Path(__file__).parents[2] / "pyproject.toml").read_bytes())
    declared = pyproject["project"]["optional-dependencies"]
    expected = {name: [line.split(">")[0] for line in lines] for name, lines in declared.items()}
    expected["export"].remove("torch")
    report = doctor.examine()
    assert {extra.name: list(extra.missing) for extra in report.extras} == expected
    assert f"  export          would add {', '.join(expected['export'])}" in list(doctor._lines(report))


def test_tflite_runtime_is_warned_about_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.examine().warnings == ()
    monkeypatch.setattr(doctor, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(doctor, "_engines", tuple)
    report = doctor.examine()
    assert report.warnings == (doctor.TFLITE_RUNTIME_WARNING,)
    assert f"warning: {doctor.TFLITE_RUNTIME_WARNING}" in list(doctor._lines(report))


def test_no_engine_is_imported() -> None:
    before = set(sys.modules)
    doctor.examine()
    assert not {module for module in doctor.ENGINE_MODULES if module in set(sys.modules) - before}
