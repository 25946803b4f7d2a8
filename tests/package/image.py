"""The container image: built without a registry, run read-only and without capabilities. Root. `make image-test`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

from notify.auth.tokens import issue
from notify.client.publisher import Publisher
from tests.package.machine import TOP, base, require, run, say
from tests.support.inventory import wrong
from tests.support.ports import free_port
from tests.support.process import Client, wait_for

BASE = "localhost/notify-test/base:local"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
IMAGE = "localhost/notify-test/notify:local"
SECRET, KEY = "a-secret-for-the-image-test-0123456789", "a-key-for-the-image-test"
#: podman's defaults may be more than this machine allows
LIMITS = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=32768:32768")


def health(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> None:
    require("podman", "mmdebstrap", "runc")
    run("podman", "import", base(), BASE)
    with tempfile.TemporaryDirectory() as folder:
        # The build trusts the same authorities and uses the same package index as this machine; neither stays in
        # the image.
        pip = Path(folder) / "pip.conf"
        index = os.environ.get("PIP_INDEX_URL")
        pip.write_text(f"[global]\ncert = {AUTHORITIES}\n" + (f"index-url = {index}\n" if index else ""))
        run(
            "podman", "build", "--isolation=chroot", "--network=host", "--format=docker",
            f"--volume={AUTHORITIES}:{AUTHORITIES}:ro", f"--volume={pip}:/etc/pip.conf:ro",
            f"--build-arg=BASE={BASE}", f"--build-arg=BUILD={BASE}", f"--tag={IMAGE}", "--file", TOP / "deploy/docker/Dockerfile", TOP,
        )  # fmt: skip
    about = json.loads(run("podman", "image", "inspect", IMAGE))[0]
    below = json.loads(run("podman", "image", "inspect", BASE))[0]
    say(f"built: {(about['Size'] - below['Size']) / 2**20:.0f} MiB on top of its base")
    assert about["Config"]["User"] == "65532:65532", about["Config"]["User"]
    healthcheck = about.get("Healthcheck") or about["Config"].get("Healthcheck")
    assert healthcheck, "no healthcheck"

    listed = run(
        "podman", "--runtime=runc", "run", "--rm", "--read-only", "--cap-drop=ALL", "--network=host", "--entrypoint=cat",
        "--read-only-tmpfs=false", "--no-healthcheck", *LIMITS, IMAGE, "/opt/notify/sbom.cdx.json",
    )  # fmt: skip
    assert not wrong(listed), f"the list of what is in it is not that of the lock: {wrong(listed)}"

    public, internal = free_port(), free_port()
    environ = {
        "NOTIFY_LISTEN__PUBLIC": f"tcp:{public}:interface=127.0.0.1",
        "NOTIFY_LISTEN__INTERNAL": f"tcp:{internal}:interface=127.0.0.1",
        "NOTIFY_AUTH__JWT__SECRET": SECRET,
        "NOTIFY_API__KEYS": KEY,
        "NOTIFY_DRAIN__DURATION": "1s",
    }
    container = run(
        "podman", "--runtime=runc", "run", "--detach", "--network=host", "--read-only", "--cap-drop=ALL",
        "--security-opt=no-new-privileges", "--read-only-tmpfs=false", "--no-healthcheck",
        *LIMITS, "--stop-timeout=20",
        *(f"--env={name}={value}" for name, value in environ.items()), IMAGE,
    ).split()[-1]  # fmt: skip
    try:
        wait_for("it is ready", lambda: health(internal) == 200, 60)
        pid = json.loads(run("podman", "inspect", container))[0]["State"]["Pid"]
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split() == ["65532"] * 4, status["Uid"]
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, "it has capabilities"
        root = next(
            line for line in Path(f"/proc/{pid}/mounts").read_text().splitlines() if line.split()[1] == "/"
        )
        assert "ro" in root.split()[3].split(","), f"the root file system can be written: {root}"
        say("it runs read-only, without capabilities, as user 65532")

        token = issue(SECRET, 1, 1, 600, time.time())
        with connect(f"ws://127.0.0.1:{public}/ws", close_timeout=1) as connection:
            client = Client(connection)
            client.send(type="auth", token=token)
            assert client.receive()["success"]
            client.send(type="subscribe", chat_id=1, id=1)
            assert client.receive()["type"] == "subscribed"
            with Publisher(f"http://127.0.0.1:{internal}", KEY) as publisher:
                publisher.chat(1, 1, 1, "hello")
            assert client.receive()["content"] == "hello"
            say("a message arrives through it")
            probe = healthcheck["Test"][1:]
            probe = [part.replace("8081", str(internal)) for part in probe]
            done = subprocess.run(
                [
                    "nsenter",
                    f"--target={pid}",
                    "--mount",
                    "--",
                    "env",
                    "PATH=/opt/notify/bin:/usr/bin",
                    *probe,
                ]
            )
            assert done.returncode == 0, "the healthcheck fails"
            say("its healthcheck succeeds")
            os.kill(pid, 15)
            code, advice = client.closed(20)
            assert (code, list(advice)) == (1012, ["retry_after_ms"]), (code, advice)
        assert run("podman", "wait", container).strip() == "0", "it did not end well"
        log = run("podman", "logs", container)
        assert all(json.loads(line)["message"] for line in log.splitlines()), "its log is not JSON"
        assert "plugin" not in log, "it complains about plugin caches"
        say("told to stop, it drains and ends well; its log is JSON")
    except BaseException:
        print(run("podman", "logs", container), file=sys.stderr)
        raise
    finally:
        run("podman", "rm", "--force", container)
        run("podman", "image", "rm", "--force", IMAGE)
    say("image: passed")


if __name__ == "__main__":
    main()
