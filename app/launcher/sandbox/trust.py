"""The trust stores of a sandbox that has an authority of its own: files with the certificates of those whom programs
trust. Each of them gets the authority's certificate in addition to the host's.

The launcher finds the host's stores when it starts. A sandbox with an authority covers them by files of its own. Its
programs need no option and no variable for them.
"""

from __future__ import annotations

import _sha1  # type: ignore[import-not-found]  # hashlib would bring all of OpenSSL in here
import binascii
import errno
import os
import struct

from app.launcher.kernel.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    mount,
    umount,
)
from app.launcher.protocol import AUTHORITY_HASH, MOST_CERTIFICATE
from app.launcher.sandbox.mounts import OWN

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Iterable

# Where OpenSSL looks for the certificate of an authority when it has a folder of them: by the hash of the subject,
# openssl-rehash(1). The template has an empty file there.
CERTIFICATE = f"/etc/ssl/certs/{AUTHORITY_HASH}.0"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, where the one above leads to
    "/etc/ssl/cert.pem",  # Alpine
)
_JAVA = (
    "/etc/ssl/certs/java/cacerts",  # Debian
    "/etc/pki/ca-trust/extracted/java/cacerts",  # Fedora
    "/etc/pki/java/cacerts",
)
_JDKS = ("/usr/lib/jvm", "/usr/java", "/usr/local")  # folders of them, each with its own store or a link to one above
_JDK_STORES = ("lib/security/cacerts", "jre/lib/security/cacerts")
_MOUNT = OWN + "/trust"
_JAVA_CERTIFICATES = OWN + "/java"  # of the template: those of the bundle, as a Java store has them
_PAGE = os.sysconf("SC_PAGESIZE")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_ATTRIBUTES = MS_NOSUID | MS_NODEV | MS_NOEXEC
# What the digest of a Java store begins with: its password, that of Java's own stores, and a constant of the format.
_DIGEST_HEAD = b"".join(b"\0%c" % letter for letter in b"changeit") + b"Mighty Aphrodite"


class TrustStores:
    """Those of the template. `bundles`: files with certificates in PEM. `java`: key stores of Java."""

    __slots__ = ("bundles", "java", "java_digest")

    def __init__(self, bundles: list[str], java: list[str]) -> None:
        self.bundles, self.java = bundles, java
        self.java_digest = _sha1.sha1()  # of all but the end of a sandbox's key store

    @property
    def bundle(self) -> str:
        """Where a program finds all certificates: for one that has to be told."""
        return self.bundles[0] if self.bundles else CERTIFICATE

    @property
    def paths(self) -> list[str]:
        return [CERTIFICATE, *self.bundles, *self.java]


def find_stores(root_paths: list[str]) -> TrustStores:
    """`root_paths`: what the template has of the host. A Java may be in each of them, or one folder below."""
    folders = [*_JDKS, *root_paths]
    homes = [*root_paths, *(f"{folder}/{name}" for folder in folders for name in _names(folder))]
    java = (f"{home}/{store}" for home in homes for store in _JDK_STORES)
    return TrustStores(_real(_BUNDLES), _real((*_JAVA, *java)))


def _names(folder: str) -> list[str]:
    """None of a folder that is not there or that the launcher may not read: then no program in a sandbox can either."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _real(paths: Iterable[str]) -> list[str]:
    """The files that these paths lead to, each once."""
    found = {os.path.realpath(path): None for path in paths if os.path.isfile(path)}
    return list(found)


def make_template(root_paths: list[str]) -> TrustStores:
    """In the template, which is the root already and can still be written to: mount points, and what the stores of all
    sandboxes have in common. Raises OSError."""
    stores = find_stores(root_paths)
    os.mkdir(_MOUNT, 0o755)
    os.makedirs(os.path.dirname(CERTIFICATE), mode=0o755, exist_ok=True)
    _write(CERTIFICATE)
    if stores.java:
        content = _java_certificates(_read(stores.bundles[0]) if stores.bundles else b"")
        _write(_JAVA_CERTIFICATES, content)
        stores.java_digest = _sha1.sha1(_DIGEST_HEAD + content)
    return stores


def mount_stores(stores: TrustStores, certificate: bytes) -> None:
    """Covers each store by one that has the authority's certificate too. `certificate` is in PEM. Raises OSError."""
    files = {"certificate": ("", certificate)}
    if stores.bundles:
        files["bundle"] = (stores.bundles[0], b"\n" + certificate)
    if stores.java:
        files["java"] = (_JAVA_CERTIFICATES, _end_of_java_store(stores.java_digest.copy(), der_of(certificate)))
    size = sum(_PAGE + len(end) + (os.stat(source).st_size if source else 0) for source, end in files.values())
    mount("sandbox", _MOUNT, "tmpfs", _ATTRIBUTES, f"size={size},nr_inodes={len(files) + 1},mode=0755")
    for name, (source, end) in files.items():
        _write(f"{_MOUNT}/{name}", end, source)
    mount("none", _MOUNT, None, MS_REMOUNT | MS_RDONLY | _ATTRIBUTES)
    for name, targets in (("certificate", [CERTIFICATE]), ("bundle", stores.bundles), ("java", stores.java)):
        for target in targets:
            if os.path.exists(target):  # an update of the host may have removed a Java since
                mount(f"{_MOUNT}/{name}", target, None, MS_BIND)
    umount(_MOUNT, MNT_DETACH)


def prove(stores: TrustStores, certificate: bytes) -> None:
    """Raises OSError unless every store ends with the certificate, and none can be written to."""
    in_java = der_of(certificate)
    for path in stores.paths:
        if os.path.exists(path):
            if (in_java if path in stores.java else certificate) not in _read(path, MOST_CERTIFICATE):
                raise OSError(errno.ENOTSUP, f"{path} lacks the certificate of the sandbox's authority")
            if not os.statvfs(path).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, f"{path} is writable")


def der_of(certificate: bytes) -> bytes:
    """Of one certificate in PEM, RFC 7468, with nothing before and nothing after it. Raises ValueError."""
    begin, end = _BEGIN + b"\n", b"\n" + _END + b"\n"
    if not certificate.startswith(begin) or not certificate.endswith(end):
        raise ValueError("not one certificate")
    der = binascii.a2b_base64(certificate[len(begin) : -len(end)].replace(b"\n", b""), strict_mode=True)
    if der[:2] != b"\x30\x82" or len(der) != 4 + int.from_bytes(der[2:4], "big"):  # one SEQUENCE, X.690
        raise ValueError("not a certificate")
    return der


# --- files


def _read(path: str, last: int = 0) -> bytes:
    """All of it, or so many of its last bytes. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, max(0, size - last) if last else 0)
    finally:
        os.close(descriptor)


def _write(path: str, end: bytes = b"", source: str = "") -> None:
    """Makes the file, of another one and an end. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    try:
        if source:
            _copy(source, descriptor)
        if os.write(descriptor, end) != len(end):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)


def _copy(source: str, target: int) -> None:
    """In the kernel: what is read here would count for the sandbox a second time."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(target, descriptor, None, 1 << 20):
            pass
    finally:
        os.close(descriptor)


# --- Java's key stores, in the format JKS: big-endian, entries after their number, a digest at the end. All versions of
# Java read it, whatever format their own store has.


def _java_certificates(bundle: bytes) -> bytes:
    """The head of a store that will have one certificate more, and an entry for each of a bundle that can be
    decoded."""
    entries: list[bytes] = []
    for piece in bundle.split(_END):
        _, begin, text = piece.rpartition(_BEGIN)
        if begin:
            try:
                entries.append(_java_entry(f"host-{len(entries)}", binascii.a2b_base64(text)))
            except ValueError:
                continue  # the host's other programs do not read it either
    return struct.pack(">III", 0xFEEDFEED, 2, len(entries) + 1) + b"".join(entries)


def _java_entry(alias: str, der: bytes) -> bytes:
    name, kind = alias.encode(), b"X.509"
    head = struct.pack(f">IH{len(name)}sQH5sI", 2, len(name), name, 0, len(kind), kind, len(der))
    return head + der


def _end_of_java_store(digest: _sha1.SHA1Type, der: bytes) -> bytes:
    """`digest`: of what comes before."""
    entry = _java_entry("sandbox-authority", der)
    digest.update(entry)
    return bytes(entry + digest.digest())
