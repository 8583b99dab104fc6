"""The distance of a graph's outputs from the original's: by output, and by channel where ranges are far apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Ranges of channels that are this many times apart are judged apart: of 255 steps for both, the smaller has 8.
APART = 32.0
# A channel of less than this, relative to the largest, is rounding of the original itself.
NOISE = 1e-7
# A lost channel varies in the original by this share of its size, and by this share of that in what was emitted.
MOVES, STILL = 1e-3, 1e-3
FEWEST = 4  # values that tell whether a channel moves and of what size a part is, and samples that are a part
# An output of fewer values than this in a sample has its size over samples: one value near 0 is not a small output.
FEW = 8
STANDS = "which stands still,"
# A channel of which a Relu or Clip takes so much away may be left with a sliver.
CUT = 8.0
# An error up to this passes without a note, so nothing is asked about it.
DOUBTED = 0.1


@dataclass(frozen=True)
class Difference:
    """The error of an output, None where no value was compared, and the channels that it is of, all if empty.

    ``undefined`` is whether the original gives NaN or infinity in it.
    """

    output: str
    error: float | None
    where: str = ""
    undefined: bool = False

    def __str__(self) -> str:
        return f"{self.output}, {self.where}" if self.where else self.output


class Comparison:
    """Sums of the differences of outputs, over any number of samples.

    Args:
        places: Axes of outputs, by name, that are places of an image and no parts to be judged apart.
    """

    def __init__(self, places: Mapping[str, Collection[int]] | None = None) -> None:
        self._outputs: dict[str, _Output] = {}
        self._places = places or {}

    def add(self, want: Mapping[str, object], got: Mapping[str, object]) -> None:
        """Compare the outputs of one sample by name: arrays, or sequences and maps of them."""
        for name, value in want.items():
            output = self._outputs.setdefault(name, _Output(frozenset(self._places.get(name, ()))))
            ours, theirs = dict(_leaves(got[name])), dict(_leaves(value))
            for key in sorted({*ours, *theirs}):
                output.add(theirs.get(key, _missing(ours)), ours.get(key, _missing(theirs)))

    def differences(self, reach: Reach | None = None) -> tuple[Difference, ...]:
        """Return the error of each output, in their order.

        Args:
            reach: Gives the original's outputs before its last Relu or Clip cuts them, added as both sides. Where
                that lets through less than 1 / `APART`, by its range, is a sliver: too little to be judged apart.
        """
        found = tuple(output.difference(name) for name, output in self._outputs.items())
        if reach is None or all((difference.error or 0.0) <= DOUBTED for difference in found):
            return found
        uncut = reach()
        outputs = uncut._outputs if uncut else {}
        return tuple(output.difference(name, outputs.get(name)) for name, output in self._outputs.items())


Reach = Callable[[], Comparison | None]


def worst_of(differences: tuple[Difference, ...]) -> Difference | None:
    """Return the output with the largest error, None where nothing was compared."""
    compared = [difference for difference in differences if difference.error is not None]
    return max(compared, key=lambda difference: difference.error or 0.0, default=None)


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a value with the place of each."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{key}.{index}")
    elif value is not None:
        yield key, np.asarray(value)


@dataclass
class _Channels:
    """Sums along one axis, by channel."""

    wanted: Array
    wanted_squares: Array
    made: Array
    made_squares: Array
    errors: Array
    low: Array
    high: Array
    count: int

    def plus(self, other: _Channels) -> _Channels:
        """Return the sums of both."""
        return _Channels(
            self.wanted + other.wanted,
            self.wanted_squares + other.wanted_squares,
            self.made + other.made,
            self.made_squares + other.made_squares,
            self.errors + other.errors,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.count + other.count,
        )

    def slivers(self, uncut: _Channels | None) -> NDArray[np.bool_]:
        """Tell of which channels a Relu or Clip lets next to nothing through."""
        if uncut is None or uncut.low.shape != self.low.shape:
            return np.zeros(self.low.shape, np.bool_)
        left, whole = self.high - self.low, uncut.high - uncut.low
        reach = whole.copy()  # of few values, a channel's own range says little: its neighbours' counts too
        for part in _parts(np.sqrt(uncut.wanted_squares / uncut.count)):
            reach[part] = whole[part].max()
        result: NDArray[np.bool_] = (CUT * left < whole) & (APART * left < reach)
        return result

    def worst(self, uncut: _Channels | None) -> tuple[float, str]:
        """Return the largest error of a part of the channels, and which they are; a lost channel counts 1."""
        sizes = np.where(self.slivers(uncut), 0.0, np.sqrt(self.wanted_squares / self.count))
        lost = self._lost(sizes)
        if lost.any():
            return 1.0, f"{_named(np.flatnonzero(lost))} lost"
        found = (0.0, "")
        parts = _parts(sizes)
        for part in parts if len(parts) > 1 else ():
            if part.size * self.count < FEWEST:
                continue  # near 0 by accident
            error = float(np.sqrt(self.errors[part].sum() / max(self.wanted_squares[part].sum(), 1e-60)))
            found = max(found, (error, _named(np.sort(part))))
        return found

    def _lost(self, sizes: Array) -> NDArray[np.bool_]:
        """Tell which channels stand still, and move in the original."""
        wanted, made = (
            np.maximum(squares / self.count - np.square(total / self.count), 0.0)
            for total, squares in ((self.wanted, self.wanted_squares), (self.made, self.made_squares))
        )
        moves = wanted > np.square(MOVES * sizes)
        heard = sizes > NOISE * sizes.max(initial=0.0)
        result: NDArray[np.bool_] = moves & heard & (made <= STILL**2 * wanted) & (self.count >= FEWEST)
        return result


@dataclass(frozen=True)
class _Sample:
    """An output of one sample: the original's largest magnitude and norm, the difference's norm, how many values."""

    peak: float
    norm: float
    distance: float
    values: int

    @staticmethod
    def joined(samples: Sequence[_Sample]) -> _Sample:
        """Return samples as one batch of them."""
        norm = float(np.linalg.norm([sample.norm for sample in samples]))
        distance = float(np.linalg.norm([sample.distance for sample in samples]))
        return _Sample(max(sample.peak for sample in samples), norm, distance, sum(sample.values for sample in samples))

    def error(self, uncut: list[_Sample]) -> float:
        """Return the relative error: of a sliver relative to what the samples are before they are cut."""
        if uncut and APART * self.peak < max(sample.peak for sample in uncut):
            return self.distance / float(np.sqrt(np.mean([sample.norm**2 for sample in uncut])))
        return self.distance / max(self.norm, 1e-30)


@dataclass
class _Output:
    """An output over the samples: norms of each, the shares of whole numbers, sums by channel, but not by place."""

    places: Collection[int] = ()
    samples: list[_Sample] = field(default_factory=list)
    values: int = 0
    unequal: int = 0
    undefined: bool = False
    channels: dict[int, _Channels | None] = field(default_factory=dict)

    def add(self, want: Array, got: Array) -> None:
        """Compare one array with the original's."""
        if want.shape != got.shape:
            want, got = _same_shape(want, got)
        if not want.size:
            return
        if want.dtype.kind != "f":
            self.values += want.size
            self.unequal += int(np.count_nonzero(want != got))
            return
        wide, made = want.astype(np.float64), got.astype(np.float64)
        # What is not finite is equal in both or as wrong as can be; a NaN among NaNs of the original is a number lost.
        odd = ~(np.isfinite(wide) & np.isfinite(made) | np.isnan(wide) & np.isnan(made) | (wide == made))
        known, undefined = np.isfinite(wide), np.isnan(wide) | np.isnan(made)
        self.undefined |= not known.all()
        size = _typical(wide, known) if odd.any() and undefined[odd].all() else 0.0
        if odd.any() and not size:
            self.samples.append(_Sample(1.0, 1.0, float("inf"), want.size))
            return
        wide, made = np.where(known, wide, 0.0), np.where(known, made, 0.0)
        made[odd] = wide[odd] + size
        norm, distance = float(np.linalg.norm(wide)), float(np.linalg.norm(made - wide))
        self.samples.append(_Sample(float(np.abs(wide).max()), norm, distance, wide.size))
        self._add_channels(wide, made)

    def _add_channels(self, want: Array, got: Array) -> None:
        axes = {axis for axis in (1, want.ndim - 1) if want.ndim > 1 and want.shape[axis] > 1}
        axes -= set(self.places)
        if not axes:  # the whole output is the one channel
            want, got, axes = want.reshape(-1, 1), got.reshape(-1, 1), {1}
        for axis in axes:
            others = tuple(other for other in range(want.ndim) if other != axis)
            sums = _Channels(
                want.sum(others), np.square(want).sum(others), got.sum(others), np.square(got).sum(others),
                np.square(got - want).sum(others), want.min(others), want.max(others), want.size // want.shape[axis],
            )  # fmt: skip
            before = self.channels.get(axis, sums)
            if before is None or before.wanted.shape != sums.wanted.shape:
                self.channels[axis] = None  # of another size in each sample, it has no channels
            else:
                self.channels[axis] = sums if axis not in self.channels else before.plus(sums)

    def difference(self, name: str, uncut: _Output | None = None) -> Difference:
        """Return the largest error over the samples."""
        if not self.samples:
            return Difference(name, self.unequal / self.values if self.values else None)
        found = (self._sampled(uncut.samples if uncut else []), "")
        if np.isfinite(found[0]):
            for axis, sums in self.channels.items():
                error, part = sums.worst(uncut.channels.get(axis) if uncut else None) if sums else (0.0, "")
                if error > found[0]:
                    found = (error, f"{part} of axis {axis}" if sums and sums.wanted.size > 1 else STANDS)
        return Difference(name, *found, self.undefined)

    def _sampled(self, uncut: list[_Sample]) -> float:
        """Return the largest error of a sample; of few values, that of all samples, or of those of another size."""
        if max(sample.values for sample in self.samples) >= FEW:
            return max(sample.error(uncut) for sample in self.samples)
        parts = _parts(np.array([sample.norm for sample in self.samples]))
        apart = [[self.samples[index] for index in part] for part in parts if part.size >= FEWEST]
        whole = [_Sample.joined(uncut)] if uncut else []
        return max(_Sample.joined(group).error(whole) for group in (self.samples, *apart))


def _typical(want: Array, known: Array) -> float:
    """Return the root mean square of an output's finite values where others are NaN, else 0."""
    return float(np.sqrt(np.mean(np.square(want[known])))) if np.isnan(want).any() and known.any() else 0.0


def _missing(arrays: Mapping[str, Array]) -> Array:
    """Return what stands for an array that is not there: an empty one of the others' type."""
    return np.zeros(0, next(iter(arrays.values())).dtype) if arrays else np.zeros(0)


def _same_shape(want: Array, got: Array) -> tuple[Array, Array]:
    """Return both in the shape that holds both, what one of them lacks as zeros; flat where dimensions differ."""
    if want.ndim != got.ndim:
        want, got = want.reshape(-1), got.reshape(-1)
    shape = tuple(map(max, zip(want.shape, got.shape, strict=True)))
    both = tuple(np.zeros(shape, want.dtype) for _ in range(2))
    for whole, part in zip(both, (want, got), strict=True):
        whole[tuple(map(slice, part.shape))] = part
    return both[0], both[1]


def _parts(sizes: Array) -> list[NDArray[np.intp]]:
    """Return the channels in parts that are `APART`, without those that are noise."""
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > NOISE * sizes.max(initial=0.0)]
    steps = np.flatnonzero(sizes[order][:-1] > APART * sizes[order][1:]) + 1
    return [part for part in np.split(order, steps) if part.size]


def _named(channels: NDArray[np.intp]) -> str:
    """Return the channels in words: ``channels 4 to 11``, ``channel 3``."""
    first, last = int(channels[0]), int(channels[-1])
    if first == last:
        return f"channel {first}"
    return f"channels {first} to {last}" if channels.size == last - first + 1 else f"{channels.size} channels"
