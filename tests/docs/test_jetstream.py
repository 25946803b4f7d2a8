"""What docs/jetstream.md says about certificates, done with openssl."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.programs import program

PAGE = Path(__file__).parent.parent.parent / "docs" / "jetstream.md"


class PrivateAuthority(SynchronousTestCase):
    def setUp(self) -> None:
        program("openssl")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        tls = PAGE.read_text().partition("\n## TLS\n")[2].partition("\n## ")[0]
        self.see, self.mend = re.findall(r"(?ms)^```bash\n(.*?)^```", tls)

    def bash(self, commands: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-euc", commands],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def test_a_certificate_without_an_authority_key_identifier_is_seen_and_mended(self) -> None:
        new = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        code, said = self.bash(
            f"""{new} -x509 -subj /CN=ca -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca-key.pem -out ca.pem
            {new} -subj /CN=nats-1 -keyout server-key.pem -out server.csr
            echo authorityKeyIdentifier=none >server.ext
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -set_serial 1 -extfile server.ext -out server.pem
            """
        )
        self.assertEqual(code, 0, said)
        code, said = self.bash(self.see)
        self.assertNotEqual(code, 0)
        self.assertIn("Missing Authority Key Identifier", said)
        code, said = self.bash(self.mend)
        self.assertEqual(code, 0, said)
        self.assertEqual(self.bash(self.see), (0, "server.pem: OK\n"))
