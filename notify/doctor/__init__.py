"""``notify doctor``: examines a deployment from the machine on which it runs, and says how to fix what is wrong.

Nothing is started, changed or published. Modules: ``listeners`` (ports, origins, proxies) and ``host`` (files and their permissions,
limits, clock, fan-out, systemd unit). Brokers and other plugins examine themselves (``notify/findings.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from msgspec import Struct
from twisted.internet.task import Clock

from notify import components
from notify.config import PLUGIN_TABLES, Config, load
from notify.doctor import host, listeners
from notify.errors import StartError
from notify.findings import Finding, Question
from notify.http.keys import read_keys
from notify.nats.bridge import run_alone
from notify.observe.metrics import Metrics

#: timeout in seconds for one plugin's own examination
PATIENCE = 30.0


class Patient(Struct, frozen=True):
    """What to examine. ``origin`` and ``host``: whether a page of that origin may connect to that host."""

    files: tuple[str, ...]
    environ: Mapping[str, str]
    resume_window: float
    unit: str = "notify"
    origin: str = ""
    host: str = ""


def examine(patient: Patient) -> list[Finding]:
    """Examine everything. Problems are returned as findings, never raised. Must not be called from a thread that runs an event loop."""
    check = "configuration"
    unit = host.read_unit(patient.unit)
    # The environment of the server; variables set here override it.
    environ = {**(unit.environ if unit is not None else {}), **patient.environ}
    try:
        config = load(patient.files, environ)
        components.check(config)
    except StartError as error:
        return [
            Finding(
                "fault", check, str(error), "Fix this first; `notify check-config` reports the same error."
            )
        ]
    try:
        make(config)
        found = [Finding("ok", check, f"{config.source} is good.")]
    except StartError as error:
        mend = "The server does not start until this is fixed; `notify check-config` reports the same error."
        found = [Finding("fault", check, str(error), mend)]
    found += [
        Finding("warning", "plugins", caution, "docs/auth.md describes each setting.")
        for caution in components.cautions(config)
    ]
    found += host.files(config, unit)
    found += listeners.ports(config, unit.user if unit is not None else "")
    found += listeners.origins(config, patient.origin, patient.host)
    found += host.limits(config, unit)
    found += host.clock()
    found.append(host.fan_out(environ))
    found += host.drain(config, unit)
    return found + plugins(config, Question(patient.resume_window, config.limits.replay))


def make(config: Config) -> None:
    """Create what the configuration names, as a start would, without starting it. Raises ``StartError``."""
    context = components.Context(Clock(), Metrics(), Random(0), "doctor", config)  # noqa: S311 - nothing is drawn
    for kind in PLUGIN_TABLES:
        components.make(kind, context)
    read_keys(config.api, config.source)


def plugins(config: Config, question: Question) -> list[Finding]:
    """The plugins' findings about themselves."""
    found = []
    for kind in PLUGIN_TABLES:
        factory, settings = components.find(kind, config)
        diagnose = getattr(factory, "diagnose", None)
        if diagnose is None:
            continue
        check = f"{kind} {getattr(config, kind).plugin}"
        try:
            found += run_alone(diagnose(settings, question), PATIENCE)
        except TimeoutError:
            found.append(
                Finding(
                    "fault",
                    check,
                    f"no answer within {PATIENCE:g} s",
                    "Check that it is running and can be reached from here.",
                )
            )
        except Exception as error:
            text = f"it could not be checked: {type(error).__name__}: {error}"
            found.append(
                Finding("fault", check, text, "Fix what the error names, and run `notify doctor` again.")
            )
    return found
