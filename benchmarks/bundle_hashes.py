"""Print the hash of every file of the bundles that a change of the code must leave as they are.

``python -m benchmarks.bundle_hashes > before.txt`` exports the demo for several targets, and small random models of
every family, with nothing cached. It prints a line a file: bundle, file, SHA-256. ``--compare before.txt`` prints what
differs and ends with exit code 1 if anything does. Names of bundles restrict both to those.

``run.pyz`` and ``report.html`` are left out, since they hold the code itself and versions. A manifest has a line a key,
without versions, predicted memory and seal. Compare on one machine: errors and answers are computed in floating point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from edgeglm.manifest import MANIFEST
from tests.export.test_half_overflow import write_tokenizer as write_text_tokenizer
from tests.export.test_half_vision import write_tokenizer as write_picture_tokenizer
from tests.export.tiny import SHAPES, save

Hashes = dict[tuple[str, str], str]

CODE = ("run.pyz", "report.html")
CHANGING = ("predicted", "seal")
VOCABULARY = 264  # the text models' tokenizer has 261
# Options of ``edgeglm export`` by the bundle's name.
DEMO = {
    "demo-cpu-auto": ("--target", "cpu"),
    "demo-cpu-fp32": ("--target", "cpu", "--precision", "fp32"),
    "demo-cpu-int4": ("--target", "cpu", "--precision", "int4"),
    "demo-cpu-tflite": ("--target", "cpu", "--format", "tflite"),
    "demo-jetson-auto": ("--target", "jetson"),
    "demo-qcs6490-auto": ("--target", "qcs6490"),
    "demo-qcs6490-vision-tflite": ("--target", "qcs6490", "--format", "vision=tflite"),
}
TINY = {
    f"{shape}-{target}-{precision}": (shape, "--target", target, "--precision", precision)
    for shape in SHAPES
    for target, precision in (("cpu", "int4"), ("jetson", "auto"))
}
BUNDLES = [*DEMO, *TINY]


def export(name: str, work: Path) -> Path:
    """Export one bundle in a process of its own, with an empty cache folder, and return its folder.

    Raises:
        subprocess.CalledProcessError: The export failed; its line is on stderr.
    """
    if name in TINY:
        shape, *options = TINY[name]
        write_model(shape, work / "model")
        options.insert(0, str(work / "model"))
    else:
        options = list(DEMO[name])
    command = [sys.executable, "-m", "edgeglm", "export", *options, "--output", str(work / "bundle")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return work / "bundle"


def write_model(shape: str, folder: Path) -> None:
    """Write a random checkpoint of a shape, with a tokenizer and a chat template of its kind."""
    if SHAPES[shape].family == "glm4v":
        save(SHAPES[shape], folder)
        write_picture_tokenizer(folder)
    else:
        save(replace(SHAPES[shape], vocabulary=VOCABULARY), folder)
        write_text_tokenizer(folder)


def hash_bundle(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield file and SHA-256 of every file but the code, and of every key of the manifest that must not change."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            for key, value in _kept(json.loads(path.read_bytes())).items():
                yield f"{name}#{key}", _sha256(json.dumps(value, sort_keys=True).encode())
        elif name not in CODE:
            yield name, _sha256(path.read_bytes())


def differences(before: Hashes, after: Hashes) -> list[str]:
    """Return a line for each file that one side lacks or whose hash differs."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            what = "is new" if key not in before else "is gone" if key not in after else "differs"
            lines.append(f"{' '.join(key)} {what}")
    return lines


def parse(lines: Iterable[str]) -> Hashes:
    """Return the hashes that this script printed."""
    return {(bundle, file): sha256 for bundle, file, sha256 in map(str.split, lines)}


def _kept(manifest: dict[str, object]) -> Mapping[str, object]:
    """Return a manifest without what names versions, predicts memory or hashes the code."""
    for key in CHANGING:
        manifest.pop(key, None)
    provenance, files = manifest["provenance"], manifest["files"]
    assert isinstance(provenance, dict)
    assert isinstance(files, dict)
    provenance.pop("versions")
    for name in CODE:
        files.pop(name, None)
    modules = manifest["modules"]
    assert isinstance(modules, list)
    for slots in filter(None, (module.get("slots") for module in modules)):
        for name in ("rss_bytes", "token_rss_bytes"):
            slots.pop(name, None)
    return manifest


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Export, print or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help=f"of {', '.join(BUNDLES)} (default: all)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what this script printed before")
    options = parser.parse_args()
    if unknown := set(options.bundles).difference(BUNDLES):
        parser.error(f"no such bundle: {', '.join(sorted(unknown))}")
    names = options.bundles or BUNDLES
    before = parse(options.compare.read_text(encoding="utf-8").splitlines()) if options.compare else {}
    after: Hashes = {}
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            for file, sha256 in hash_bundle(export(name, Path(work))):
                after[name, file] = sha256
                if not options.compare:
                    print(name, file, sha256, flush=True)
    if not options.compare:
        return 0
    found = differences({key: sha256 for key, sha256 in before.items() if key[0] in names}, after)
    print("\n".join(found) or f"{len(names)} bundles, {len(after)} files and keys: nothing differs")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
