"""The real request rates as token buckets, per account and region: off unless `rates` is set.

The EBS direct numbers are the published default quotas; EC2's are its documented buckets of non-mutating, mutating and
unfiltered calls, coarsely.
"""

import threading
import time

# Calls a second, and how many may come at once after a pause.
RATES = {
    "StartSnapshot": (10, 10), "CompleteSnapshot": (10, 10), "PutSnapshotBlock": (1000, 1000),
    "GetSnapshotBlock": (1000, 1000), "ListSnapshotBlocks": (50, 50), "ListChangedBlocks": (50, 50),
    "CopySnapshot": (2, 100), "RegisterImage": (2, 100), "CopyImage": (2, 100), "DescribeSnapshots": (20, 100),
    "DescribeImages": (20, 100), "PutParameter": (10, 10), "ModifyImageAttribute": (5, 100),
}
# PutSnapshotBlock has a second quota, of each snapshot.
SNAPSHOT_RATE = (1000, 1000)


class Quotas:
    """The buckets."""

    def __init__(self, settings):
        self.settings = settings
        self.lock = threading.Lock()
        self.buckets = {}

    def reset(self):
        with self.lock:
            self.buckets = {}

    def take(self, call):
        """Whether the call is within its rates."""
        settings = self.settings()
        if not settings["rates"]:
            return True
        rate, burst = RATES.get(call.operation, (100, 200))
        if call.operation in settings["rate_overrides"]:
            rate = burst = settings["rate_overrides"][call.operation]
        wanted = [((call.account, call.region, call.operation), rate, burst)]
        if call.operation == "PutSnapshotBlock":
            wanted.append(((call.region, call.parameters.get("SnapshotId")), *SNAPSHOT_RATE))
        with self.lock:
            return all([self._take(*one) for one in wanted])

    def _take(self, key, rate, burst):
        now = time.monotonic()
        left, then = self.buckets.get(key, (burst, now))
        left = min(burst, left + (now - then) * rate)
        self.buckets[key] = (left - 1 if left >= 1 else left, now)
        return left >= 1
