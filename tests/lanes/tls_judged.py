"""TLS is clean: sslyze against the HTTPS edge and the control port, by Mozilla's `intermediate` profile.

    python -m tests.lanes.tls_judged SSLYZE

Once with an OpenSSL configuration that names three groups (no finding at all), once with OpenSSL's own list, which has
post-quantum groups that the profile does not know yet (no finding but `tls_curves`). Exit code 1 for anything else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.server_process import server_process

GROUPS = """openssl_conf = start
[start]
ssl_conf = ssl
[ssl]
system_default = groups
[groups]
Groups = X25519:P-256:P-384
"""
JUDGE_SECONDS = 300


def findings(sslyze: str, port: int, authority: Path) -> list[str]:
    """What is not as the profile wants it. Raises RuntimeError where sslyze said nothing about it."""
    command = [
        *(sslyze, "--mozilla_config", "intermediate", "--certinfo", "--certinfo_ca_file", str(authority)),
        *("--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression", "--fallback"),
        *(
            "--heartbleed",
            "--openssl_ccs",
            "--reneg",
            "--robot",
            "--resum",
            "--elliptic_curves",
            "--early_data",
            "--ems",
        ),
        f"localhost:{port}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=JUDGE_SECONDS, check=False)
    _, found, verdict = ran.stdout.partition("COMPLIANCE AGAINST")
    if not found:
        raise RuntimeError(ran.stdout[-3000:] + ran.stderr[-1000:])
    if "OK - Compliant" in verdict:
        return []
    return re.findall(r"^\s+\* (.*)$", verdict, re.MULTILINE) or [verdict.strip()]


def main(sslyze: str) -> int:
    failed = False
    with tempfile.TemporaryDirectory(prefix="tls-judged-") as name:
        conf = Path(name) / "openssl.cnf"
        conf.write_text(GROUPS)
        for kind, environment, allowed in (
            ("three groups", {"OPENSSL_CONF": str(conf)}, ()),
            ("OpenSSL's groups", {}, ("tls_curves",)),
        ):
            folder = Path(name) / kind.replace("'", "").replace(" ", "-")
            folder.mkdir()
            with server_process(folder, environment=environment) as server:
                for port_name, port in (("https", server.https_port), ("control", server.control_port)):
                    found = findings(sslyze, port, folder / "ca.pem")
                    bad = [one for one in found if not one.startswith(allowed)] if allowed else found
                    failed = failed or bool(bad)
                    print(f"{kind}, {port_name}: {found or 'no finding'}: {'FAIL' if bad else 'pass'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
