"""A certificate authority of the tests' own, made with the openssl command."""

import ssl
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from tests.integration.peers import find
from tests.integration.programs import clean_environment

CONFIG = """
[ca]
default_ca = authority
[authority]
database = {directory}/index.txt
new_certs_dir = {directory}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
x509_extensions = leaf
[leaf]
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[any]
commonName = supplied
"""

KEY_USAGE = "keyUsage=critical,keyCertSign,cRLSign"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM files."""

    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """What a listener needs to serve it."""
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}


class Authority:
    """Issues certificates for localhost, for other hosts, and for times that are over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._openssl_path = find("openssl")
        (directory / "index.txt").touch()
        (directory / "ca.cnf").write_text(CONFIG.format(directory=directory))
        self.root = self.self_signed("root", "Test authority", "basicConstraints=critical,CA:TRUE", KEY_USAGE)

    def client_context(self) -> ssl.SSLContext:
        """Make a client's TLS settings that trust this authority, as strict as Python 3.13 makes them."""
        context = ssl.create_default_context(cafile=str(self.root.cert))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    def self_signed(self, name: str, common_name: str, *extensions: str) -> Certificate:
        """Make a certificate that vouches for itself."""
        made = self._files(name)
        subject = ["-subj", f"/CN={common_name}", "-days", "2"]
        added = [word for extension in extensions for word in ("-addext", extension)]
        self._openssl("req", "-x509", *self._new_key(made), *subject, *added, "-out", str(made.cert))
        return made

    def issue(self, name: str, host: str, *, expired: bool = False) -> Certificate:
        """Make a certificate for a host, of which the authority vouches."""
        made = self._files(name)
        request = str(self.directory / f"{name}.csr")
        subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName={_kind(host)}:{host}"]
        self._openssl("req", "-new", *self._new_key(made), *subject, "-out", request)
        span = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"] if expired else ["-days", "2"]
        signer = ["-cert", str(self.root.cert), "-keyfile", str(self.root.key)]
        config = ["-config", str(self.directory / "ca.cnf"), "-batch", "-notext"]
        self._openssl("ca", *config, *signer, *span, "-in", request, "-out", str(made.cert))
        return made

    def _files(self, name: str) -> Certificate:
        return Certificate(self.directory / f"{name}.pem", self.directory / f"{name}.key")

    @staticmethod
    def _new_key(made: Certificate) -> list[str]:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        return [*curve, "-nodes", "-keyout", str(made.key)]

    def _openssl(self, *arguments: str) -> None:
        command = [self._openssl_path, *arguments]
        environment = clean_environment(self.directory)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr


def _kind(host: str) -> str:
    """Tell whether a host is an IP address or a DNS name, in OpenSSL's words."""
    try:
        ip_address(host)
    except ValueError:
        return "DNS"
    return "IP"
