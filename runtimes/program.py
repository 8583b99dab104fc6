"""The runner as a program: ``edgeglm run``, ``python -m edgeglm.runtimes`` and ``python BUNDLE/run.pyz`` are this."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

from edgeglm.actions import Action
from edgeglm.errors import BudgetError, UsageError, printable
from edgeglm.memory import MemoryCurve
from edgeglm.runtimes.core.answer import Answer, Loaded
from edgeglm.runtimes.core.conversation import Conversation
from edgeglm.runtimes.core.grammars import AUTO, read_grammar
from edgeglm.runtimes.core.keep_options import add_keep_options, read_keep
from edgeglm.runtimes.core.memory_plot import check_format, draw_memory
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.core.sampling import Sampling
from edgeglm.units import format_size, parse_size

# More than any device has cores; each is a thread with a stack of its own.
MAX_THREADS = 256
# What of the sampling has an option of its own.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def run(arguments: Sequence[str] | None = None, bundle: Path | None = None) -> None:
    """Run the program; `edgeglm.exits.run_program` makes an exit code and a line of what it raises.

    Args:
        arguments: Of the command line, without the program's name.
        bundle: The bundle, where the command line need not name it.
    """
    options = _parser(bundle).parse_args(arguments)
    _check(options)
    options.grammar = read_grammar(options.grammar)
    with MemoryCurve() if options.memory_plot else nullcontext() as curve:
        runner = Runner(
            options.bundle,
            options.threads,
            context=options.context,
            max_ram=None if options.max_ram is None else parse_size(options.max_ram, "--max-ram"),
            low_rss=options.low_rss,
            keep=read_keep(options.prefix, options.keep),
            masks=options.mask,
        )
        with runner:
            runner.grammars.default = options.grammar
            if options.self_test:
                _self_test(runner, as_json=options.json)
                return
            answer = _converse(runner, options)
    if answer and options.json:
        print(json.dumps(summary(answer), indent=2))
    elif answer:
        print("\n".join(report(answer)))
    if answer and curve:
        draw_memory(options.memory_plot, curve.points, answer.phases)


def _check(options: argparse.Namespace) -> None:
    """Refuse wrong options before anything is loaded."""
    if options.memory_plot:
        check_format(options.memory_plot)
    if options.self_test:
        for name in ("prompt", "image", "memory_plot"):
            if getattr(options, name) is not None:
                raise UsageError(
                    "--self-test", f"asks prompts of its own, without --{name}".replace("_", "-"), "leave it out"
                )
        return
    if options.prompt is not None:
        return
    if options.json or options.memory_plot or not sys.stdin.isatty():
        raise UsageError("--prompt", "is needed where no one can chat", "say what to do")


def _converse(runner: Runner, options: argparse.Namespace) -> Answer | None:
    """Return one answer; or a chat, of which the last."""
    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    sampling = replace(Sampling.of(runner.bundle.manifest.generation), **given)
    begun, limit = runner.prefixes.messages, options.max_new_tokens
    conversation = Conversation(runner, prefix=begun, max_new_tokens=limit, sampling=sampling, seed=options.seed)
    if options.prompt is not None:
        answer = conversation.ask(options.prompt, options.image, _hide if options.json else _show)
        print(end="" if options.json else "\n\n")
        return answer
    return _chat(conversation, options.image)


def _chat(conversation: Conversation, image: Path | None) -> Answer | None:
    """Turn after turn from the terminal, up to its end of file; the picture goes with the first."""
    print("Ctrl-D ends the chat.", file=sys.stderr)
    answer = None
    with suppress(EOFError):
        while True:
            text = input("> ")
            if not text.strip():
                continue
            try:
                answer = conversation.ask(text, None if conversation.turns else image, _show)
                print("\n")
            except BudgetError as error:  # a shorter turn may fit
                print(f"edgeglm: {error}", file=sys.stderr)
    print()
    return answer


def _self_test(runner: Runner, *, as_json: bool) -> None:
    """Print the verdict. Raises AccuracyError where it is bad."""
    from edgeglm.runtimes.core import self_test  # noqa: PLC0415 (takes time, and is rarely needed)

    verdict = self_test.run_self_test(runner)
    if as_json:
        print(json.dumps(self_test.summarize(runner.bundle, verdict), indent=2))
    else:
        print("\n".join(self_test.describe(verdict)))
    self_test.check(runner.bundle, verdict)


def _show(text: str) -> None:
    """Print a model's text; on a terminal, which obeys control characters, escaped."""
    plain = (
        "".join(character if character in "\n\t" else printable(character) for character in text)
        if sys.stdout.isatty()
        else text
    )
    print(plain, end="", flush=True)


def _hide(text: str) -> None:
    pass


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the one line of every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("run", message, f"run {self.prog} --help")


def _parser(bundle: Path | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="edgeglm run", description="Answer a prompt from a bundle, and report time and memory.")
    if bundle:
        parser.prog = "python run.pyz"
        parser.set_defaults(bundle=bundle)
    else:
        parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--prompt", help="the prompt (default: a chat, on a terminal)")
    parser.add_argument("--self-test", action="store_true", help="answer the bundle's own prompts, and compare")
    parser.add_argument("--image", type=Path, help="an image: WebP, PNG or JPEG")
    parser.add_argument(
        "--max-new-tokens", type=_count, default=128, metavar="N", help="maximum length of the answer (default: 128)"
    )
    parser.add_argument("--context", type=_count, metavar="N", help="maximum length of prompt and answer together")
    parser.add_argument("--max-ram", metavar="SIZE", help="refuse a request that needs more, such as 500MiB")
    parser.add_argument("--low-rss", action="store_true", help="keep packed weights in a file, made on first use")
    add_keep_options(parser)
    parser.add_argument("--threads", type=_threads, metavar="N", help="engine threads (default: all cores)")
    parser.add_argument("--temperature", type=_number, metavar="T", help="0 is greedy (default: the bundle's)")
    parser.add_argument(
        "--top-k",
        type=_natural,
        metavar="N",
        help="sample from the N likeliest tokens, 0 for all (default: the bundle's)",
    )
    parser.add_argument(
        "--top-p",
        type=_share,
        metavar="P",
        help="sample from the likeliest tokens with this probability together (default: the bundle's)",
    )
    parser.add_argument(
        "--min-p",
        type=_part,
        metavar="P",
        help="minimum share of the likeliest token's probability (default: the bundle's)",
    )
    parser.add_argument("--repetition-penalty", type=_positive, metavar="R", help="1 is none (default: the bundle's)")
    parser.add_argument("--seed", type=_natural, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--grammar",
        default=AUTO,
        metavar="auto|actions|off|FILE",
        help="what an answer is held to: a grammar in Lark (*.lark) or a JSON schema (*.json) (default: the bundle's)",
    )
    parser.add_argument("--memory-plot", type=Path, metavar="FILE", help="draw memory over time, as .png or .svg")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _threads(text: str) -> int:
    count = _count(text)
    if count > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{count} is more than {MAX_THREADS}")
    return count


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _positive(text: str) -> float:
    if not _number(text):
        raise argparse.ArgumentTypeError("must be greater than 0")
    return float(text)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, and at most 1")
    return float(text)


def _part(text: str) -> float:
    if _number(text) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return float(text)


def _action(action: Action | None) -> dict[str, object] | None:
    return {"action": action.type, **action.arguments} if action else None


def summary(answer: Answer) -> dict[str, object]:
    """Return what ``--json`` prints, as docs/cli.md says."""
    return {
        "text": answer.text,
        "action": _action(answer.action),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "prefilled_tokens": answer.prefilled_tokens,
        "restored_tokens": answer.restored_tokens,
        "generated_tokens": answer.generated_tokens,
        "model_passes": answer.model_passes,
        "time_to_first_token_ms": round(answer.time_to_first_token_ms, 1),
        "decode_tokens_per_second": round(answer.decode_tokens_per_second, 1),
        "peak_rss_bytes": answer.peak_rss_bytes,
        "state_bytes": answer.state_bytes,
        "phases": [_rounded(asdict(phase)) for phase in answer.phases],
        "modules": [_rounded(asdict(module)) for module in answer.modules],
        "notes": answer.notes,
    }


def _rounded(values: dict[str, object]) -> dict[str, object]:
    """Return the times to a tenth of a millisecond."""
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}


def report(answer: Answer) -> list[str]:
    """Return the table behind an answer."""
    action = json.dumps(_action(answer.action), ensure_ascii=False)
    lines = [f"action  {action}"] if answer.action else []
    if answer.finish_reason == "length":
        lines = [f"cut off after {answer.generated_tokens} tokens; raise --max-new-tokens", *lines]
    lines += [f"{'PHASE':<16}{'MS':>8}  RSS"]
    lines += [f"{phase.name:<16}{phase.ms:>8.1f}  {format_size(phase.rss_bytes)}" for phase in answer.phases]
    lines += [f"{'MODULE':<16}{'SIZE':<11}LOADED AND UNLOADED (MS)", *map(_stay, answer.modules)]
    reused = answer.prompt_tokens - answer.prefilled_tokens
    known = f", {reused} of them {'restored' if answer.restored_tokens else 'known'}" if reused else ""
    return [
        *lines,
        f"tokens  {answer.prompt_tokens} of prompt{known}, "
        f"{answer.generated_tokens} generated in {answer.model_passes} passes; first after "
        f"{answer.time_to_first_token_ms:.0f} ms, then {answer.decode_tokens_per_second:.1f} a second",
        f"memory  peak RSS {format_size(answer.peak_rss_bytes)}; keys and values {format_size(answer.state_bytes)}",
        *(f"note    {module.note}" for module in answer.modules if module.note),
        *(f"note    {printable(note)}" for note in answer.notes),
    ]


def _stay(module: Loaded) -> str:
    until = "" if module.unloaded is None else f" to {module.unloaded:.0f}"
    return f"{module.name:<16}{format_size(module.bytes):<11}{module.loaded:.0f}{until}"
