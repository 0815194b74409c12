"""Issuers of tokens, as they are outside: who signs, with what, and a server of public keys that can be broken."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tests.harness import free_port

LIFE_S = 600


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says, with changes; None leaves a claim out."""
    now = int(time.time())
    said = {"sub": "alice", "iat": now, "exp": now + LIFE_S, "scope": "read write agent", **changes}
    return {name: value for name, value in said.items() if value is not None}


def by_secret(secret: str, said: dict[str, Any], **header: Any) -> str:
    """A token signed by HS256 without any library, so that ours is judged by somebody else."""
    return signed_bytes(secret, json.dumps(said).encode(), **header)


def signed_bytes(secret: str, payload: bytes, **header: Any) -> str:
    head = json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode()
    signed = b".".join(map(_base64, (head, payload)))
    return b".".join((signed, _base64(hmac.digest(secret.encode(), signed, hashlib.sha256)))).decode()


def by_key(key: Key, algorithm: str, said: dict[str, Any], **header: Any) -> str:
    """A token signed by a private key, which it names unless it is told not to."""
    head = {"alg": algorithm, "kid": key.kid, **header}
    head = {name: value for name, value in head.items() if value is not None}
    with warnings.catch_warnings(action="ignore"):  # the library would have us say Ed25519 in place of EdDSA
        return jws.serialize_compact(head, json.dumps(said).encode(), key, algorithms=[algorithm])


def new_key(algorithm: str) -> Key:
    if algorithm.startswith(("RS", "PS")):
        return RSAKey.generate_key(2048, auto_kid=True)
    if algorithm.startswith("ES"):
        curve: Any = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm]
        return ECKey.generate_key(curve, auto_kid=True)
    return OKPKey.generate_key("Ed25519", auto_kid=True)


def key_set(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


class KeyServer:
    """Serves a JWK set on a port that stays the same, in a thread of its own."""

    def __init__(self, certificate: Path | None = None) -> None:
        """With a file of a certificate and its key, by https on `localhost`."""
        self.port, self._certificate = free_port(), certificate
        self.document = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.answers = threading.Event()  # while it is cleared, requests hang
        self.answers.set()
        self.requests = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        place = "http://127.0.0.1" if self._certificate is None else "https://localhost"
        return f"{place}:{self.port}/keys"

    def publish(self, *keys: Key) -> None:
        self.document = key_set(*keys)

    def start(self) -> None:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests += 1
                served.answers.wait(30)
                self.send_response(served.status)
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(served.document)))
                self.end_headers()
                self.wfile.write(served.document)

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # who asked may have lost patience
                    super().handle()

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def key_server(*keys: Key, certificate: Path | None = None) -> Iterator[KeyServer]:
    server = KeyServer(certificate)
    server.publish(*keys)
    server.start()
    try:
        yield server
    finally:
        server.answers.set()
        server.stop()


def certificate_of(name: str, directory: Path) -> Path:
    """A file with a certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{name}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return path


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
