"""Read ``adapter_config.json`` as peft 0.21 does: what it says of the adapter's weights, and what contradicts them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.files import AGAIN, read_json, shown

CONFIG = "adapter_config.json"
MERGE = "merge it with peft, and export the result"
BOTH = "take both files of one adapter"
# Settings that change what is computed, or the base's own weights, in a way that is not read.
REFUSED = (
    "use_dora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "velora_config",
    "kasa_config",
)  # fmt: skip
# Settings that say nothing of the merged weights, with the reason.
SILENT = {
    "auto_mapping": "names a class of peft",
    "base_model_name_or_path": "names the base, which the user gives",
    "revision": "is of the base's name",
    "task_type": "names a class of peft",
    "peft_version": "is of the program that wrote the file",
    "inference_mode": "is for training",
    "lora_dropout": "is for training",
    "fan_in_fan_out": "is of layers that no GLM has, and peft turns it off",
    "loftq_config": "is of a beginning, which init_lora_weights names",
    "eva_config": "is of a beginning, which init_lora_weights names",
    "corda_config": "is of a beginning, which init_lora_weights names",
    "lora_ga_config": "is of a beginning, which init_lora_weights names",
    "qalora_group_size": "is of use_qalora",
    "exclude_modules": "chose what was trained, and the weights are of that",
    "layers_to_transform": "chose what was trained, and the weights are of that",
    "layers_pattern": "chose what was trained, and the weights are of that",
    "megatron_config": "is for training in parallel",
    "megatron_core": "is for training in parallel",
    "runtime_config": "is of peft's memory",
    "ensure_weight_tying": "has both of the tied weights in the file",
}
# Ways to begin a training that leave the base as it is; the others put a part of it into the adapter.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
# Of a pattern: names, with the few signs of regular expressions that cannot take for ever.
PATTERN = re.compile(r"\^?(?:[\w.]|\\\.){1,512}\$?")
Rank = Annotated[int, Meta(ge=1, le=1 << 20)]
Alpha = Annotated[float, Meta(ge=-1e9, le=1e9)]
Patterns = Meta(max_length=4096)


class Settings(Struct, frozen=True):
    """The settings that edgeglm honours, with peft's defaults."""

    peft_type: str = ""
    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool | None = False
    rank_pattern: Annotated[dict[str, Rank], Patterns] | None = None
    alpha_pattern: Annotated[dict[str, Alpha], Patterns] | None = None
    init_lora_weights: Any = True
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


class AdapterSettings:
    """Holds an adapter's config: what it says of each module.

    Args:
        folder: The adapter's.

    Raises:
        DamagedFileError: It is not valid; the message names the key.
        UnsupportedError: It changes more than a weight by a product of two matrices.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / CONFIG
        members = read_json(self.file)
        _check(self.file, members)
        try:
            self.said = msgspec.convert(members, Settings)
        except msgspec.ValidationError as error:
            raise DamagedFileError(self.file, f"is not valid: {error}", AGAIN) from error
        self._ranks = self._compiled("rank_pattern", self.said.rank_pattern)
        self._alphas = self._compiled("alpha_pattern", self.said.alpha_pattern)
        known = {*Settings.__struct_fields__, *REFUSED, *SILENT}
        # A newer peft writes what it has as turned off, too.
        self.unknown = sorted(key for key, value in members.items() if key not in known and value)

    def _compiled(self, key: str, patterns: Mapping[str, float] | None) -> list[tuple[re.Pattern[str], float]]:
        for pattern in patterns or ():
            if not PATTERN.fullmatch(pattern):
                raise UnsupportedError(self.file, f"its {key} {shown(pattern)} is no module's name", MERGE)
        # As peft's get_pattern_key reads them; the first that matches counts.
        return [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in (patterns or {}).items()]

    def rank(self, module: str) -> int:
        """Return the rank that a module's product has."""
        return int(_first(self._ranks, module, self.said.r))

    def scale(self, module: str) -> float:
        """Return what a module's product is multiplied by: alpha over the rank, or over its root."""
        rank = self.rank(module)
        alpha = _first(self._alphas, module, self.said.lora_alpha)
        return alpha / (math.sqrt(rank) if self.said.use_rslora else rank)

    def saves(self, module: str) -> bool:
        """Return whether peft has saved a module, or one that it is in, as a whole."""
        parts = module.split(".")
        paths = (".".join(parts[: end + 1]) for end in range(len(parts)))
        return any(path.endswith(tuple(self.said.modules_to_save or ())) for path in paths)

    def targets(self, module: str) -> bool | None:
        """Return whether peft adapts a module; None where an expression says it, which is not read."""
        names = self.said.target_modules
        if not isinstance(names, list):
            return None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def check_saved(self, file: Path, base: Collection[str], own: Collection[str]) -> None:
        """Check that a weight is there for each that modules_to_save names.

        Args:
            file: The adapter's weights.
            base: Names of the base's weights.
            own: Names of the adapter's whole weights, as the base has them.

        Raises:
            DamagedFileError: One is missing.
        """
        for name in sorted(base):
            if name not in own and self.saves(name.rpartition(".")[0]):
                why = f"is missing, and modules_to_save of {CONFIG} names it"
                raise DamagedFileError(f"{file}: {shown(name)}", why, BOTH)

    def check_target(self, file: Path, module: str, rank: int) -> None:
        """Check that a module's product is one that peft would read.

        Args:
            file: The adapter's weights, for the error.
            module: Its name, without the suffix of a weight.
            rank: Of the product.

        Raises:
            DamagedFileError: It has another rank, or target_modules does not name it, and peft would pass over it.
        """
        where = f"{file}: {shown(module)}"
        if self.targets(module) is False:
            raise DamagedFileError(where, f"is adapted, and target_modules of {CONFIG} does not name it", BOTH)
        if rank != self.rank(module):
            raise DamagedFileError(where, f"has rank {rank} where {CONFIG} says {self.rank(module)}", BOTH)

    def notes(self, base: Collection[str], adapted: Collection[str], own: Collection[str]) -> Iterator[str]:
        """Yield what the user should know.

        Args:
            base: Names of the base's weights.
            adapted: The modules that the adapter has a product for.
            own: Names of the adapter's whole weights, as the base has them.
        """
        if self.unknown:
            yield f"{CONFIG}: not honoured: {', '.join(map(shown, self.unknown))}"
        modules = {name.removesuffix(".weight") for name in base if name.endswith(".weight")}
        left = sorted(module for module in modules - set(adapted) if self.targets(module))
        if left:
            some = f"{shown(left[0])}{f' and {len(left) - 1} more' if len(left) > 1 else ''}"
            yield f"{CONFIG}: target_modules names {some}, and the adapter has no weights of it: it stays the model's"
        biases = {name for name in base if name.endswith(".bias")}
        if self.said.bias == "lora_only":
            biases &= {f"{module}.bias" for module in adapted}
        if self.said.bias != "none" and (missing := biases - set(own)):
            yield f"{CONFIG}: bias is {self.said.bias}, and {len(missing)} of {len(biases)} biases are the model's own"


def _check(file: Path, members: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for what changes more than a weight by a product of two matrices."""
    kind = members.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(file, f"is of an adapter by {shown(str(kind))}, and edgeglm merges LORA", MERGE)
    for key in REFUSED:
        if members.get(key):
            raise UnsupportedError(file, f"sets {key}, which edgeglm does not merge", MERGE)
    beginning = members.get("init_lora_weights")
    if isinstance(beginning, (list, dict)) or beginning not in BEGINNINGS:
        why = f"began as {shown(str(beginning))}, which changes the base's weights too"
        raise UnsupportedError(file, why, MERGE)


def _first(patterns: list[tuple[re.Pattern[str], float]], module: str, usual: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), usual)
