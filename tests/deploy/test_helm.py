"""The chart in deploy/helm: a strict validator accepts what Helm renders, and the programs accept the files in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from notify import __version__, components
from notify.config import load
from tests.support.ports import free_port
from tests.support.process import KEY, Server
from tests.support.programs import ROOT, program, run

CHART = ROOT / "deploy" / "helm" / "notify"
SECRETS = ROOT / "deploy" / "helm" / "secrets.py"

#: the API versions in the chart, and that of what it offers for the Prometheus operator; a validator only warns of others
VERSIONS = {"v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1"}
OPERATOR = "monitoring.coreos.com/v1"

#: values that turn on or off what the defaults do not
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all": {
        "ingress": {"enabled": True, "tlsSecret": "chat-tls"},
        "monitoring": {"podMonitor": True, "rules": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "publishersToNATS": True,
            "otlp": {
                "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}]
            },
            "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 443}]}],
        },
        "autoscaling": {"connections": 20000},
        "nats": {"tls": {"existingSecret": "nats-tls"}, "storageClass": "fast"},
        "image": {"pullSecrets": [{"name": "registry"}], "tag": "1.0.1"},
        "podAnnotations": {"team": "chat"},
        "podLabels": {"team": "chat"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "chat", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "env": [{"name": "NOTIFY_LOG__LEVEL", "value": "debug"}],
        "service": {"annotations": {"team": "chat"}},
    },
    "little": {
        "autoscaling": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "nats": {"enabled": False, "servers": ["tls://nats.example:4222"], "streamReplicas": 1},
        "replicas": 2,
        "config": '[broker.jetstream]\nuser = "notify"\npassword = "kept elsewhere"\n',
    },
}


class HelmCase(TestCase):
    def setUp(self) -> None:
        self.helm = program("helm")
        self.folder = Path(tempfile.mkdtemp(prefix="notify-helm-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def values(self, variant: dict[str, Any]) -> Path:
        path = self.folder / "values.yaml"
        path.write_text(yaml.safe_dump(variant))
        return path

    def template(self, variant: dict[str, Any], *more: str, chart: Path = CHART) -> str:
        """What Helm renders, without its standard error. Raises ``CalledProcessError``."""
        command = [
            self.helm,
            "template",
            "chat-notify",
            chart,
            "--namespace",
            "chat",
            "--kube-version",
            "1.33.0",
        ]
        environ = {**os.environ, "HELM_CACHE_HOME": str(self.folder), "HELM_CONFIG_HOME": str(self.folder)}
        return subprocess.run(
            [*map(str, command), "--values", str(self.values(variant)), *more],
            check=True,
            text=True,
            capture_output=True,
            timeout=60,
            env=environ,
        ).stdout

    def render(self, variant: dict[str, Any]) -> list[dict[str, Any]]:
        return [one for one in yaml.safe_load_all(self.template(variant)) if one]

    def refusal(self, variant: dict[str, Any]) -> str:
        failed = self.assertRaises(subprocess.CalledProcessError, self.template, variant)
        return str(failed.stderr)

    def one(self, documents: list[dict[str, Any]], kind: str, name: str = "chat-notify") -> dict[str, Any]:
        (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
        return found


class ChartTests(HelmCase):
    def test_helm_itself_finds_nothing_wrong(self) -> None:
        for variant in VARIANTS.values():
            said = run(self.helm, "lint", "--strict", CHART, "--values", self.values(variant))
            self.assertIn("0 chart(s) failed", said)

    def test_a_strict_validator_takes_every_variant_without_a_warning(self) -> None:
        validate = program("kubernetes-validate")
        for variant in VARIANTS.values():
            documents = [d for d in self.render(variant) if d["apiVersion"] != OPERATOR]
            path = self.folder / "all.yaml"
            path.write_text(yaml.safe_dump_all(documents))
            said = run(validate, "--strict", path)
            self.assertNotIn("WARN", said)
            self.assertEqual(said.count(" passed "), len(documents))
            self.assertEqual({d["apiVersion"] for d in documents} - VERSIONS, set())

    def test_every_value_is_in_the_schema_and_a_wrong_one_is_named(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        self.assertEqual(set(defaults) | {"global"}, set(schema["properties"]))
        for wrong, named in (
            ({"drian": {}}, "drian"),
            ({"drain": {"delay": "10s"}}, "drain.delay"),
            ({"existingSecret": ""}, "existingSecret"),
            ({"nats": {"syncInterval": "soon"}}, "nats.syncInterval"),
            ({"nats": {"enabled": False}}, "nats.servers is empty"),
            ({"networkPolicy": {"publishers": None}}, "publishers"),
            ({"autoscaling": {"cpu": 0}}, "nothing to go by"),
            ({"autoscaling": {"min": 9, "max": 3}}, "autoscaling.min is more than"),
        ):
            # One version of Helm writes the path of a value with dots, and another with slashes.
            self.assertIn(named, self.refusal(wrong).replace("/", "."))

    def test_its_version_is_that_of_the_server(self) -> None:
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["version"], chart["appVersion"]), (__version__, __version__))

    def test_two_releases_in_one_namespace_share_no_name(self) -> None:
        names = [
            {(d["kind"], d["metadata"]["name"]) for d in self.render({**VARIANTS["all"], **more})}
            for more in ({}, {"existingSecret": "other"})
        ]
        self.assertEqual(names[0], names[1])
        for _, name in names[0]:
            self.assertTrue(name.startswith("chat-notify"), name)

    def test_notes_name_the_secrets_and_the_way_in(self) -> None:
        # Helm shows the notes only if there is a cluster: as a value of a document they can be seen without one.
        chart = self.folder / "notify"
        shutil.copytree(CHART, chart)
        notes = (chart / "templates" / "NOTES.txt").read_text()
        (chart / "templates" / "shown.yaml").write_text("notes: |\n" + indent(notes, "  "))
        variant = {"ingress": {"enabled": True, "tlsSecret": "x", "host": "chat.example"}}
        said = self.template(variant, "--show-only", "templates/shown.yaml", chart=chart)
        for part in (
            "wss://chat.example/ws",
            "http://chat-notify-internal.chat.svc:8081",
            "Secret notify (",
            "without TLS",
        ):
            self.assertIn(part, yaml.safe_load(said)["notes"])


class ManifestTests(HelmCase):
    def test_an_autoscaler_has_the_number_of_pods_to_itself(self) -> None:
        documents = self.render({"autoscaling": {"connections": 20000}})
        self.assertNotIn("replicas", self.one(documents, "Deployment")["spec"])
        metrics = self.one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual([metric["type"] for metric in metrics], ["Pods", "Resource"])
        self.assertEqual(metrics[0]["pods"]["metric"]["name"], "notify_connections")
        little = self.render(VARIANTS["little"])
        self.assertEqual(self.one(little, "Deployment")["spec"]["replicas"], 2)
        self.assertNotIn("HorizontalPodAutoscaler", [d["kind"] for d in little])

    def test_pods_are_not_root_cannot_write_and_have_no_capabilities(self) -> None:
        pods = [
            d["spec"]["template"]["spec"] if "template" in d["spec"] else d["spec"]
            for d in self.render(VARIANTS["all"])
            if d["kind"] in ("Deployment", "StatefulSet", "Pod")
        ]
        self.assertEqual(len(pods), 3)
        for pod in pods:
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            for container in pod["containers"]:
                self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
                self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])
                self.assertEqual(container["securityContext"]["capabilities"]["drop"], ["ALL"])

    def test_what_runs_for_long_has_probes_and_leaves_in_order(self) -> None:
        for document in self.render({}):
            if document["kind"] in ("Deployment", "StatefulSet"):
                (container,) = document["spec"]["template"]["spec"]["containers"]
                self.assertIn("preStop", container["lifecycle"])
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertIn(probe, container)

    def test_a_pod_that_serves_nobody_holds_up_no_machine_and_a_rollout_waits_for_each(self) -> None:
        documents = self.render({})
        budget = self.one(documents, "PodDisruptionBudget")["spec"]
        self.assertEqual(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow")
        self.assertGreater(self.one(documents, "Deployment")["spec"]["minReadySeconds"], 0)

    def test_a_pod_has_time_for_its_drain(self) -> None:
        documents = self.render({"drain": {"delay": 20, "duration": 120}})
        grace = self.one(documents, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        self.assertEqual(grace, 20 + 120 + 35)

    def test_another_configuration_makes_other_pods(self) -> None:
        def checksum(variant: dict[str, Any]) -> str:
            template = self.one(self.render(variant), "Deployment")["spec"]["template"]
            return str(template["metadata"]["annotations"]["checksum/config"])

        variants: tuple[dict[str, Any], ...] = (
            {}, {"config": "[limits]\nreplay = 5\n"}, {"drain": {"delay": 1}}, {"nats": {"streamReplicas": 1}}
        )  # fmt: skip
        self.assertEqual(len({checksum(variant) for variant in variants}), len(variants))

    def test_every_secret_and_map_that_is_mounted_is_made_here_or_named_in_the_values(self) -> None:
        documents = self.render(VARIANTS["all"])
        made = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
        for document in documents:
            if document["kind"] in ("Deployment", "StatefulSet"):
                for volume in document["spec"]["template"]["spec"]["volumes"]:
                    if "configMap" in volume:
                        self.assertIn(volume["configMap"]["name"], made)
                    if "secret" in volume:
                        self.assertIn(volume["secret"]["secretName"], {"notify", "nats-tls"})

    def test_an_ingress_leads_to_the_public_port_alone(self) -> None:
        (rule,) = self.one(self.render(VARIANTS["all"]), "Ingress")["spec"]["rules"]
        service = {"name": "chat-notify", "port": {"name": "public"}}
        paths = [(path["path"], path["backend"]["service"]) for path in rule["http"]["paths"]]
        self.assertEqual(paths, [("/ws", service), ("/events", service)])

    def test_the_operator_scrapes_under_the_name_that_rules_ask_for(self) -> None:
        documents = self.render(VARIANTS["all"])
        monitor = self.one(documents, "PodMonitor")
        pods = self.one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
        self.assertEqual(pods[monitor["spec"]["jobLabel"]], "notify")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
        selector = monitor["spec"]["selector"]["matchLabels"]
        self.assertEqual({key: pods[key] for key in selector}, selector)
        rules = yaml.safe_load((ROOT / "etc" / "prometheus" / "notify.rules.yaml").read_text())
        self.assertEqual(self.one(documents, "PrometheusRule")["spec"], rules)


class NetworkPolicyTests(HelmCase):
    """As NetworkPolicies are defined: a pod that a policy selects accepts what some rule lets in, and nothing else."""

    PUBLISHER = {"notify.example/publisher": "true"}  # noqa: RUF012

    def ways_in(self, policy: dict[str, Any]) -> dict[str, set[str]]:
        """Who may reach which port: labels of a namespace or of a pod, as JSON; ``*`` means everybody."""
        ways: dict[str, set[str]] = {}
        for rule in policy["spec"]["ingress"]:
            for peer in rule.get("from", ["*"]):
                key = (
                    peer
                    if peer == "*"
                    else json.dumps(next(iter(peer.values()))["matchLabels"], sort_keys=True)
                )
                ways.setdefault(key, set()).update(str(port["port"]) for port in rule["ports"])
        return ways

    def test_publishers_reach_the_api_and_nothing_else(self) -> None:
        documents = self.render({})
        ways = self.ways_in(self.one(documents, "NetworkPolicy"))
        self.assertEqual(ways["*"], {"public"})
        self.assertEqual(ways[json.dumps(self.PUBLISHER)], {"internal"})
        self.assertNotIn(
            json.dumps(self.PUBLISHER), self.ways_in(self.one(documents, "NetworkPolicy", "chat-notify-nats"))
        )

    def test_where_they_may_they_reach_the_client_port_of_nats(self) -> None:
        policy = self.one(self.render(VARIANTS["all"]), "NetworkPolicy", "chat-notify-nats")
        self.assertEqual(self.ways_in(policy)[json.dumps(self.PUBLISHER)], {"client"})

    def test_pods_of_each_kind_are_selected_and_reach_what_they_need(self) -> None:
        documents = self.render(VARIANTS["all"])
        for kind, name in (("Deployment", "chat-notify"), ("StatefulSet", "chat-notify-nats")):
            labels = self.one(documents, kind, name)["spec"]["template"]["metadata"]["labels"]
            selector = self.one(documents, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"]
            self.assertEqual({key: labels.get(key) for key in selector}, selector)
        ports = [
            str(port["port"])
            for rule in self.one(documents, "NetworkPolicy")["spec"]["egress"]
            for port in rule["ports"]
        ]
        self.assertEqual(ports, ["4222", "53", "53", "4318", "443"])
        (pod,) = (d for d in documents if d["kind"] == "Pod")
        ways = self.ways_in(self.one(documents, "NetworkPolicy"))
        wanted = {
            key: pod["metadata"]["labels"][key]
            for key in ("app.kubernetes.io/instance", "app.kubernetes.io/name")
        }
        self.assertEqual(ways[json.dumps(wanted)], {"internal"})


class InsideTests(HelmCase):
    """What the programs in the pods make of their files."""

    def secrets(self) -> dict[str, dict[str, str]]:
        said = subprocess.run(
            [sys.executable, "-I", "-", "chat", "notify"],
            stdin=SECRETS.open(),
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        return {item["metadata"]["name"]: item["stringData"] for item in json.loads(said)["items"]}

    def unpack(self, data: dict[str, str], *changes: tuple[str, str]) -> Path:
        """Write the files of a ConfigMap, or of a Secret."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name, text in data.items():
            for old, new in changes:
                text = text.replace(old, new)
            (folder / name).write_text(text)
        return folder

    def test_the_server_takes_the_configuration(self) -> None:
        for variant in VARIANTS.values():
            folder = self.unpack(self.one(self.render(variant), "ConfigMap")["data"])
            components.check(load([str(folder / "notify.toml"), str(folder / "values.toml")], {}))

    def test_nats_server_takes_its_configuration(self) -> None:
        public = self.secrets()["notify-nats"]
        pem, key = self.folder / "tls.crt", self.folder / "tls.key"
        run(
            program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "1", "-subj", "/CN=nats", "-keyout", key, "-out", pem,
        )  # fmt: skip
        shutil.copy(pem, self.folder / "ca.crt")
        for variant in ("defaults", "all"):
            data = self.one(self.render(VARIANTS[variant]), "ConfigMap", "chat-notify-nats")["data"]
            folder = self.unpack(data, ("/etc/nats-tls", str(self.folder)), ("/data", str(self.folder)))
            run(
                program("nats-server"), "-t", "-c", folder / "nats.conf", environ={"POD_NAME": "chat-notify-nats-0", **public}
            )  # fmt: skip

    def test_a_server_of_it_is_ready_on_a_nats_of_it_and_its_test_passes(self) -> Deferred[None]:
        return deferToThread(self.together)

    def together(self) -> None:
        documents, secrets = self.render({"nats": {"streamReplicas": 1}}), self.secrets()
        client, cluster, monitor = free_port(), free_port(), free_port()
        nats = self.unpack(
            self.one(documents, "ConfigMap", "chat-notify-nats")["data"],
            ("0.0.0.0:4222", f"127.0.0.1:{client}"),
            ("0.0.0.0:6222", f"127.0.0.1:{cluster}"),
            ("0.0.0.0:8222", f"127.0.0.1:{monitor}"),
            ("store_dir: /data", f"store_dir: {self.folder}/data"),
        )
        # One server is no cluster: the part about the other servers is left out.
        text = (nats / "nats.conf").read_text()
        before, _, rest = text.partition("cluster {")
        (nats / "nats.conf").write_text(before + rest.partition("\n}\n")[2])
        mounted = self.unpack(secrets["notify"])
        changes = [
            ("/run/secrets/notify", str(mounted)),
            ("tcp:8081", "tcp:INTERNAL:interface=127.0.0.1"),
            *(
                (f"nats://chat-notify-nats-{n}.chat-notify-nats:4222", f"nats://127.0.0.1:{client}")
                for n in range(3)
            ),
        ]
        files = self.unpack(self.one(documents, "ConfigMap")["data"], *changes)
        server = subprocess.Popen(
            [program("nats-server"), "-c", str(nats / "nats.conf")],
            env={**os.environ, "POD_NAME": "nats-0", **secrets["notify-nats"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.serve(documents, files, mounted)
        finally:
            server.kill()
            server.wait()

    def serve(self, documents: list[dict[str, Any]], files: Path, mounted: Path) -> None:
        server = Server(environ={"NOTIFY_SERVER__NODE": "chat-notify-0"})
        server.file.write_text(
            (files / "notify.toml").read_text().replace("tcp:INTERNAL", f"tcp:{server.internal}")
            .replace("[listen]", f'[listen]\npublic = "tcp:{server.public}:interface=127.0.0.1"')
        )  # fmt: skip
        with server:
            (pod,) = (d for d in documents if d["kind"] == "Pod")
            command = pod["spec"]["containers"][0]["command"]
            script = command[-1].replace("/run/secrets/notify", str(mounted))
            script = script.replace("http://chat-notify-internal:8081", f"http://127.0.0.1:{server.internal}")
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            said = run(sys.executable, *command[1:-1], script, environ={"PATH": path})
            self.assertIn("chat-notify-0", said)

    def test_pre_stop_begins_a_drain_that_sigterm_does_not_hurry(self) -> Deferred[None]:
        return deferToThread(self.pre_stop)

    def pre_stop(self) -> None:
        container = self.one(self.render({}), "Deployment")["spec"]["template"]["spec"]["containers"][0]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        with Server('[drain]\ndelay = "1s"\n') as server:
            keys = self.folder / "api.keys"
            keys.write_text(f"{KEY}\n")
            script = command[-1].replace("/run/secrets/notify/api.keys", str(keys))
            script = script.replace("8081", str(server.internal))
            began = time.monotonic()
            run(program("python3"), *command[1:-1], script)
            server.process.terminate()
            self.assertEqual(server.process.wait(15), 0)
            self.assertGreater(time.monotonic() - began, 0.9)

    def test_the_arguments_are_options_of_the_server(self) -> None:
        from notify.tap import Options

        container = self.one(self.render({}), "Deployment")["spec"]["template"]["spec"]["containers"][0]
        for option in container["args"][::2]:
            self.assertIn(f"{option.removeprefix('--')}=", Options().longOpt)
