"""What is asked of ``benchmarks/episode.py``, beside what it measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.episode_worker import Figures

# What is asked: a figure of one contender, the same of another (or another of its own), and the most of their ratio.
BARS = (
    ("episode, warm", "best", "warm", "llama.cpp Q4_0", "warm", 0.45),
    ("step, CPU time", "best", "cpu", "llama.cpp Q4_0", "cpu", 0.45),
    ("episode, from start", "best", "start", "llama.cpp Q4_0", "start", 0.35),
    ("passes for a token", "best", "passes", "", "", 0.45),
    ("demo: passes", "edgeglm demo", "passes", "", "", 0.45),
    ("peak RSS int8", "edgeglm int8", "peak", "earlier int8", "peak", 1.1),
    ("peak RSS int4", "edgeglm int4", "peak", "earlier int4", "peak", 1.1),
    ("demo: step", "edgeglm demo", "step", "earlier demo", "step", 0.7),
    ("demo: step, CPU", "edgeglm demo", "cpu", "earlier demo", "cpu", 0.7),
    ("demo: step, CPU", "edgeglm demo", "cpu", "edgeglm demo: no part", "cpu", 1.0),
    ("int8 token", "edgeglm int8", "short", "llama.cpp Q8_0", "short", 1 / 1.3),
    ("int8 token, long", "edgeglm int8", "long", "edgeglm int8", "short", 1.15),
    ("int4 token, long", "edgeglm int4", "long", "edgeglm int4", "short", 1.15),
    ("int4 token, long", "edgeglm int4", "long", "llama.cpp Q4_0", "long", 1 / 1.2),
)
VNNI = "int8 token"  # is asked where the processor has it


def bars(figures: Mapping[str, Figures], has_vnni: bool) -> Iterator[str]:
    """Yield a line for each bar whose contenders took part."""
    ours = [name for name in figures if name.startswith("edgeglm int") and ":" not in name]
    best = min(ours, key=lambda name: figures[name]["warm"], default="")
    for what, who, key, other, their_key, most in BARS:
        name = best if who == "best" else who
        if (what == VNNI and not has_vnni) or key not in figures.get(name, {}):
            continue
        if other and their_key not in figures.get(other, {}):
            continue
        ratio = figures[name][key] / (figures[other][their_key] if other else 1)
        against = f"of its {their_key}" if other == name else f"of {other}'s" if other else ""
        verdict = "met" if ratio <= most else "MISSED"
        yield f"{what:<20} {name:<13} {ratio:>5.2f} {against:<20} asked <= {most:.2f}  {verdict}"
