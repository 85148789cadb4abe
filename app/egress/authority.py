"""Certificate authorities of sandboxes. The egress process signs certificates with one for hosts whose rules have
`http`, so that it can read what programs send them. Programs of that sandbox trust it, and nobody else does.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.backends.openssl import backend as _  # noqa: F401  # else at the first use: see __main__
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.egress.protocol import KeyPair

SUBJECT = "Bulkhead sandbox authority"  # of every sandbox: OpenSSL finds certificates by the hash of it, in file names
COMMON_NAME = 64  # characters at most: RFC 5280, appendix A.1, ub-common-name
_AGE, _LIFE = datetime.timedelta(days=1), datetime.timedelta(days=3650)
_UNUSED = dict.fromkeys(
    ("content_commitment", "data_encipherment", "key_agreement", "key_encipherment", "encipher_only", "decipher_only"),
    False,
)


def new_authority() -> KeyPair:
    """Makes the authority of a sandbox. It takes 0.3 ms."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(SUBJECT)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - _AGE, now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_UNUSED), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return _pair(certificate, key)


class Authority:
    """Signs certificates of hosts. All of one authority have one key."""

    def __init__(self, pair: KeyPair) -> None:
        """Raises ValueError for what is no certificate with its EC key."""
        self._certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = load_pem_private_key(pair.key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise ValueError("the key is not that of the certificate")
        self._key = key
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    def leaf(self, host: str) -> KeyPair:
        """A certificate for this name alone, as valid as the authority's. It takes 0.2 ms."""
        public = self._leaf_key.public_key()
        issuer = self._certificate
        certificate = (
            x509.CertificateBuilder(
                issuer.subject,
                # Old clients read it where the name below is missing, which it never is.
                _name(host if len(host) <= COMMON_NAME else "Bulkhead"),
                public,
                x509.random_serial_number(),
                issuer.not_valid_before_utc,
                issuer.not_valid_after_utc,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_UNUSED), critical=True
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        return _pair(certificate, self._leaf_key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:COMMON_NAME])])


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return KeyPair(certificate.public_bytes(Encoding.PEM).decode(), pem.decode())
