"""The server as a program: ``edgeglm serve`` and ``run.pyz serve`` are this."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

import uvicorn

from edgeglm.bundle import load_bundle
from edgeglm.errors import UsageError
from edgeglm.runtimes.core.grammars import AUTO, read_grammar
from edgeglm.runtimes.core.keep_options import add_keep_options, read_keep
from edgeglm.runtimes.core.runner import Runner
from edgeglm.runtimes.serve.app import Service
from edgeglm.runtimes.serve.budget import divide
from edgeglm.runtimes.serve.connections import ACCEPTED, BACKLOG, Connection, Server
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import stopping
from edgeglm.runtimes.serve.release import Idle
from edgeglm.runtimes.serve.schedule import WEIGHTS
from edgeglm.units import parse_size

# Clients keep a connection, many of them 5 seconds: whoever closes first must not be the server.
KEEP_ALIVE_SECONDS = 75
MAX_KEYS_BYTES = 1 << 20
# In which clients whose requests are not finished may read that.
LAST_SECONDS = 2


def serve(arguments: Sequence[str] | None = None, bundle: Path | None = None) -> None:
    """Run the server until a signal ends it; SIGTERM lets running requests finish.

    Args:
        arguments: Of the command line, without the program's name.
        bundle: The bundle, where the command line need not name one.

    Raises:
        UsageError: A wrong option, or the address is taken.
        EdgeglmError: A bundle that cannot be run, as `Runner` says.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    options = _parser(bundle).parse_args(arguments)
    keys = read_keys(options.api_key_file) if options.api_key_file else ()
    folders = named(options.bundles)
    budget = None if options.max_ram is None else parse_size(options.max_ram, "--max-ram")
    manifests = [load_bundle(folder).manifest for folder in folders.values()]
    max_ram, most = divide(budget, manifests, options.context, is_shared=options.slots > 1)
    keep, grammar = read_keep(options.prefix, options.keep), read_grammar(options.grammar)
    make = partial(
        Runner,
        threads=options.threads,
        context=options.context,
        max_ram=max_ram,
        keep=keep,
        masks=options.mask,
        slots=options.slots,
    )

    def open_runner(folder: Path) -> Runner:
        runner = make(folder)
        runner.grammars.default = grammar
        runner.grammars.find(None)  # a wrong one is an error of the start
        runner.warm()
        if runner.prefixes.foreign:
            print(f"edgeglm: {runner.bundle.folder.name}: {runner.prefixes.foreign}", file=sys.stderr)
        return runner

    with _listening(options.host, options.port) as listener:
        engine = Engine(
            folders,
            open_runner,
            waiting=options.queue,
            idle=options.idle,
            max_ram=max_ram,
            weights={**WEIGHTS, **options.shares},
        )
        try:
            engine.start()
            is_local = ip_address(listener.getsockname()[0]).is_loopback
            service = Service(engine, keys, options.cors, options.allowed_media_domains, most, is_local=is_local)
            interrupted = asyncio.run(_run(service, listener, options.drain))
        finally:
            engine.stop()
    if interrupted:
        raise KeyboardInterrupt


async def _run(service: Service, listener: socket.socket, drain: int) -> bool:
    """Serve until a signal comes; return whether it was Ctrl-C."""
    config = uvicorn.Config(
        # Its warnings are of what clients send, and anyone could fill a log with them.
        service.app(), http=Connection, log_level="error", access_log=False, lifespan="off", server_header=False,
        backlog=ACCEPTED,
        ws="none", timeout_graceful_shutdown=drain + LAST_SECONDS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server, came, loop = Server(config), list[int](), asyncio.get_running_loop()

    def end(number: int) -> None:
        server.end()
        loop.call_later(0 if came else drain, abandon, service.engine)
        if came:
            loop.call_later(LAST_SECONDS, setattr, server, "force_exit", True)
        came.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    host, port, *_ = listener.getsockname()
    address = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(service.engine.bundles.folders)} at http://{address}:{port}/v1", flush=True)
    await server.serve(sockets=[listener])
    return came[:1] == [signal.SIGINT]


def abandon(engine: Engine) -> None:
    """Tell the clients of all that waits and runs that the server ends before their answers."""
    running = [getattr(task, "job", None) for task in engine.running]  # without those that end meanwhile
    for job in [*engine.waiting, *filter(None, running)]:
        job.emit(stopping())
        job.cancelled = True


def named(bundles: Sequence[Path]) -> dict[str, Path]:
    """Return the bundles by their folders' names.

    Raises:
        UsageError: Two have one name.
    """
    names: dict[str, Path] = {}
    for bundle in bundles:
        name = bundle.resolve().name
        if name in names:
            raise UsageError(bundle, f"has the name of {names[name]}, and clients choose by name", "rename the folder")
        names[name] = bundle
    return names


def read_keys(path: Path) -> tuple[str, ...]:
    """Read API keys, one a line; blank lines and those that begin with ``#`` are none.

    Raises:
        UsageError: The file cannot be read, or has no key.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin with a mark of the byte order
            lines = file.read(MAX_KEYS_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "it is no UTF-8")
        raise UsageError(path, f"cannot be read: {why}", "give a text file with a key a line") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise UsageError(path, "has no key", "write one a line")
    return keys


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen before anything is loaded, so that an address which is taken costs no loading."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError("--host", f"{host} is no address: {error.strerror}", "give one of this machine") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            why = f"{host}:{port} cannot be listened on: {error.strerror}"
            raise UsageError("--port", why, "give another one, or 0 for any that is free") from error
        yield listener


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the one line of every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("serve", message, f"run {self.prog} --help")


def _parser(bundle: Path | None) -> argparse.ArgumentParser:
    prog = "python run.pyz serve" if bundle else "edgeglm serve"
    parser = _Parser(prog=prog, description="Serve bundles to OpenAI-compatible clients.")
    if bundle:
        parser.set_defaults(bundles=[bundle])
    else:
        parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="the bundles' folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on, 0 for any (default: 8000)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys that clients need, one a line")
    parser.add_argument(
        "--cors", action="append", default=[], type=_origin, metavar="ORIGIN", help="a page that browsers let ask, or *"
    )
    parser.add_argument(
        "--allowed-media-domains", action="append", default=[], type=_host, metavar="HOST",
        help="a host from which images are fetched, or * for any public one (default: nothing is fetched)",
    )  # fmt: skip
    parser.add_argument("--max-ram", metavar="SIZE", help="budget of all bundles together, such as 500MiB")
    parser.add_argument("--context", type=_count, metavar="N", help="maximum length of prompt and answer together")
    parser.add_argument("--threads", type=_count, metavar="N", help="engine threads (default: all cores)")
    add_keep_options(parser)
    parser.add_argument(
        "--slots", type=_count, default=1, metavar="N", help="answer up to N requests at once (default: 1)"
    )
    parser.add_argument("--queue", type=_count, default=64, metavar="N", help="most requests that wait (default: 64)")
    parser.add_argument(
        "--shares",
        type=partial(_pairs, WEIGHTS),
        default={},
        metavar="KIND=SHARE,…",
        help="shares of the engine's time while requests of several kinds wait (default: "
        f"{','.join(f'{kind}={share:g}' for kind, share in WEIGHTS.items())})",
    )
    parser.add_argument(
        "--idle",
        type=_idle,
        default=Idle(),
        metavar="SECONDS|often=S,rare=S,session=S",
        help="release a bundle that nobody asks, by how often it was asked, and users' sessions (default: "
        "often=30,rare=5,session=300)",
    )
    parser.add_argument(
        "--drain", type=_count, default=30, metavar="SECONDS", help="time to finish on SIGTERM (default: 30)"
    )
    parser.add_argument(
        "--grammar",
        default=AUTO,
        metavar="auto|actions|off|FILE",
        help="what answers to chats are held to: a grammar in Lark or a JSON schema (default: what each bundle says)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _idle(text: str) -> Idle:
    if "=" in text:
        return Idle(**_pairs(("often", "rare", "session"), text))
    if not _is_positive(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, nor often=…,rare=…,session=…")
    return Idle(often=float(text), rare=float(text), session=float(text))


def _pairs(names: Collection[str], text: str) -> dict[str, float]:
    pairs = dict[str, float]()
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in names or not _is_positive(number):
            known, given = ", ".join(f"{name}=…" for name in names), f" of {text!r}" if part != text else ""
            raise argparse.ArgumentTypeError(f"{part!r}{given} is none of {known}, with a number above 0")
        pairs[name] = float(number)
    return pairs


def _is_positive(text: str) -> bool:
    return bool(re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII) and float(text))


def _host(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[0-9A-Za-z.:_-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host, such as images.example.com, nor *")
    return text


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin, such as http://localhost:3000, nor *")
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)
