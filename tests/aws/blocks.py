"""The bytes of blocks, on disk, each content once: what lives in memory is a digest and an offset."""

import hashlib
import os
import threading
from pathlib import Path

BLOCK = 524288
ZEROS = bytes(BLOCK)
ZERO_DIGEST = hashlib.sha256(ZEROS).digest()


class Blocks:
    """A file of blocks. Nothing is freed before `reset`: a test's images have most of their blocks in common."""

    def __init__(self, folder):
        self.path = Path(folder) / "blocks"
        self.lock = threading.Lock()
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.offsets = {}
        self.end = 0

    def reset(self):
        with self.lock:
            self.offsets = {}
            self.end = 0
            os.ftruncate(self.file, 0)

    def put(self, digest, data):
        """Keeps a block. May be called by many threads at once."""
        if digest == ZERO_DIGEST:
            return
        with self.lock:
            if digest in self.offsets:
                return
            offset = self.end
            self.end += BLOCK
        os.pwrite(self.file, data, offset)
        # Only now: whoever finds the digest finds the bytes. Two at once write it twice; no harm.
        self.offsets[digest] = offset

    def get(self, digest):
        """A block's bytes."""
        if digest == ZERO_DIGEST:
            return ZEROS
        return os.pread(self.file, BLOCK, self.offsets[digest])

    def kept(self):
        return {"offsets": self.offsets, "end": self.end}

    def restore(self, kept):
        self.offsets, self.end = kept["offsets"], kept["end"]

    def statistics(self):
        return {"distinct": len(self.offsets), "bytes": self.end}


def noise(identifier, index):
    """What a block of an encrypted volume reads as when it was never written: the decryption of nothing."""
    return hashlib.shake_128(f"{identifier} {index}".encode()).digest(BLOCK)
