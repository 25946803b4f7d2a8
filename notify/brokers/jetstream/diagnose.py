"""The checks of ``notify doctor`` for NATS: is it reachable and new enough, and are the streams and permissions right?

Nothing is stored: the permission to publish is tested with a publish that every stream must refuse.
"""

from __future__ import annotations

import time
from datetime import datetime
from random import Random
from typing import Any

import msgspec

from notify.brokers.jetstream import signals
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.brokers.jetstream.stream import Plan, keeps_signals
from notify.errors import StartError, Unavailable
from notify.findings import Finding, Level, Question, span
from notify.nats.asking import NoResponders
from notify.nats.dial import redacted
from notify.nats.jetstream import STREAM_NOT_FOUND, differences
from notify.nats.probe import Probe

#: accepted difference in seconds between the clocks of this machine and of the servers
SKEW = 2.0
#: faults of a stream that the server does not repair, by their first words
_NOT_OURS = ("it", "allow_msg_ttl", "retention")
PROBE = "workspace.0.chat.0.messages"
SIGNAL = "workspace.0.chat.0.signals"


async def diagnose(settings: JetStreamSettings, question: Question) -> list[Finding]:
    """See ``notify/findings.py``."""
    found: list[Finding] = []
    asked = False
    for url in settings.servers:
        probe = Probe(settings, url, "notify doctor")
        try:
            settings.check()
            version = await probe.connect()
        except StartError as error:
            found.append(Finding("fault", "broker", str(error), "Do as it says, then ask again."))
            continue
        except Unavailable as error:
            mend = "See that it runs, that the address is right, and what its log says of this client."
            level: Level = "fault" if len(settings.servers) == 1 else "warning"
            text = f"NATS at {redacted(url)} cannot be reached: {error}."
            found.append(Finding(level, "broker", text, mend))
            continue
        try:
            found.append(Finding("ok", "broker", f"NATS {version} answers at {redacted(url)}."))
            if not asked:
                asked = True
                found += await _examine(probe, settings, question)
        finally:
            probe.sever()
    if not asked and len(settings.servers) > 1:
        found.append(Finding("fault", "broker", "no server can be reached.", "Start at least one of them."))
    return found


async def _api(probe: Probe, call: str, timeout: float) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(await probe.request(f"$JS.API.{call}", b"", timeout))
    return answer


async def _examine(probe: Probe, settings: JetStreamSettings, question: Question) -> list[Finding]:
    patience = max(2.0, settings.request_timeout)
    try:
        account = await _api(probe, "INFO", patience)
        history = await _api(probe, f"STREAM.INFO.{settings.stream}", patience)
        dead = await _api(probe, f"STREAM.INFO.{settings.dead_letter_stream}", patience)
    except Unavailable:
        await probe.settle()
        if probe.denied:
            return [_denied(words) for words in probe.denied]
        text = "JetStream does not answer: it is off for this account, or has no leader."
        return [
            Finding("fault", "broker", text, "Switch it on (`jetstream {}`), or see to the cluster's health.")
        ]
    found = _account(account)
    plan = Plan(settings, Random())  # noqa: S311 - nothing is made of it
    found += _stream(settings, settings.stream, history, plan.wanted_history, plan.required_history)
    found += _stream(settings, settings.dead_letter_stream, dead, plan.wanted_dead, plan.required_dead)
    if "error" not in history:
        found += retention(settings, history, question)
        found += _skew(history, time.time())
        found += _copies(settings, history)
        found += lists(history)
        found += _holes(history)
        if keeps_signals(history["config"]):
            text = "its subjects cover those of signals (typing, cursors), which are not sent then."
            mend = f"Take {signals.SUBJECTS} out of its subjects."
            found.append(Finding("warning", f"stream {settings.stream}", text, mend))
    return found + await _permissions(probe, settings, history, patience)


def _account(answer: dict[str, Any]) -> list[Finding]:
    if error := answer.get("error"):
        mend = "Switch JetStream on for this account."
        return [Finding("fault", "broker", f"JetStream refuses: {error.get('description')}.", mend)]
    most, used = answer.get("limits", {}).get("max_storage", -1), answer.get("storage", 0)
    if most > 0 and used > 0.9 * most:
        text = f"the account's storage is nearly full: {used >> 20} of {most >> 20} MiB."
        mend = "Raise the account's max_storage, or lower max_age or max_bytes of the stream."
        return [Finding("warning", "broker", text, mend)]
    return []


def _stream(
    settings: JetStreamSettings, name: str, answer: dict[str, Any], wanted: Any, required: Any
) -> list[Finding]:
    check = f"stream {name}"
    if error := answer.get("error"):
        if error.get("err_code") == STREAM_NOT_FOUND and settings.manage_stream:
            return [
                Finding("note", check, "it does not exist yet: the server makes it when it first starts.")
            ]
        mend = "Create it (docs/jetstream.md), or set manage_stream = true."
        return [Finding("fault", check, f"NATS says: {error.get('description')}.", mend)]
    have = answer["config"]
    if wrong := required(have):
        mends = settings.manage_stream and not any(one.split()[0] in _NOT_OURS for one in wrong)
        mend = (
            "The server mends it at its next start." if mends else "`nats stream edit` it, or make it anew."
        )
        level: Level = "warning" if mends else "fault"
        return [Finding(level, check, f"{'; '.join(wrong)}.", mend)]
    if settings.manage_stream and (wrong := differences(wanted(have), have)):
        text = f"it differs from the configuration: {'; '.join(wrong)}."
        return [Finding("warning", check, text, "Restart the server: it brings the stream up to date.")]
    return [Finding("ok", check, "its settings are right.")]


def retention(settings: JetStreamSettings, history: dict[str, Any], question: Question) -> list[Finding]:
    """Whether messages are kept for as long as a client may be away."""
    check, window = "retention", question.resume_window
    config, state = history["config"], history["state"]
    age = config.get("max_age", 0) / 1e9
    if age and age < window:
        text = f"messages are kept for {span(age)}, but clients may be away for {span(window)}."
        return [
            Finding("fault", check, text, "Raise [broker.jetstream] max_age, or ask with --resume-window.")
        ]
    kept = _seconds(state.get("last_ts", "")) - _seconds(state.get("first_ts", ""))
    for key, limit, used in (
        ("max_bytes", config.get("max_bytes", -1), state.get("bytes", 0)),
        ("max_messages", config.get("max_msgs", -1), state.get("messages", 0)),
    ):
        if limit > 0 and used > 0.9 * limit and kept < window:
            text = f"the stream is full ({key}) and reaches back {span(kept)} only; clients may be away for {span(window)}."
            return [Finding("fault", check, text, f"Raise [broker.jetstream] {key}, or take the bound away.")]
    text = f"messages are kept for {span(age) if age else 'ever'}; clients may be away for {span(window)}."
    return [Finding("ok", check, text)]


def _skew(history: dict[str, Any], now: float) -> list[Finding]:
    theirs = _seconds(history.get("ts", ""))
    if theirs and abs(now - theirs) > SKEW:
        text = f"this machine's clock and the NATS server's differ by {abs(now - theirs):.1f} s."
        return [Finding("warning", "clock", text, "Run a time service on both.")]
    return []


def _holes(history: dict[str, Any]) -> list[Finding]:
    state = history["state"]
    if not state.get("messages"):
        return []
    missing = state["last_seq"] - state["first_seq"] + 1 - state["messages"]
    if not missing:
        return [Finding("ok", "holes", "no number is missing inside the stream.")]
    text = f"{missing} numbers are missing inside the stream: deleted or purged by somebody, or lost by NATS."
    mend = "Who resumes over one is told so. Where nobody deleted anything: docs/operations/runbook.md."
    return [Finding("warning", "holes", text, mend)]


def _copies(settings: JetStreamSettings, history: dict[str, Any]) -> list[Finding]:
    cluster, copies = history.get("cluster") or {}, history["config"].get("num_replicas", 1)
    late = [
        peer.get("name", "?")
        for peer in cluster.get("replicas") or ()
        if peer.get("offline") or not peer.get("current", True)
    ]
    if late:
        text = f"copies on {', '.join(late)} are away or behind."
        return [
            Finding("warning", "replicas", text, "See to these servers: one more lost and the stream stops.")
        ]
    if copies == 1 and cluster.get("name"):
        text = "in a cluster, and yet there is one copy of each message: it is gone with its server."
        return [Finding("warning", "replicas", text, "Set [broker.jetstream] replicas = 3.")]
    if copies == 1:
        text = "one copy of each message: NATS syncs it to disk every two minutes unless sync_interval says otherwise."
        mend = "For messages that survive a power cut: sync_interval: always in the NATS server (docs/guarantees.md)."
        return [Finding("note", "replicas", text, mend)]
    return [Finding("ok", "replicas", f"{copies} copies of each message, all current.")]


def lists(history: dict[str, Any]) -> list[Finding]:
    """Whether atomic lists are supported, and how a list for one chat is stored if there are several copies."""
    config = history["config"]
    if config.get("allow_atomic"):
        return []
    text = "lists that are all or nothing are refused: the stream takes no batches."
    if config.get("num_replicas", 1) > 1:
        text += " The messages of other lists for one chat are stored one after the other."
    mend = "Where that is wanted and every NATS server is 2.12.12, 2.14.3 or later: allow_atomic (docs/jetstream.md, Lists)."
    return [Finding("note", "lists", text, mend)]


async def _permissions(
    probe: Probe, settings: JetStreamSettings, history: dict[str, Any], patience: float
) -> list[Finding]:
    """Try what the server does: receive republished messages, read history, publish."""
    dest = ((history.get("config") or {}).get("republish") or {}).get("dest")
    if dest and settings.delivery == "republish":
        await probe.subscribe(dest)
    missing = []
    # Every stream refuses a publish meant for another stream, so nothing is stored.
    refused = {"Nats-Expected-Stream": "notify-doctor-stores-nothing"}
    record = f"$JS.API.STREAM.MSG.GET.{settings.dead_letter_stream}"
    for call, body, fields in (
        (PROBE, b"", refused),
        (f"$JS.API.DIRECT.GET.{settings.stream}", b'{"seq":1}', None),
        (record, b'{"seq":1}', None),
    ):
        try:
            await probe.request(call, body, patience, fields)
        except NoResponders:
            pass  # no stream, or no such message: reported elsewhere
        except Unavailable:
            missing.append(call)
    await probe.subscribe(signals.SUBJECTS)
    await probe.publish(SIGNAL, b"", refused)
    await probe.settle()
    if probe.denied:
        return [_denied(words) for words in probe.denied]
    if missing and "error" not in history:
        text = f"no answer to: {', '.join(missing)}."
        return [
            Finding("warning", "permissions", text, "See what the NATS server's log says of this client.")
        ]
    return [Finding("ok", "permissions", "NATS permits what notify needs.")]


def _denied(words: str) -> Finding:
    if signals.about(words):
        text = f"NATS says: {words}. Signals (typing, cursors) are done without."
        mend = f"Grant {signals.SUBJECTS} to publish and to subscribe (docs/jetstream.md, Permissions)."
        return Finding("warning", "permissions", text, mend)
    return Finding(
        "fault", "permissions", f"NATS says: {words}.", "Grant it (docs/jetstream.md, Permissions)."
    )


def _seconds(text: str) -> float:
    """Unix time of an RFC 3339 timestamp with up to nanoseconds; 0 for an invalid one and for NATS's zero time."""
    try:
        head, _, fraction = text.removesuffix("Z").partition(".")
        moment = datetime.fromisoformat(f"{head}+00:00")
        return max(0.0, moment.timestamp()) + float(f"0.{fraction or 0}")
    except ValueError:
        return 0.0
