"""``edgeglm burn-test``: a bundle on a device, or an emulated one, under its memory limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from edgeglm.bundle import Bundle, load_bundle, verify_bundle
from edgeglm.cli.output import json_option, print_json
from edgeglm.cli.via import ViaCommand, python_option
from edgeglm.errors import AccuracyError, BudgetError
from edgeglm.export.burn.answers import NEAR, RUNNER, Pair, ask, check_runner, files, prove, questions
from edgeglm.export.burn.device import BUNDLE, Device
from edgeglm.export.burn.ways import open_device
from edgeglm.machine import describe_kernels
from edgeglm.runtimes.core.progress import progress_line
from edgeglm.units import format_size, parse_size

HEADINGS = ("SCREEN", "HERE", "THERE", "SAME", "FIRST TOKEN", "TOKENS/S", "PEAK RSS")
ALIKE = f"alike: a tap in its target, or within {NEAR / 1000:.0%} of the screen"
WIDTH = 48  # of an answer
Proof = dict[str, Any] | None  # what the self-test printed


@click.command("burn-test", cls=ViaCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--via", default="qemu", show_default=True, metavar="BACKEND", help="qemu, ssh HOST, or adb.")
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Screenshots.")
@click.option("--max-ram", metavar="SIZE", help="The runner's memory there (default: the profile's usable).")
@python_option
@json_option
def command(bundle: Path, via: str, limit: int, max_ram: str | None, python: str, as_json: bool) -> None:
    """Run a bundle on a device, and compare its answers with this machine's."""
    opened = load_bundle(bundle)
    verify_bundle(opened)
    profile = opened.manifest.profile
    memory = parse_size(max_ram, "--max-ram") if max_ram is not None else int(profile.memory.usable.value)
    device = open_device(via, python, opened)
    asked = questions(opened, limit)
    with device:
        everything = files(opened, asked)
        first = [item for item in everything if item[1] == f"{BUNDLE}/{RUNNER}"]
        device.push(first)
        check_runner(device)  # before gigabytes are on their way
        with progress_line(f"{device.title}: copying") as show:
            show(0)
            device.push([item for item in everything if item not in first])
        pairs = []
        with progress_line(f"{device.title}: running") as show:
            for pair in ask(device, opened, asked, memory):
                pairs.append(pair)
                show(len(pairs) / len(asked))
            proof = prove(device, opened, memory)
    if as_json:
        print_json(_summary(bundle, opened, device, memory, pairs, proof))
    else:
        click.echo("\n".join(_lines(device, profile.name, memory, pairs, proof)))
    _judge(bundle, device, memory, pairs, proof)


def _judge(bundle: Path, device: Device, memory: int, pairs: Sequence[Pair], proof: Proof = None) -> None:
    """Raise AccuracyError for the first other answer or a failed self-test, BudgetError for too high a peak."""
    for number, pair in enumerate(pairs, start=1):
        if not pair.alike:
            there, here = _brief(pair.there.said), _brief(pair.here.said)
            why = f"answers {_screen(number, pair)} by {there} on {device.title}, and by {here} here"
            raise AccuracyError(bundle, why, "export it in a higher precision, or validate it there")
    if proof and not proof["passed"]:
        why = f"fails its self-test on {device.title}: {_agreed(proof)}"
        raise AccuracyError(bundle, why, "export it in a higher precision, or validate it there")
    peak = _peak(pairs, proof)
    if not device.emulated and peak > memory:
        why = f"took {format_size(peak)}, more than {format_size(memory)}"
        raise BudgetError(device.title, why, "export it in a smaller precision, or for a shorter context")


def _peak(pairs: Sequence[Pair], proof: Proof) -> int:
    return max(int(result["peak_rss_bytes"]) for result in (*(pair.there.result for pair in pairs), proof) if result)


def _agreed(proof: dict[str, Any]) -> str:
    return f"{proof['agreement']:.1%} of the sure tokens are the original's"


def _summary(
    bundle: Path, opened: Bundle, device: Device, memory: int, pairs: Sequence[Pair], proof: Proof
) -> dict[str, object]:
    peak, right = _peak(pairs, proof), all(pair.alike for pair in pairs) and (proof is None or proof["passed"])
    return {
        "bundle": str(bundle),
        "target": opened.manifest.profile.name,
        "device": device.title,
        "emulated": device.emulated,
        "memory_limit_bytes": memory,
        "peak_rss_bytes": peak,
        "self_test": proof and {**proof, "bundle": str(bundle)},
        "answers": [
            {
                "prompt": pair.question.prompt,
                "picture": pair.question.picture.name if pair.question.picture else None,
                "same": pair.same,
                "alike": pair.alike,
                "here": pair.here.result,
                "there": pair.there.result,
            }
            for pair in pairs
        ],
        "passed": right and (device.emulated or peak <= memory),
    }


def _lines(device: Device, profile: str, memory: int, pairs: Sequence[Pair], proof: Proof) -> Iterator[str]:
    rows = [HEADINGS, *(_row(number, pair) for number, pair in enumerate(pairs, start=1))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    yield ""
    yield f"device   {device.title}"
    alike = sum(pair.alike and not pair.same for pair in pairs)
    yield f"answers  {sum(pair.same for pair in pairs)} of {len(pairs)} as on this machine" + (
        f", {alike} {ALIKE}" if alike else ""
    )
    if proof:
        yield f"proof    self-test {'passed' if proof['passed'] else 'FAILED'}: {_agreed(proof)}"
        yield f"int8     {describe_kernels(proof['int8_kernels'])}"
    of_what = " with the emulator's own" if device.emulated else ""
    yield f"memory   peak RSS {format_size(_peak(pairs, proof))}{of_what}; limit {format_size(memory)} for {profile}"


def _row(number: int, pair: Pair) -> tuple[str, ...]:
    there = pair.there.result
    return (
        _screen(number, pair),
        _brief(pair.here.said),
        _brief(pair.there.said),
        "yes" if pair.same else "alike" if pair.alike else "NO",
        f"{there['time_to_first_token_ms']:.0f} ms",
        f"{there['decode_tokens_per_second']:.1f}",
        format_size(there["peak_rss_bytes"]),
    )


def _screen(number: int, pair: Pair) -> str:
    return pair.question.picture.name if pair.question.picture else f"prompt {number}"


def _brief(said: object) -> str:
    """Return an action as a call, a text by its beginning."""
    if isinstance(said, dict):
        rest = ", ".join(f"{name}={value}" for name, value in said.items() if name != "action")
        text = f"{said['action']} {rest}".strip()
    else:
        text = " ".join(str(said).split()) or "nothing"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
