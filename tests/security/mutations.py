"""Removes one defence after another in a copy of the tree; the test that docs/security.md names for it must then fail.

    python -m tests.security.mutations              all of them
    python -m tests.security.mutations auth         those in files whose path contains this
    python -m tests.security.mutations --sample 6   a sample, a different one each day

``test_mutations.py`` checks the table against the tree and the page: each old text occurs exactly once, and the
page names the test. If you change a line of code that the table quotes, update the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.breakage import choose, put_in
from tests.support.programs import ROOT

#: seconds for one test
PATIENCE = 300


class Mutation(NamedTuple):
    """``old`` becomes ``new`` in a file below notify/; then ``test``, named relative to tests/, must fail."""

    path: str
    old: str
    new: str
    test: str

    @property
    def name(self) -> str:
        """The mutation as reports name it."""
        return f"{self.path}: {self.test.rpartition('::')[2].removeprefix('test_').replace('_', ' ')}"


TABLE = (
    # tokens
    Mutation("auth/jwt.py", "        if not any(key.verify(", "        if candidates is None and not any(key.verify(",
             "auth/test_jwt.py::Attacks::test_a_changed_character_anywhere_is_refused"),
    Mutation("auth/jws.py", '    if "crit" in header or "b64" in header:\n', "    if False:\n",
             "auth/test_jwt.py::Attacks::test_refuses_critical_extensions"),
    Mutation("auth/jws.py", "            if base64.urlsafe_b64encode(decoded).rstrip(b\"=\").decode(\"ascii\") == part:\n",
             "            if True:\n", "auth/test_jwt.py::Attacks::test_refuses_base64_in_any_but_its_one_form"),
    Mutation("auth/jws.py", "    if len(made) != len(pairs):\n", "    if False:\n",
             "auth/test_jwt.py::Attacks::test_refuses_a_name_that_occurs_twice"),
    Mutation("auth/jws.py", "    if len(token) > most:\n", "    if False:\n",
             "auth/test_jwt.py::Attacks::test_refuses_a_token_that_is_too_long_without_looking_at_it"),
    Mutation("auth/claims.py", "    if expires_at <= now:\n", "    if expires_at <= now - rules.leeway:\n",
             "auth/test_jwt.py::Claims::test_the_leeway_lets_no_token_live_longer"),
    Mutation("auth/claims.py", "    if audience not in audiences or not audience:\n", "    if False:\n",
             "auth/test_jwt.py::Claims::test_checks_the_audience_and_refuses_tokens_for_others"),
    Mutation("auth/keys.py", "            if material.key_size < _RSA_BITS:\n", "            if False:\n",
             "auth/test_jwt.py::Start::test_small_rsa_keys_are_refused"),
    # event streams
    Mutation("transport/eventrequest.py", "    if page and not origin_allowed(", "    if not page and not origin_allowed(",
             "transport/test_eventrequest.py::Pages::test_origins_are_those_of_websockets"),
    Mutation("transport/eventrequest.py", "    given = fields.get(b\"authorization\", ())\n", "    given = fields.get(b\"authorization\", [b\"Bearer x\"])\n",
             "transport/test_eventrequest.py::Headers::test_a_token_comes_in_its_header_and_nowhere_else"),
    Mutation("wire/eventstream.py", "            if not _SEQ.fullmatch(number) or int(number) > INT64_MAX:\n", "            if not _SEQ.fullmatch(number):\n",
             "wire/test_eventstream.py::Ids::test_forms_that_are_refused"),
    Mutation("wire/eventstream.py", "_encode(frame).translate(_LINES))\n", "_encode(frame))\n",
             "wire/test_eventstream.py::Frames::test_no_publisher_can_end_an_event"),
    Mutation("transport/events.py", "            session.received([])\n", "            pass\n",
             "transport/test_events.py::Ending::test_nothing_is_read_from_it_and_who_sends_without_end_is_closed"),
    Mutation("transport/events.py", "        self._ask(max(1, limits.frames_burst) if limits.frames_per_second else len(self._frames))\n",
             "        self._ask(len(self._frames))\n",
             "transport/test_events.py::Waiting::test_it_asks_for_no_more_at_once_than_a_client_may"),
    Mutation("transport/events.py", "        give_up_after(transport, limits.ping_interval + limits.ping_timeout)\n", "",
             "whole/test_event_streams.py::Whole::test_who_takes_nothing_any_more_is_given_up_by_the_kernel"),
    # traces
    Mutation("core/witness.py", "        return False if order.everywhere else None\n", "        return False\n",
             "core/test_witness.py::Tenants::test_nothing_of_another_workspace_and_nothing_of_nobody"),
    Mutation("core/witness.py", "            aside = claimed or not mine  #", "            aside = not mine  #",
             "core/test_witness.py::WhyNothing::test_bad_tokens_that_name_somebody_hide_nothing_that_is_theirs"),
    Mutation("core/witness.py", "not budget.spend(now):\n", "False:\n",
             "core/test_witness.py::Told::test_more_than_it_may_keep_is_counted"),
    Mutation("http/admin.py", "            hosts.check(request.host)\n", "            pass\n",
             "http/test_admin.py::Served::test_not_by_a_strangers_name_and_in_no_frame"),
    # signals
    Mutation("core/signalling.py", "    elif frame.chat_id not in client.chats:\n", "    elif False:\n",
             "core/test_signals.py::Refused::test_who_is_not_in_the_chat_may_not"),
    Mutation("core/signalling.py", "            check_data(frame.data, hub.signals.size)\n", "            pass\n",
             "core/test_signals.py::Refused::test_data_that_is_too_large_or_nested_too_deeply_is_invalid_and_nobody_hears_it"),
    Mutation("core/signals.py", "        if bucket.left(rate, burst, now) < 1:\n", "        if False:\n",
             "core/test_signals.py::Rate::test_a_connection_has_a_rate_and_a_burst_of_its_own"),
    Mutation("core/signals.py", "        if rate and chat.allowance.left(rate, rate, self._seconds()) <= 0:\n", "        if False:\n",
             "core/test_signals.py::Crowds::test_what_a_chat_is_sent_costs_as_much_as_it_has_members"),
    Mutation("core/signals.py", "            if connection.blocked:\n", "            if False:\n",
             "whole/test_signals.py::Abuse::test_who_does_not_read_is_neither_closed_for_signals_nor_holds_them_up"),
    Mutation("messages.py", "    if signal.topic != topic:\n", "    if False:\n",
             "core/test_signals.py::Poison::test_what_anybody_may_have_sent_is_judged"),
    # the JWK Set
    Mutation("auth/jwks.py", "        wait = self._began + self._cooldown - self._clock.seconds()\n        if wait <= 0:\n",
             "        wait = 0.0\n        if wait <= 0:\n",
             "auth/test_jwks.py::Rotation::test_unknown_key_ids_cannot_make_it_fetch_more_than_once_a_cooldown"),
    Mutation("auth/jwks.py", " and len(self._asked) < _MOST_ASKED:\n", ":\n",
             "auth/test_jwks.py::Rotation::test_what_is_remembered_of_made_up_key_ids_is_bounded"),
    # the webhook
    Mutation("auth/backend.py", ">= self._most:\n", "< 0:\n",
             "auth/test_webhook.py::Authorize::test_too_many_questions_at_once_are_not_queued"),
    Mutation("auth/webhook.py", "        question = (hashlib.sha256(data).digest(), peer)\n", "        question = (token, peer)\n",
             "auth/test_webhook.py::Authenticate::test_remembers_no_token"),
    Mutation("core/chats.py", "    if client.joining is None:\n        _forbid(client, frame, topic)\n", "    if False:\n        _forbid(client, frame, topic)\n",
             "core/test_access.py::Unsubscribe::test_nor_does_a_topic_that_is_about_to_be_followed"),
    # revocations
    Mutation("core/access.py", "    refused = [one for one in members if one.identity is not None and",
             "    refused = [one for one in members if hub.connections.get(one) is None and",
             "core/test_revocations.py::Revoked::test_nor_does_who_has_authenticated_and_is_not_told_yet"),
    Mutation("core/authentication.py", "    if _revoked(identity, client):\n        return None\n", "",
             "core/test_revocations.py::Revoked::test_who_is_just_authenticating_does_not_get_in"),
    Mutation("core/access.py", "    hub.waiting.pop(topics.user(workspace_id, user_id), None)\n", "",
             "core/test_authentication.py::Elsewhere::test_who_is_disconnected_meanwhile_is_asked_about_anew"),
    Mutation("core/authentication.py", "        oldest = identity.issued_at + limits.token_age\n", "        oldest = float(\"inf\")\n",
             "core/test_revocations.py::Age::test_a_token_ends_when_a_revocation_of_it_would"),
    Mutation("core/revocations.py", "        if identity.issued_at is None:\n", "        if identity.issued_at is None and not revocation:\n",
             "core/test_revocations.py::Table::test_a_token_that_does_not_say_when_is_refused_while_it_stands"),
    # origins
    Mutation("transport/origins.py", "    if str(here) in allowed:\n        return True\n",
             "    if any(one.endswith(here.host) for one in allowed):\n        return True\n",
             "transport/test_origins.py::Allowed::test_with_it_exactly_those"),
    Mutation("transport/origins.py", "        return here == read_origin(", "        return True or here == read_origin(",
             "transport/test_origins.py::Allowed::test_without_configuration_only_the_same_host"),
    Mutation("dev/demo.py", "    if not own:\n", "    if False:\n", "dev/test_demo.py::DemoRoutes::test_other_sites_pages_cannot_use_it"),
    Mutation("transport/tls.py", "    context.set_cipher_list(SUITES)\n", "",
             "transport/test_tls.py::Handshakes::test_what_is_older_or_weaker_is_refused_and_counted"),
    # tenancy
    Mutation("core/chats.py", "    return topics.chat(_identity(client).workspace_id, chat_id)\n", "    return topics.chat(2, chat_id)\n",
             "core/test_chats.py::Subscriptions::test_other_workspaces_are_never_seen"),
    Mutation("core/authentication.py", " or not current.same_user(identity):\n", ":\n",
             "core/test_authentication.py::Expiry::test_a_bad_refresh_or_one_for_another_user_closes_with_4500"),
    # positions
    Mutation("core/feed.py", "        if since is None or since.epoch != self.epoch or since.seq < 0:\n",
             "        if since is None or since.seq < 0:\n",
             "core/test_resumption.py::Resumption::test_is_not_recovered_from_another_epoch_or_out_of_what_is_kept"),
    Mutation("core/chats.py", "    if not allowed or client.joining is None:\n        _refuse_page(",
             "    if client.joining is None:\n        _refuse_page(",
             "core/test_pages.py::Authority::"
             "test_a_chat_that_may_not_be_seen_and_one_that_is_not_there_get_the_answer_of_subscribe"),
    Mutation("core/pages.py", "self._busy < AT_ONCE and self._left > 0:", "self._busy < AT_ONCE:",
             "core/test_pages.py::Cost::test_a_turn_gives_so_many_messages_and_others_wait_for_the_next"),
    # frames
    Mutation("transport/reader.py", "        while at < end and not sink.ending:\n", "        while at < end:\n",
             "transport/test_websocket_attack.py::Floods::test_nothing_is_read_of_what_comes_behind_a_fault_or_a_close"),
    Mutation("transport/reader.py", "            if what in _MESSAGE and not self._fragmented:\n", "            if what in _MESSAGE:\n",
             "transport/test_frames_differential.py::BesideAutobahn::test_streams_are_answered_alike"),
    Mutation("transport/handshake.py", " and name in _ONCE:\n", " and False:\n",
             "transport/test_handshake.py::Judgements::test_each_refusal_has_its_status"),
    Mutation("transport/handshake.py", "    return value if _ID.fullmatch(value) else ",
             "    return value if value else ",
             "transport/test_handshake.py::Judgements::test_a_client_id_of_the_form_is_read_and_of_any_other_ignored"),
    Mutation("transport/listener.py", "        self._timer = self._factory.wheel.after(self._factory.patience(), self._give_up)\n\n    def dataReceived",
             "\n    def dataReceived",
             "transport/test_websocket_attack.py::Floods::test_who_trickles_a_handshake_has_one_deadline_for_all_of_it"),
    # access that ends
    Mutation("core/access.py", "            if allowed is False:\n", "            if allowed is True:\n",
             "core/test_access.py::Recheck::test_a_no_ends_the_subscription_and_the_client_is_told_which"),
    Mutation("core/access.py", "                if now - since >= grace:\n", "                if False:\n",
             "core/test_access.py::Recheck::test_without_an_answer_it_goes_on_for_the_grace_and_ends_with_unavailable"),
    # keys
    Mutation("http/keys.py", "        if scope and scope not in key.scopes:\n", "        if False:\n",
             "http/test_keys.py::Scopes::test_out_of_its_scope_it_is_told_so"),
    Mutation("http/keys.py", "    if key.workspaces is None or workspace_id in key.workspaces:\n", "    if True:\n",
             "http/test_keys.py::Workspaces::test_a_key_for_some_workspaces_reaches_no_other"),
    Mutation("http/pipeline.py", "        if b\"origin\" in request.fields:\n", "        if False:\n",
             "http/test_pipeline.py::Judged::test_no_page_opens_one"),
    Mutation("http/pipeline.py", "        if self._waiting and not self._streams.stands(self.key):\n", "        if False:\n",
             "http/test_pipeline.py::Ends::test_a_key_that_is_good_no_more_ends_it_behind_what_is_under_way"),
    Mutation("http/pipeline.py", "            self._blocked_at is not None or ", "            ",
             "http/test_pipeline.py::Bounds::test_who_does_not_take_answers_is_not_read_from_and_cut_off_in_time"),
    Mutation("http/pipeline.py", "        if len(self._open) >= MOST_STREAMS:\n", "        if False:\n",
             "http/test_pipeline.py::Bounds::test_streams_are_bounded_and_counted"),
    # HTTP
    Mutation("http/connection.py", "        if self._ahead > self._site.most_ahead:\n", "        if False:\n",
             "http/test_connection.py::AheadTest::test_who_does_not_wait_for_answers_is_told_so_counted_and_cut_off"),
    Mutation("wire/head.py", "        if lengths is not None or head.version != b\"HTTP/1.1\" or [c.lower() for c in codings] != [b\"chunked\"]:\n",
             "        if codings[-1].lower() != b\"chunked\":\n",
             "http/test_smuggling.py::SmugglingTest::test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection"),
    # resources
    Mutation("transport/connection.py", "        if connection.queued > self._each():\n", "        if False:\n",
             "transport/test_websocket_attack.py::Floods::test_pongs_that_nobody_reads_wait_within_the_bound"),
    Mutation("transport/reader.py", "        if self._behind > BEHIND_CLOSE:\n", "        if False:\n",
             "transport/test_reader.py::Ending::test_who_goes_on_and_on_is_looked_at_no_more"),
    Mutation("transport/admission.py", "        one.arriving += 1\n", "",
             "transport/test_admission.py::Addresses::test_arrivals_of_one_address_count_from_the_accept_to_a_good_token"),
    Mutation("observe/logging.py", "        if now >= self._ends:\n", "        if True:\n",
             "observe/test_logging.py::FloodTests::test_one_place_writes_no_more_than_its_burst_in_a_window"),
)  # fmt: skip


def broken_tree(mutation: Mutation, folder: Path) -> Path:
    """A copy of the code and the tests, without the defence."""
    tree = folder / "tree"
    leave = shutil.ignore_patterns("__pycache__", "node_modules", "_trial_temp*", ".hypothesis")
    for name in ("notify", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=leave)
    shutil.copytree(ROOT / "twisted", tree / "twisted", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", tree)
    put_in(mutation, tree)
    return tree


def caught(mutation: Mutation) -> tuple[bool, str]:
    """Whether the test fails properly, and pytest's last line. That it passes unbroken is checked by `make test`."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = broken_tree(mutation, Path(folder))
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"tests/{mutation.test}",
        ]
        try:
            done = subprocess.run(
                command,
                cwd=tree,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True, "the test did not end"
    last = (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
    return done.returncode == 1 and "failed" in last, last


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    chosen = choose(TABLE, "tests.security.mutations", arguments)
    missed = 0
    for one in chosen:
        began = time.monotonic()
        found, how = caught(one)
        missed += not found
        print(
            f"{'caught' if found else 'NOT CAUGHT'} in {time.monotonic() - began:3.0f} s  {one.name}\n    {how}",
            flush=True,
        )
    print(f"{len(chosen) - missed} of {len(chosen)} defences that were taken away had a test that failed")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
