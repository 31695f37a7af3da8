"""Temporary folders, also those of servers that were killed: the next start removes them."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "kiln-aws-"
# Held by a server as long as it lives, however it ends. Kept here so that it isn't closed.
_held = []


def new_folder():
    """A folder of this process's own. Not in /tmp, which is memory on many machines."""
    parent = Path(os.environ.get("TMPDIR", "/var/tmp"))
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # The lock gets its name only when it is held: a sweep meets either none or a held one.
    new = folder / "lock.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / "lock")
    _held.append(lock)
    return folder


def sweep(parent):
    """Removes the folders whose server is gone: nobody holds their lock."""
    for path in parent.glob(f"{PREFIX}*/lock"):
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)
