"""``run.pyz``: the device's runner as one file that needs no installed edgeglm."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import edgeglm

PACKAGE = Path(edgeglm.__file__).parent
# What the runner imports of the package; tests/runtimes/test_pyz.py reads that from its files.
SHARED = (
    "__init__",
    "actions",
    "blocks",
    "bundle",
    "cache",
    "contract",
    "damage",
    "digest",
    "engines",
    "errors",
    "exits",
    "files",
    "large_entries",
    "machine",
    "manifest",
    "memory",
    "modules",
    "process",
    "roles",
    "scratch",
    "store",
    "strict_json",
    "telemetry",
    "units",
    "worker",
)
FILES = (*(f"{name}.py" for name in SHARED), "devices/__init__.py", "devices/profile.py")
# zip's earliest time: the same sources give the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)
WHEELS = "numpy pillow tokenizers onnxruntime msgspec jinja2"
# Damage here, and in the archive's directory, is met by Python itself; all other damage is caught here.
MAIN = f"""\
import sys
def end(code, text):
    sys.stderr and sys.stderr.write("edgeglm: " + text + "\\n")
    sys.exit(code)
if sys.version_info < (3, 10):
    end(3, "run.pyz: needs Python 3.10 or later; run it with a newer one")
try:
    from edgeglm.runtimes.start import main
    code = main("{WHEELS}")
except MemoryError:
    end(5, "memory: is not enough for this; free some, or allow the process more")
except Exception:
    end(6, sys.argv[0] + ": is damaged or was changed; copy the bundle again from where it was exported")
sys.exit(code)
"""


def build_pyz() -> bytes:
    """Return the file's bytes; it runs the bundle in whose folder it lies."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", MAIN.encode())
        runner = sorted(path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "runtimes").rglob("*.py"))
        sources = [*FILES, *runner]
        for name in sources:
            _add(archive, f"edgeglm/{name}", (PACKAGE / name).read_bytes())
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
