"""The log of requests: a file of JSON lines, one for each call, in botocore's words."""

import datetime
import hashlib
import json
import threading
from pathlib import Path


class Journal:
    """Appends from many threads; readers take the file as it stands."""

    def __init__(self, folder, copy_to=None):
        self.path = Path(folder) / "log"
        self.lock = threading.Lock()
        self.file = open(self.path, "w", encoding="utf-8")
        self.copy = open(copy_to, "a", encoding="utf-8") if copy_to else None
        self.number = 0

    def reset(self):
        with self.lock:
            self.file.seek(0)
            self.file.truncate()
            self.number = 0

    def add(self, call, started, seconds, outcome):
        """`outcome`: {"status", "error", "fault"}."""
        entry = {
            "time": started.isoformat(), "milliseconds": round(seconds * 1000, 2), "method": call.request.method,
            "service": call.service, "operation": call.operation, "region": call.region, "account": call.account,
            "access_key": call.access_key, "parameters": call.parameters, "request_id": call.request_id,
            "user_agent": call.request.headers.get("user-agent"), **outcome,
        }
        if call.unknown:
            entry["unknown"] = call.unknown
        if call.wrong:
            entry["wrong"] = call.wrong
        if call.operation is None:
            entry["path"] = call.request.path
        text = json.dumps(entry, default=_plain)
        with self.lock:
            self.number += 1
            line = f'{{"number": {self.number}, {text[1:]}\n'
            self.file.write(line)
            if self.copy:
                self.copy.write(line)
                self.copy.flush()

    def read(self, wanted):
        """The entries that have all of the wanted values, as lines."""
        with self.lock:
            self.file.flush()
        with open(self.path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    entry = json.loads(line)
                    if all(str(entry.get(key)) == value for key, value in wanted.items()):
                        yield line


def _plain(value):
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    return str(value)
