"""``notify chaos``: break a cluster under load, and check that every message was delivered once, in order, or reported as lost."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, cast

from notify.cli.terminal import (
    CommandError,
    Terminal,
    duration,
    identifier,
    read_file,
    secret,
    secret_options,
)

if TYPE_CHECKING:
    from notify.chaos.plan import Fault
    from notify.chaos.report import Report
    from notify.chaos.target import Target

SUMMARY = "break a cluster under load, and check whether its promise holds"
DESCRIPTION = """\
Publish numbered messages to clients that read them, inject faults meanwhile, and report which messages were published,
acknowledged, delivered, lost, duplicated, out of order, sent to the wrong client, or reported lost, and how long it
took to notice each fault and to catch up. The exit status is 0 if the promise held, 1 if it broke, and 2 if the run
shows neither.

Without --url, the command starts, breaks and removes a cluster of three NATS servers and three nodes on 127.0.0.1;
this needs the program nats-server. Faults are drawn from --seed or given with --fault: kill, pause, resume, drain,
restart or start a server (node-1 to node-3, nodes, nats-1 to nats-3, nats); cut, silence, stall or release connections
(clients; link-1 to link-3, links: the nodes' connections to NATS).

With --url, the command runs against your own deployment, and a fault is a shell command on this machine. Use a
deployment that nobody depends on: messages are published to the chats that you name, and to the users of the tokens."""
EXAMPLES = """\
  notify chaos
  notify chaos --seed 7 --seconds 1m --html chaos.html
  notify chaos --fault 'at=5s kill node-2 / undo=9s start node-2' --fault 'at=7s cut clients'
  export NOTIFY_API_KEY=...
  notify chaos --url wss://stage.example/ws --api-url http://10.0.0.1:8081 --tokens tokens --chat 1 --fault 'at=9s ./break / undo=15s ./mend'"""

_SEEDS = 10_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--seconds",
        type=duration,
        default=30.0,
        metavar="TIME",
        help="how long the load lasts (default: 30s)",
    )
    parser.add_argument("--clients", type=int, default=12, metavar="N", help="clients (default: 12)")
    parser.add_argument(
        "--rate", type=float, default=50.0, metavar="N", help="messages per second in total (default: 50)"
    )
    parser.add_argument(
        "--settle",
        type=duration,
        default=60.0,
        metavar="TIME",
        help="how long all clients may take to catch up after the load (default: 60s)",
    )
    parser.add_argument(
        "--fault",
        action="append",
        metavar="FAULT",
        help="'at=TIME COMMAND' or 'at=TIME COMMAND / undo=TIME COMMAND'; may be repeated",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with a plot")
    parser.add_argument("--quiet", "-q", action="store_true", help="print nothing while it runs")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed from which the built-in set's faults are drawn (default: random)",
    )
    parser.add_argument(
        "--nats-server",
        default="nats-server",
        metavar="FILE",
        help="the nats-server program for the built-in set",
    )
    parser.add_argument(
        "--logs", metavar="FOLDER", help="keep the logs of the built-in set's servers in this folder"
    )
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="where clients connect to your deployment; may be repeated",
    )
    parser.add_argument(
        "--api-url",
        action="append",
        metavar="URL",
        help="its HTTP API; repeat the option so that one of them may be down",
    )
    parser.add_argument(
        "--tokens", metavar="FILE", help="the clients' tokens, one per line; the clients take them in turn"
    )
    parser.add_argument(
        "--workspace", type=identifier, metavar="ID", help="the workspace of the tokens (default: 1)"
    )
    parser.add_argument(
        "--chat", type=identifier, action="append", metavar="ID", help="a chat; may be repeated"
    )
    secret_options(parser, "api-key", "the API key", "NOTIFY_API_KEY")


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises :class:`CommandError`, always with status 2, because 1 means a broken promise."""
    from notify.chaos import report
    from notify.chaos.page import page

    try:
        _bounds(options)
        seed, faults = _faults(options)
        files = [Path(name) for name in (options.json, options.html) if name is not None]
        for file in files:
            _touch(file)
        found = _try(options, terminal, seed, faults)
    except CommandError as error:
        raise CommandError(str(error), 2) from None
    if options.json is not None:
        import msgspec

        Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if options.html is not None:
        Path(options.html).write_text(page(found), "utf-8")
    terminal.out(report.text(found))
    return report.STATUS[found.verdict]


def _bounds(options: argparse.Namespace) -> None:
    from notify.chaos.trial import MOST_CLIENTS, MOST_DELIVERIES, MOST_RATE, MOST_SECONDS

    for name, least, most in (
        ("clients", 1, MOST_CLIENTS),
        ("rate", 1, MOST_RATE),
        ("seconds", 1, MOST_SECONDS),
        ("settle", 0, MOST_SECONDS),
    ):
        if not least <= getattr(options, name) <= most:
            raise CommandError(f"--{name} must be from {least} to {most:g}.")
    if options.clients * options.rate * options.seconds > MOST_DELIVERIES:
        raise CommandError(
            f"That is too much for one run: clients x rate x seconds may be at most {MOST_DELIVERIES:,}."
        )


def _faults(options: argparse.Namespace) -> tuple[int | None, list[Fault]]:
    """The seed, if one was used, and the faults. Raises :class:`CommandError`."""
    from notify.chaos import local, plan

    if options.fault is None:
        if options.url is not None:
            if options.seed is not None:
                raise CommandError("--seed draws faults only for the built-in set: with --url, use --fault.")
            return None, []
        seed = SystemRandom().randrange(_SEEDS) if options.seed is None else options.seed
        return seed, plan.draw(seed, options.seconds)
    if options.seed is not None:
        raise CommandError("Faults are drawn from --seed or given with --fault, not both.")
    if len(options.fault) > plan.MOST:
        raise CommandError(f"One run may have at most {plan.MOST} faults.")
    faults = []
    for text in options.fault:
        try:
            fault = plan.parse(text)
            if max(fault.at, fault.undo_at or 0) > options.seconds:
                raise ValueError("it comes after the end of the load: see --seconds")
            if options.url is None:
                for command in filter(None, (fault.do, fault.undo)):
                    local.check(command)
        except ValueError as error:
            raise CommandError(f"--fault '{text}': {error}.") from None
        faults.append(fault)
    return None, faults


def _target(options: argparse.Namespace, terminal: Terminal, reactor: Any) -> Target:
    """The servers to break. Raises :class:`CommandError` and ``TrialFailed``."""
    from notify.chaos.deployment import Deployment
    from notify.chaos.local import LocalSet

    if options.url is None:
        for name in ("api_url", "tokens", "workspace", "chat"):
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                raise CommandError(
                    f"--{option} needs --url: without it, the built-in set on this machine is used."
                )
        logs = None if options.logs is None else Path(options.logs)
        try:
            if logs is not None:
                logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--logs {options.logs} cannot be used: {error.strerror}.") from None
        return LocalSet(reactor, options.nats_server, logs=logs, environ=terminal.environ)
    for name, what in (("api_url", "--api-url"), ("tokens", "--tokens"), ("chat", "--chat")):
        if not getattr(options, name):
            raise CommandError(
                f"--url also needs {what}: a deployment's addresses, tokens and chats are never guessed."
            )
    tokens = read_file(options.tokens, terminal).decode("utf-8", "replace").split()
    if not tokens:
        raise CommandError(f"{options.tokens} contains no token: write one per line.")
    return Deployment(
        options.url,
        options.api_url,
        secret(options, terminal, "api-key", "API key", "NOTIFY_API_KEY"),
        tokens,
        1 if options.workspace is None else options.workspace,
        list(dict.fromkeys(options.chat)),
    )


def _try(options: argparse.Namespace, terminal: Terminal, seed: int | None, faults: list[Fault]) -> Report:
    """Raises :class:`CommandError`, and ``KeyboardInterrupt`` if a signal stopped the reactor."""
    from twisted.internet import reactor
    from twisted.internet.defer import CancelledError, Deferred

    from notify.chaos.target import TrialFailed
    from notify.chaos.trial import Trial

    say: Callable[[str], None] = (lambda line: None) if options.quiet else terminal.say
    loop: Any = reactor
    try:
        trial = Trial(
            loop,
            _target(options, terminal, loop),
            faults,
            clients=options.clients,
            rate=options.rate,
            seconds=float(options.seconds),
            settle=float(options.settle),
            seed=seed,
            say=say,
        )
    except TrialFailed as error:
        raise CommandError(str(error)) from None
    ended: list[Any] = []
    leaving = False

    def start() -> None:
        work = Deferred.fromCoroutine(trial.run()).addBoth(end)
        loop.addSystemEventTrigger("before", "shutdown", leave, work)

    def end(outcome: Any) -> None:
        ended.append(outcome)
        if not leaving:
            loop.stop()

    def leave(work: Deferred[Any]) -> Deferred[None]:
        nonlocal leaving
        leaving = True
        work.cancel()
        return Deferred.fromCoroutine(trial.stop())

    loop.callWhenRunning(start)
    loop.run()
    [outcome] = ended
    failed = getattr(outcome, "value", None)
    if isinstance(failed, TrialFailed | ValueError):
        raise CommandError(str(failed)) from None
    if isinstance(failed, CancelledError):
        raise KeyboardInterrupt from None
    if isinstance(failed, BaseException):
        raise failed
    return cast("Report", outcome)


def _touch(file: Path) -> None:
    """Check before the run that its report can be written. Raises :class:`CommandError`."""
    try:
        file.open("ab").close()
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror}.") from None
