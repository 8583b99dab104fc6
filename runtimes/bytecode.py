"""Keep the compiled code of ``run.pyz`` in the user's store: Python compiles what it imports from an archive each time.

An entry's name has the hash of the archive, which was compared with the manifest before, and Python's version. Its
bytes are checked as those of every entry of the store.
"""

from __future__ import annotations

import hashlib
import marshal
import sys
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import TYPE_CHECKING
from zipimport import zipimporter

from edgeglm import store

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = "bytecode"


@contextmanager
def compiled(archive: str, sha256: str) -> Iterator[None]:
    """Have modules of an archive be imported from their compiled code, and keep that of those that lacked it.

    Args:
        archive: That is imported from, as ``sys.path`` names it.
        sha256: Its hash, which was compared.
    """
    key = _key(sha256)
    known, new = store.find(KIND, key) or {}, dict[str, bytes]()

    def hook(path: str) -> _Importer:
        if path != archive and not path.startswith(f"{archive}/"):
            raise ImportError(path)
        return _Importer(path, known, new)

    sys.path_hooks.insert(0, hook)
    for path in [path for path in sys.path_importer_cache if path.startswith(archive)]:
        del sys.path_importer_cache[path]
    try:
        yield
    finally:
        if new and not sys.dont_write_bytecode:
            with suppress(MemoryError):  # an answer is not lost for want of it
                store.keep(KIND, key, {**known, **new})


class _Importer(zipimporter):
    """Imports from an archive, by code that is `known`, and notes in `new` what it compiles."""

    def __init__(self, path: str, known: Mapping[str, bytes], new: dict[str, bytes]) -> None:
        super().__init__(path)
        self._known, self._new = known, new

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of a module. Its file is called alike wherever the archive lies."""
        if fullname in self._known:
            code: CodeType = marshal.loads(self._known[fullname])
            return code
        name = f"run.pyz/{fullname.replace('.', '/')}.py"
        code = compile(self.get_source(fullname) or "", name, "exec", dont_inherit=True)
        self._new[fullname] = marshal.dumps(code)
        return code


def _key(sha256: str) -> str:
    """Return one name for an archive and what compiles it."""
    facts = f"{sha256} {sys.implementation.cache_tag} {MAGIC_NUMBER.hex()} {sys.flags.optimize}"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]
