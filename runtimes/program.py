"""The runner as a program: ``edgeglm run``, ``python -m edgeglm.runtimes`` and ``python BUNDLE/run.pyz`` are this."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from edgeglm.actions import Action
from edgeglm.errors import EdgeglmError, UsageError
from edgeglm.runtimes.runner import Answer, Runner
from edgeglm.runtimes.sampling import Sampling
from edgeglm.units import format_size, parse_size

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, bundle: Path | None = None) -> int:
    """Run the program and return its exit code; a failure is one line on stderr.

    Args:
        arguments: Of the command line, without the program's name.
        bundle: The bundle, where the command line need not name it.
    """
    try:
        run(arguments, bundle)
    except EdgeglmError as error:
        print(f"edgeglm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edgeglm: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(arguments: Sequence[str] | None = None, bundle: Path | None = None) -> None:
    """The same, with errors as exceptions."""
    options = _parser(bundle).parse_args(arguments)
    budget = parse_size(options.max_ram) if options.max_ram else None
    runner = Runner(options.bundle, options.threads)
    generation = runner.bundle.manifest.generation
    warmth = generation.temperature if options.temperature is None else options.temperature

    def show(text: str) -> None:
        if not options.json:
            print(text, end="", flush=True)

    answer = runner.answer(
        options.prompt,
        options.image,
        max_new_tokens=options.max_new_tokens,
        max_ram=budget,
        sampling=Sampling(warmth, generation.top_p, generation.repetition_penalty),
        seed=options.seed,
        show=show,
    )
    print(json.dumps(_summary(answer), indent=2) if options.json else "\n".join(["", "", *_report(answer)]))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the one line of every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("run", message, "run edgeglm run --help")


def _parser(bundle: Path | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="edgeglm run", description="Answer a prompt from a bundle, and say what it took.")
    if bundle:
        parser.set_defaults(bundle=bundle)
    else:
        parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--image", type=Path, help="a picture: WebP, PNG or JPEG")
    parser.add_argument("--max-new-tokens", type=_count, default=128, metavar="N", help="longest answer (default: 128)")
    parser.add_argument("--max-ram", metavar="SIZE", help="refuse what would take more, such as 500MiB")
    parser.add_argument("--threads", type=_count, metavar="N", help="of the engine (default: all cores)")
    parser.add_argument("--temperature", type=_temperature, metavar="T", help="0 is greedy (default: the bundle's)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _action(action: Action | None) -> dict[str, object] | None:
    return {"action": action.type, **action.arguments} if action else None


def _summary(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "action": _action(answer.action),
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.generated_tokens,
        "time_to_first_token_ms": round(answer.time_to_first_token_ms, 1),
        "decode_tokens_per_second": round(answer.decode_tokens_per_second, 1),
        "peak_rss_bytes": answer.peak_rss_bytes,
        "state_bytes": answer.state_bytes,
        "phases": [asdict(phase) for phase in answer.phases],
        "modules": [asdict(module) for module in answer.modules],
    }


def _report(answer: Answer) -> list[str]:
    action = json.dumps(_action(answer.action), ensure_ascii=False)
    lines = [f"action  {action}"] if answer.action else []
    lines += [f"{'PHASE':<16}{'MS':>8}  RSS"]
    lines += [f"{phase.name:<16}{phase.ms:>8.1f}  {format_size(phase.rss_bytes)}" for phase in answer.phases]
    return [
        *lines,
        f"tokens  {answer.prompt_tokens} of prompt, {answer.generated_tokens} generated; first after "
        f"{answer.time_to_first_token_ms:.0f} ms, then {answer.decode_tokens_per_second:.1f} a second",
        f"memory  peak RSS {format_size(answer.peak_rss_bytes)}; keys and values {format_size(answer.state_bytes)}",
    ]
