"""Locate the checkpoint that the user names: a folder, a Hugging Face name, or the demo that ships with edgeglm."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeglm.errors import DamagedFileError, EdgeglmError, UsageError
from edgeglm.scratch import scratch_folder
from edgeglm.strict_json import fitted

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
DEMO_NAME = "edgeglm-demo"
HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
DIRECTORY = "give a directory with config.json and model.safetensors"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
# What is beside the weights, or says that a repository is something else than a checkpoint.
SMALL_FILES = (
    "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "adapter_config.json", "model_index.json",
    "config_sentence_transformers.json",
)  # fmt: skip
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER = re.compile(r"[\w.+ -]{1,200}")
SHARD = re.compile(r"[\w.+ -]{1,200}\.safetensors")
# Most headers are whole in so many bytes, and none is larger than so many (the safetensors library's own limit).
FIRST_BYTES, MOST_BYTES = 100_000, 100_000_000
SECONDS = 30


def locate(model: str | None) -> tuple[Path, str]:
    """Return the checkpoint's folder and the model's name; None is the demo.

    Raises:
        UsageError: There is no such folder, and it cannot be had from the hub.
    """
    if model is None:
        return DEMO, DEMO_NAME
    if _is_on_hub(model):
        return _download(model, HUB_FILES), model
    return Path(model), fitted(Path(os.path.abspath(model)).name)


@contextmanager
def locate_headers(model: str | None) -> Iterator[tuple[Path, str]]:
    """Yield what `locate` returns, for who needs the headers of the weights alone.

    Of a name on the hub the small files are downloaded into its cache, and of the weights only the headers are asked
    for, by ranges of bytes, unless the cache has them. The folder holds both while the context lasts.

    Raises:
        UsageError: As `locate`.
        DamagedFileError: A file of weights has no header.
    """
    if model is None or not _is_on_hub(model):
        yield locate(model)
        return
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # of small files
    snapshot = _download(model, SMALL_FILES)
    with scratch_folder("plan") as scratch:
        folder = scratch / model  # so that lines about its files name the model
        folder.mkdir(parents=True)
        for file in snapshot.iterdir() if snapshot.is_dir() else ():
            (folder / file.name).symlink_to(file.resolve())
        for shard in _shards(snapshot):
            if not (folder / shard).exists() and (header := _read_header(model, shard, snapshot.name)):
                (folder / shard).write_bytes(header)
        if not any(folder.glob("*.safetensors")):
            _touch_others(model, folder)
        yield folder, model


def _touch_others(model: str, folder: Path) -> None:
    """Make empty files of the names of what was not downloaded, by which a folder is recognized."""
    from huggingface_hub import HfApi

    names: list[str] = []
    with suppress(Exception):  # the checkpoint's reader says what is missing
        names = HfApi().list_repo_files(model)
    for name in names:
        if OTHER.fullmatch(name) and not name.endswith((".json", ".safetensors")) and not (folder / name).exists():
            (folder / name).touch()


def _is_on_hub(model: str) -> bool:
    return not os.path.lexists(model) and HUB_NAME.fullmatch(model) is not None


def _download(name: str, files: tuple[str, ...]) -> Path:
    # Only here, because it costs an import that no folder needs.
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # that no name matched is said below
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:
        raise _not_given(name, error) from error


def _not_given(name: str, error: Exception) -> UsageError:
    why = f"is no folder, and Hugging Face does not give it ({type(error).__name__})"
    return UsageError(name, why, f"{DIRECTORY}, or check the name and the network")


def _shards(snapshot: Path) -> list[str]:
    """Return the files of weights that a repository should have."""
    index = snapshot / INDEX
    if not index.is_file():
        return [SINGLE]
    with suppress(ValueError):  # the checkpoint's reader says what is wrong with it
        found = json.loads(index.read_bytes())
        names = found.get("weight_map") if isinstance(found, dict) else None
        if isinstance(names, dict):
            return sorted({shard for shard in names.values() if isinstance(shard, str) and SHARD.fullmatch(shard)})
    return []


def _read_header(name: str, shard: str, commit: str) -> bytes | None:
    """Return the header of a file on the hub with its length before it; None where there is no such file."""
    try:
        start = _read_range(name, shard, commit, 0, FIRST_BYTES)
        if start is None:  # the checkpoint's reader says what is missing
            return None
        size = 8 + int.from_bytes(start[:8], "little")
        if size > MOST_BYTES:
            raise DamagedFileError(f"{name}: {shard}", "is not a safetensors file", "ask who published it")
        if size > len(start):
            start += _read_range(name, shard, commit, len(start), size) or b""
    except EdgeglmError:
        raise
    except Exception as error:
        raise _not_given(name, error) from error
    return start[:size]


def _read_range(name: str, shard: str, commit: str, start: int, stop: int) -> bytes | None:
    """Return the bytes of a file on the hub, fewer where it ends before, or None where there is no such file.

    A server that would send all of it is hung up on.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    asked = {**build_hf_headers(), "range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
    found = bytearray()
    with get_session().stream("GET", hf_hub_url(name, shard, revision=commit), headers=asked, timeout=SECONDS) as sent:
        if sent.status_code == 404:
            return None
        sent.raise_for_status()
        skipped = 0 if sent.status_code == 206 else start
        for chunk in sent.iter_bytes(1 << 16):
            found += chunk
            if len(found) >= skipped + stop - start:
                break
    return bytes(found[skipped : skipped + stop - start])
