"""Bundles that a server has in memory: each is loaded when it is asked, and released for others or when idle."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.runtimes.core.heap import trim
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.release import Hooks, Idle, Uses
from edgeglm.runtimes.serve.tasks import Task


@dataclass
class Loaded:
    """A runner in memory, when it was asked last, and the requests that it answers.

    Attributes:
        hooks: What is undone when it is released.
        is_damaged: Whether a file is another by now: the bundle is opened anew as soon as nothing runs.
    """

    runner: Runner
    used: float
    tasks: list[Task] = field(default_factory=list)
    hooks: Hooks = field(default_factory=Hooks)
    is_damaged: bool = False

    @property
    def places(self) -> int:
        """The number of sequences that its decoder has."""
        return len(self.runner.slots.openers) if self.runner.slots else 1

    @property
    def active(self) -> list[Task]:
        """The requests that have a place."""
        return [task for task in self.tasks if not task.is_aside]

    def leave(self, user: str) -> None:
        """Release the buffers of answers to a session, and forget all images and earlier answers."""
        self.runner.states.leave(user)
        self.runner.pictures.clear()
        if self.runner.drafts:
            self.runner.drafts.clear()
        trim()


class Bundles:
    """Bundles by the names that clients know.

    Args:
        folders: Of the bundles.
        open_runner: Opens the runner of a folder.
        max_ram: The budget in bytes for all of them together, if there is one.
        idle: How long things are held.
        now: Returns the time in seconds.

    Attributes:
        loaded: Those in memory.
        uses: How often each is asked.
        released: Counts of what was released, by reason, and of errors in that.
        windows: Tokens of prompt and answer, once a bundle was loaded.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        open_runner: Callable[[Path], Runner],
        max_ram: int | None,
        idle: Idle,
        now: Callable[[], float],
    ) -> None:
        self.folders, self.open_runner, self.max_ram, self.now = dict(folders), open_runner, max_ram, now
        self.described: dict[str, Bundle] = {name: load_bundle(folder) for name, folder in self.folders.items()}
        self.uses = {name: Uses(idle) for name in self.folders}
        self.released = Counter[str]()
        self.windows: dict[str, int] = {}
        self.loaded: dict[str, Loaded] = {}
        self._peaks = dict[str, int]()  # with a whole window, of those that were loaded

    @property
    def tasks(self) -> list[Task]:
        """The requests that any of them answers."""
        return [task for loaded in [*self.loaded.values()] for task in loaded.tasks]

    def pool(self) -> int:
        """Return how many tokens all sequences may have; 0 without a budget."""
        return sum(loaded.runner.states.room() or 0 for loaded in [*self.loaded.values()])

    def taken(self) -> int:
        """Return how many tokens requests have room for, with those that are set aside."""
        return sum(loaded.runner.states.taken for loaded in [*self.loaded.values()])

    def held(self) -> int:
        """Return the bytes of all buffers of keys and values, also of requests that have ended."""
        return sum(loaded.runner.states.held_bytes for loaded in [*self.loaded.values()])

    def has_room(self, name: str) -> bool:
        """Return whether a bundle is in memory, or could be without one that answers now."""
        if name in self.loaded:
            return not self.loaded[name].is_damaged or not self.loaded[name].tasks
        busy = [other for other, loaded in self.loaded.items() if loaded.tasks]
        return not busy or self.max_ram is None or self.peak(name) + sum(map(self.peak, busy)) <= self.max_ram

    def take(self, name: str) -> Loaded:
        """Return a bundle, which is loaded if need be, others released for it. Raises as `Runner`."""
        if name in self.loaded and self.loaded[name].is_damaged and not self.loaded[name].tasks:
            self.release([name], "damage")
        if name not in self.loaded:
            self._make_room(name)
            runner = self.open_runner(self.folders[name])
            runner.states.room, runner.pictures.spare = partial(self._room, name), self._spare
            self.loaded[name], self.windows[name] = Loaded(runner, 0.0), runner.window.tokens
            self.loaded[name].hooks.add(trim)
            self.loaded[name].hooks.add(gc.collect)  # sessions of an engine refer to each other
            self.loaded[name].hooks.add(runner.close)
            for loaded in self.loaded.values():
                loaded.runner.states.fit()
        self.loaded[name].used = self.now()
        return self.loaded[name]

    def peak(self, name: str) -> int:
        """Return the predicted peak of a bundle in bytes: with a whole window, or with what its requests have."""
        if loaded := self.loaded.get(name):
            self._peaks[name] = loaded.runner.window.peak()
            return loaded.runner.window.peak(loaded.runner.states.taken) + loaded.runner.pictures.beyond
        known = self.described[name].manifest.predicted.device_peak_rss_bytes
        return self._peaks.get(name, max(known.values()))

    def _room(self, name: str) -> int | None:
        """Return how many tokens the requests of a bundle may have together beside the other bundles."""
        loaded = self.loaded.get(name)
        if self.max_ram is None or loaded is None:
            return None
        others = sum(self.peak(other) for other in [*self.loaded] if other != name)
        return loaded.runner.window.room(self.max_ram - others)

    def _spare(self) -> int | None:
        """Return the bytes of the budget beyond the predicted peaks, if there is one."""
        return None if self.max_ram is None else max(0, self.max_ram - sum(map(self.peak, [*self.loaded])))

    def release(self, names: Iterable[str], reason: str) -> None:
        """Release some of them; what fails in one keeps no other in memory."""
        for name in [*names]:
            self.released["error"] += self.loaded.pop(name).hooks.run()
            self.released[reason] += 1

    def rest(self) -> None:
        """Give free memory back to the system, between two steps."""
        hooks = Hooks()
        hooks.add(trim)
        hooks.add(gc.collect)
        for loaded in self.loaded.values():
            hooks.add(loaded.runner.rest)
            hooks.add(loaded.runner.grammars.forget)
        self.released["error"] += hooks.run()

    def _make_room(self, name: str) -> None:
        """Release those that were asked least recently until the predicted peaks fit the budget together."""
        while self.max_ram is not None and sum(map(self.peak, (name, *self.loaded))) > self.max_ram:
            for loaded in self.loaded.values():
                loaded.runner.pictures.held.release()
            if sum(map(self.peak, (name, *self.loaded))) <= self.max_ram:
                return
            idle = [other for other, loaded in self.loaded.items() if not loaded.tasks]
            if not idle:
                return  # it is alone, and its window is what the budget has room for
            self.release([min(idle, key=lambda other: self.loaded[other].used)], "room")
