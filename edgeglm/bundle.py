"""A bundle on disk, and a reader that distrusts all of it.

The order is the point: paths and sizes are checked before a file is mapped (`load_bundle`), hashes before anything
is run (`verify_bundle`). See docs/bundle.md.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgeglm.damage import ALLOW, RESTORE, extra_files, hash_all, hash_one, look
from edgeglm.digest import READ_ONLY, Hashed, Identity, KnownHashes
from edgeglm.errors import DamagedFileError, UnsupportedError, UsageError
from edgeglm.manifest import MANIFEST, SCHEMA, File, GraphManifest, Manifest, Module, Vision, parse_manifest
from edgeglm.roles import Kind, ModuleName

MAX_MANIFEST_BYTES = 4 << 20
# Folders of which whatever has the right name is read.
READ_BY_NAME = ("tokenizer/",)
AGAIN = "start again, with the bundle as it was exported"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is valid, and whose files are there at their sizes; their content is not yet checked."""

    folder: Path
    manifest: Manifest
    _verified: dict[str, Hashed] = field(default_factory=dict, compare=False, repr=False)
    _names: dict[tuple[str, ...], list[str]] = field(default_factory=dict, compare=False, repr=False)

    def path(self, relative: str) -> Path:
        """Return the path of a file of the bundle; another one is a KeyError."""
        if relative not in self.manifest.files:
            raise KeyError(relative)
        return self.folder / relative

    @property
    def shapes(self) -> list[Vision]:
        """The image shapes that the vision module has a graph for, its first one first."""
        vision, module = self.manifest.model.vision, self.encoder("image")
        if vision is None or module is None:
            return []
        return [vision, *(msgspec.structs.replace(vision, grid=shape.grid) for shape in module.shapes)]

    def module(self, name: ModuleName) -> Module | None:
        """Return the module of that name, if the bundle has it."""
        return next((module for module in self.manifest.modules if module.name == name), None)

    def encoder(self, kind: Kind) -> Module | None:
        """Return the encoder of a kind, if the bundle has one."""
        return next((module for module in self.manifest.modules if module.encodes == kind), None)

    @property
    def table(self) -> Module:
        """The table of embeddings, which every bundle has."""
        return next(module for module in self.manifest.modules if module.is_table)

    @property
    def decoder(self) -> Module:
        """The decoder, which every bundle has."""
        return next(module for module in self.manifest.modules if module.is_decoder)

    def check(self, *folders: str) -> None:
        """Check that the files of some folders are what the manifest says.

        While nothing has changed since they were hashed, that takes a look at each file's status; else its hash.

        Raises:
            DamagedFileError: One was changed, or cannot be read.
        """
        for relative in self._inside(*folders):
            if not self._is_verified(relative):
                self._verify(relative, self.manifest.files[relative])

    @contextmanager
    def opening(self, folder: str) -> Iterator[None]:
        """Have what is opened be what was checked: the files of a folder are the same ones before and after.

        Raises:
            DamagedFileError: One is not what the manifest says, or was changed meanwhile.
        """
        self.check(folder)
        before = {name: self._verified[name].identity for name in self._inside(folder)}
        yield
        for name, identity in before.items():
            if self._status(name) != identity:
                raise DamagedFileError(self.folder / name, "was changed while it was opened", AGAIN)

    def _inside(self, *folders: str) -> list[str]:
        """Return the files of some folders. They are found once: each pass of a decoder asks for them."""
        if folders not in self._names:
            within = tuple(f"{folder}/" for folder in folders)
            self._names[folders] = [name for name in self.manifest.files if name.startswith(within)]
        return self._names[folders]

    def _verify(self, relative: str, file: File) -> None:
        fault = look(self.folder, relative, file)
        fault = fault or hash_one(self.folder, relative, file, KnownHashes(self.folder), self._verified)
        if fault:
            raise DamagedFileError(self.folder / relative, f"was changed since it was opened: it {fault.why}", AGAIN)

    def _is_verified(self, relative: str) -> bool:
        hashed = self._verified.get(relative)
        return hashed is not None and hashed.is_settled and self._status(relative) == hashed.identity

    def _status(self, relative: str) -> Identity | None:
        try:
            return Identity.of(os.stat(f"{self.folder}/{relative}"))
        except OSError:
            return None


class _Header(msgspec.Struct):
    """The keys that a manifest of any schema has."""

    bundle_schema: int


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds the manifest of a bundle, be it damaged or of another schema."""
    with suppress(OSError, UsageError, DamagedFileError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        msgspec.json.decode(_manifest_bytes(folder), type=_Header)
        return True
    return False


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a language model's bundle; its files are not looked at.

    Raises:
        UsageError: The folder is not a bundle, or cannot be read.
        DamagedFileError: The manifest is not what an export wrote; the message names the key.
        UnsupportedError: A newer edgeglm wrote it, or it is the bundle of a graph.
    """
    manifest = read_sealed(folder)
    if isinstance(manifest, GraphManifest):
        why = f"holds the graph {manifest.graph.name}, and no language model"
        remedy = f"edgeglm inspect and edgeglm verify read it; an engine runs its {manifest.modules[0].file}"
        raise UnsupportedError(folder, why, remedy)
    return manifest


def read_sealed(folder: Path) -> Manifest | GraphManifest:
    """Return the manifest of any bundle. Raises as `read_manifest`, but for a graph's."""
    path, data = folder / MANIFEST, _manifest_bytes(folder)
    try:
        schema = msgspec.json.decode(data, type=_Header).bundle_schema
        if schema > SCHEMA:
            why = f"has schema {schema}, and this edgeglm reads up to {SCHEMA}"
            raise UnsupportedError(path, why, "update edgeglm: pip install -U edgeglm")
        return parse_manifest(data)
    except msgspec.ValidationError as error:
        key, why = _explain(str(error))
        raise DamagedFileError(f"{path}: {key}", why, RESTORE) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"is not valid JSON: {error}", RESTORE) from error


def load_bundle(folder: Path) -> Bundle:
    """Return a bundle, with every file there, inside the folder, and of its size.

    Raises:
        UsageError, UnsupportedError: As `read_manifest`; or this user may not read a file.
        DamagedFileError: The manifest, or a file, is not as it was exported.
    """
    manifest = read_manifest(folder)
    bundle = Bundle(Path(os.path.realpath(folder)), manifest)
    for relative, file in manifest.files.items():
        if fault := look(bundle.folder, relative, file):
            raise fault.error(folder)
    for relative in extra_files(bundle.folder, manifest):
        if relative.startswith(READ_BY_NAME) and not Path(relative).name.startswith("."):
            raise DamagedFileError(folder / relative, "is not part of the bundle, and would be read", "remove it")
    return bundle


def verify_bundle(bundle: Bundle) -> None:
    """Check the hash of every file; a large one that is unchanged since it was hashed last is not read again.

    Raises:
        DamagedFileError: A file is not as it was exported.
        UsageError: This user may not read one.
    """
    for damage in hash_all(bundle.folder, bundle.manifest, KnownHashes(bundle.folder), bundle._verified):
        raise damage.error(bundle.folder)


def _explain(error: str) -> tuple[str, str]:
    """Return the key and the fault in msgspec's message."""
    located = re.fullmatch(r"(.*) - at `\$\.?(.*)`", error, re.DOTALL)
    return (located[2], located[1]) if located else ("top level", error)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise UsageError(folder, "is not a folder", "give the folder of a bundle")
        with open(os.open(path, READ_ONLY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedFileError(path, "is not a regular file", RESTORE)
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise DamagedFileError(path, "is longer than the 4MiB that a manifest may have", RESTORE)
    return data


def _unreadable(folder: Path, error: Exception) -> UsageError | DamagedFileError:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT and folder.is_dir():
        return UsageError(folder, f"is not a bundle: it has no {MANIFEST}", "give a folder that edgeglm export wrote")
    if number == errno.ELOOP and folder.is_dir():
        return DamagedFileError(folder / MANIFEST, "is a symbolic link", RESTORE)
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    remedy = ALLOW if number == errno.EACCES else "give a folder that edgeglm export wrote"
    return UsageError(folder, f"cannot be read: {why}", remedy)
