"""Tar streams, uncompressed: bytes to entries and back, with flat memory.

The reader takes V7, ustar, GNU's long names and large numbers, and pax. It refuses an archive that is cut short, that
is followed by something else, or that holds what cannot be made from it exactly (sparse files, devices, parts of other
volumes). It never reads half an archive. It ignores owners, and attributes other than mode and time, as a sandbox has
one user. The writer writes pax, which is plain ustar as long as ustar can express everything. For programs that do not
know pax it writes GNU's form.

The standard library's `tarfile` needs files to read from and to write to, with a thread for each, and takes a cut
archive for a complete one. The tests compare with it.
"""

from app.core.tar.reading import entries
from app.core.tar.writing import TarForm, archive

__all__ = ["TarForm", "archive", "entries"]
