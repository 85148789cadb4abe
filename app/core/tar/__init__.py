"""Tar streams, uncompressed: bytes to entries and back, with flat memory.

Read are V7, ustar, GNU's long names and large numbers, and pax. An archive that is cut short, is followed by something
else, or holds what cannot be made from it exactly (sparse files, devices, parts of other volumes) is refused, never
read by half. Owners, and attributes beyond mode and time, are passed over: in a sandbox there is one user. Written is
pax, which is ustar as long as that can say everything.

The standard library's `tarfile` wants files to read from and to write to, with a thread for each, and takes what is
cut short for the end. It is what the tests compare with.
"""

from app.core.tar.reading import entries
from app.core.tar.writing import archive

__all__ = ["archive", "entries"]
