"""``notify check-config``: check that a configuration is usable, including plugins and key files."""

from __future__ import annotations

import argparse

from notify.cli.terminal import Terminal

SUMMARY = "check a configuration without starting anything"
DESCRIPTION = """\
Read configuration files and the environment as the server would, including plugins' settings and the files that
they name, and say what is wrong. Nothing is started, bound or connected to. The exit status is 0 if the configuration
is good, and 1 otherwise."""
EXAMPLES = """\
  notify check-config /etc/notify/notify.toml
  notify check-config /etc/notify/notify.toml /etc/notify/two.toml
  NOTIFY_LISTEN__PUBLIC=tcp:9000 notify check-config notify.toml"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="the configuration files, of which later ones override earlier ones; without any, only the environment is read",
    )


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Raises ``StartError``, which says what is wrong."""
    from notify import components, tap
    from notify.config import load
    from notify.doctor import host
    from notify.errors import StartError
    from notify.service import reactor

    config = load(options.files, terminal.environ)
    reactor.install(config.server.event_loop)
    components.check(config)
    from twisted.internet import reactor as running

    service = tap.build(config, running)
    for listener in (service.public, service.internal):
        try:
            listener.check(running)
        except StartError as error:
            raise StartError(f"{config.source}: {error}") from None
    plugins = ", ".join(f"{kind} {getattr(config, kind).plugin}" for kind in ("auth", "broker", "registry"))
    for caution in components.cautions(config):
        terminal.out(f"Caution: {caution}")
    for copy in host.copies(config):
        terminal.out(f"Caution: {copy}. {host.COPY_MEND}")
    terminal.out(f"{config.source} is good: {plugins}; public {config.listen.public}.")
    return 0
