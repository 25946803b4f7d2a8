"""docs/cookbook/tokens.md: the endpoint in FastAPI and in Django, its keys, and the page's ``token`` function."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, Request, build_opener

import jwt
from twisted.trial.unittest import SynchronousTestCase
from websockets.sync.client import connect

from tests.support.browser import Browser
from tests.support.pages import serve_pages
from tests.support.ports import free_port
from tests.support.process import SECRET, Client, Server, wait_for
from tests.support.programs import ROOT, UNMEASURED
from tests.support.recipes import COOKBOOK

PAGE = """const [notify, done] = arguments;
(async () => {
  const { fetchToken } = await import("/files/docs/examples/cookbook/token.js");
  const { NotifyClient } = await import("/files/notify/web/client/notify-client.js");
  const user = async () => {
    const client = new NotifyClient(notify, { token: fetchToken });
    try {
      await client.start();
      return client.state.user_id;
    } catch (error) {
      return error.name;
    } finally {
      await client.close();
    }
  };
  const post = async (path) => {
    const csrf = document.cookie.match(/csrftoken=([^;]*)/)?.[1] ?? "";
    return (await fetch(path, { method: "POST", headers: { "X-CSRFToken": csrf } })).status;
  };
  const told = [await user(), await post("/sign-in"), await user(), await post("/sign-out"), await user()];
  done(told.join(" "));
})().catch((error) => done(String(error)));"""


SIGN_IN = """return fetch("/sign-in", {
  method: "POST", headers: { "X-CSRFToken": document.cookie.match(/csrftoken=([^;]*)/)?.[1] ?? "" },
}).then(({ status }) => status)"""

#: what a page gets that asks for a token from another origin of the same site, so that the session's cookie is sent
ELSEWHERE = """const [url, header, done] = arguments;
const got = (options) => fetch(url, { method: "POST", credentials: "include", ...options })
  .then((answer) => answer.text(), (error) => error.name);
(async () => done([
  await got({}),
  await got({ mode: "no-cors" }),
  await got({ headers: { [header]: "fetch" } }),
  await got({ mode: "no-cors", headers: { [header]: "fetch" } }),
]))();"""


def key(name: str) -> dict[str, str]:
    secret = base64.urlsafe_b64encode(os.urandom(64)).decode().rstrip("=")
    return {"kty": "oct", "kid": name, "k": secret}


class Endpoint:
    """Tests that hold in each framework."""

    command: tuple[str, ...]
    #: the header that the page sends besides its cookie
    header: str

    def setUp(self: Any) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder, self.port = Path(folder.name), free_port()
        self.secrets, self.origin = self.folder / "secrets.json", f"http://127.0.0.1:{self.port}"
        self.first, self.second = key("2026-01"), key("2026-02")
        self.write(self.first)
        names = {"PORT": str(self.port), "DATABASE": str(self.folder / "database")}
        self.process = subprocess.Popen(
            [sys.executable, *(part.format(**names) for part in self.command)],
            cwd=ROOT,
            env={
                **os.environ,
                **UNMEASURED,
                "NOTIFY_SECRETS": str(self.secrets),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{COOKBOOK}",
            },
        )
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        self.jar = CookieJar()
        self.opener = build_opener(HTTPCookieProcessor(self.jar))
        wait_for("the application answers", self.answers)

    def answers(self: Any) -> bool:
        if self.process.poll() is not None:
            raise AssertionError("the application ended")
        try:
            return self.ask("GET", "/")[0] == 200
        except OSError:
            return False

    def write(self: Any, *keys: dict[str, str]) -> None:
        new = self.secrets.with_suffix(".new")
        new.write_text(json.dumps({"keys": keys}))
        new.replace(self.secrets)

    def ask(self: Any, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
        """Send a request; return status, headers, and the body as text."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(self.origin + path, body if method == "POST" else None, headers, method=method)
        try:
            with self.opener.open(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def post(self: Any, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
        """Send a POST request as the page does."""
        cookies = {one.name: one.value for one in self.jar}
        value = cookies.get("csrftoken", "") if self.header == "X_CSRFToken" else "fetch"
        return self.ask("POST", path, body, **{self.header: value, **headers})

    def token(self: Any) -> str:
        status, _, text = self.post("/notify/token")
        self.assertEqual(status, 200, text)
        return str(json.loads(text)["token"])

    def server(self: Any) -> Server:
        origins, keys = f'allowed_origins = ["{self.origin}"]', f'jwks_file = "{self.secrets}"'
        server = Server(f"[listen]\n{origins}\n[auth.jwt]\n{keys}\n")
        # Only one source of keys is allowed.
        server.file.write_text(server.file.read_text().replace(f'secret = "{SECRET}"\n', ""))
        return server

    def shown(self, server: Server, token: str) -> Any:
        """The user id with which a client is accepted for a token, or the code with which it is closed."""
        with connect(f"ws://127.0.0.1:{server.public}/ws", close_timeout=1) as socket:
            client = Client(socket)
            client.send(type="auth", token=token)
            told = client.receive()
            return told["user_id"] if told.get("success") else client.closed()[0]

    def test_the_token_of_a_session_lets_in_its_user_and_nobody_else(self: Any) -> None:
        with self.server() as server:
            self.assertEqual(self.post("/notify/token")[0], 401)
            self.assertEqual(self.post("/sign-in")[0], 200)
            body = b'{"user_id": 6, "id": 6}'
            status, headers, text = self.post("/notify/token", body, Content_Type="application/json")
            self.assertEqual(status, 200)
            told = json.loads(text)
            self.assertApproximates(told["expires_at"], time.time() + 300, 30)
            self.assertEqual(self.shown(server, told["token"]), 5)
            claims = jwt.decode(told["token"], options={"verify_signature": False})
            self.assertEqual(set(claims), {"id", "workspace_id", "iat", "exp"})
            self.assertIn("no-store", headers["Cache-Control"])
            self.assertEqual(self.post("/sign-out")[0], 200)
            self.assertEqual(self.post("/notify/token")[0], 401)

    def test_one_that_has_ended_or_was_changed_does_not(self: Any) -> None:
        with self.server() as server:
            self.post("/sign-in")
            token = self.token()
            head, claims, signature = token.split(".")
            changed = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"id": 6}
            forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
            self.assertEqual(self.shown(server, f"{head}.{forged}.{signature}"), 4500)
            secret = base64.urlsafe_b64decode(self.first["k"] + "==")
            ended = changed | {"id": 5, "iat": changed["iat"] - 400, "exp": changed["exp"] - 400}
            old = jwt.encode(ended, secret, "HS256", headers={"kid": "2026-01"})
            self.assertEqual(self.shown(server, old), 4500)
            self.assertEqual(self.shown(server, token), 5)

    def test_pages_of_other_sites_get_none(self: Any) -> None:
        self.post("/sign-in")
        self.assertEqual(self.ask("GET", "/notify/token")[0], 405)
        # What a form or a "simple" request of another site can send, with the user's cookie.
        elsewhere = {"Origin": "https://elsewhere.example", "Content_Type": "text/plain"}
        self.assertEqual(self.ask("POST", "/notify/token", b"", **elsewhere)[0], 403)
        # Other sites may not send more either, or read an answer.
        preflight = {
            "Access_Control_Request_Method": "POST",
            "Access_Control_Request_Headers": "x-requested-with",
        }
        _, headers, _ = self.ask("OPTIONS", "/notify/token", **elsewhere, **preflight)
        self.assertIsNone(headers["Access-Control-Allow-Origin"])
        _, headers, _ = self.post("/notify/token", Origin=self.origin)
        self.assertIsNone(headers["Access-Control-Allow-Origin"])
        # The session's cookie is not sent with requests that other sites make.
        session = next(one for one in self.jar if one.name != "csrftoken")
        self.assertEqual(session._rest.get("SameSite", session._rest.get("samesite", "")).lower(), "lax")

    def test_keys_are_rotated_and_nobody_is_refused(self: Any) -> None:
        with self.server() as server:
            self.post("/sign-in")
            old = self.token()
            self.write(self.first, self.second)
            self.assertEqual(jwt.get_unverified_header(self.token())["kid"], "2026-01")
            by_second = jwt.encode(
                jwt.decode(old, options={"verify_signature": False}),
                base64.urlsafe_b64decode(self.second["k"] + "=="),
                "HS256",
                headers={"kid": "2026-02"},
            )
            wait_for("it has read the new key", lambda: self.shown(server, by_second) == 5)
            self.write(self.second, self.first)
            new = self.token()
            self.assertEqual(jwt.get_unverified_header(new)["kid"], "2026-02")
            self.assertEqual((self.shown(server, old), self.shown(server, new)), (5, 5))
            self.write(self.second)
            wait_for("the old key is good no more", lambda: self.shown(server, old) == 4500)
            self.assertEqual(self.shown(server, new), 5)

    def test_the_page_gets_in_while_its_user_is_signed_in(self: Any) -> None:
        with Browser() as browser, self.server() as server:
            browser.go(self.origin)
            told = browser.wait(PAGE, f"ws://127.0.0.1:{server.public}/ws")
            self.assertEqual(told, "ClientClosed 200 5 200 ClientClosed")

    def test_a_page_of_another_origin_reads_nothing_while_its_user_is_signed_in(self: Any) -> None:
        other = serve_pages(self, self.folder, b"<title>Another page</title>")
        with Browser() as browser:
            browser.go(self.origin)
            browser.run(SIGN_IN)
            header = self.header.replace("_", "-")
            value = "document.cookie.match(/csrftoken=([^;]*)/)?.[1] ?? 'fetch'"
            options = f"{{ method: 'POST', headers: {{ '{header}': {value} }} }}"
            script = f"return fetch('/notify/token', {options}).then(({{ status }}) => status)"
            browser.until("signed in", lambda: browser.run(script) == 200)
            browser.go(f"{other}/page")
            told = browser.wait(ELSEWHERE, f"{self.origin}/notify/token", header)
            # Requests that the browser lets the page send are refused, and no answer can be read.
            self.assertEqual(told, ["TypeError", "", "TypeError", ""])


class FastAPI(Endpoint, SynchronousTestCase):
    command = ("-m", "uvicorn", "--port={PORT}", "--log-level=warning", "tests.docs.sites.fastapi_site:app")
    header = "X_Requested_With"


class Django(Endpoint, SynchronousTestCase):
    command = ("-m", "tests.docs.sites.django_site", "{PORT}", "{DATABASE}")
    header = "X_CSRFToken"
