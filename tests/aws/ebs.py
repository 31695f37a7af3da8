"""The EBS direct APIs: snapshots are written and read block by block."""

import base64
import datetime
import hashlib
import hmac
import os
import threading

from .access import resolve_key
from .blocks import BLOCK
from .protocol import Refused
from .registry import handles, remember, remembered, tag_list, tag_map
from .world import Snapshot

SECRET = os.urandom(16)
TOKENS_LAST = datetime.timedelta(days=7)
GIB = 1 << 30
# (snapshot, index) of blocks that are being written at this moment.
_writing = set()
_writing_lock = threading.Lock()


def invalid(reason, message):
    return Refused("ValidationException", message, Reason=reason)


def not_found(identifier, reason="SNAPSHOT_NOT_FOUND"):
    return Refused("ResourceNotFoundException", f"The snapshot '{identifier}' does not exist.", Reason=reason)


def _snapshot(call, identifier, reason="SNAPSHOT_NOT_FOUND"):
    """A snapshot of the caller's or one shared with it."""
    found = call.world.find("snapshots", identifier, call.region)
    if found is None:
        raise not_found(identifier, reason)
    if found.unseen > 0:
        found.unseen -= 1
        raise not_found(identifier, reason)
    if found.account != call.account and not found.public and call.account not in found.users:
        raise Refused("AccessDeniedException", "You are not authorized for this snapshot", Reason="UNAUTHORIZED_ACCOUNT")
    expire(call.world, found)
    return found


def expire(world, snapshot):
    """A snapshot that isn't completed in time fails."""
    if snapshot.state == "pending" and snapshot.expires and not snapshot.sealed and world.now() >= snapshot.expires:
        snapshot.state, snapshot.message = "error", "The snapshot was not completed within its timeout"


@handles("ebs", "StartSnapshot")
def start_snapshot(call):
    known = remembered(call)
    if known is not None:
        return known
    size = call.get("VolumeSize")
    if not 1 <= size <= 65536:
        raise invalid("INVALID_VOLUME_SIZE", "VolumeSize must be between 1 and 65536 GiB")
    timeout = call.get("Timeout", 60)
    if not 10 <= timeout <= 4320:
        raise invalid("INVALID_PARAMETER_VALUE", "Timeout must be between 10 and 4320 minutes")
    if len(call.get("Description") or "") > 255:
        raise invalid("INVALID_PARAMETER_VALUE", "Description must have at most 255 characters")
    try:
        tags = tag_map(call.get("Tags") or [])
    except Refused as refused:
        raise invalid("INVALID_TAG", refused.message) from None
    parent, encrypted, key = _parent_and_key(call, size)
    pending = sum(s.state == "pending" and s.origin == "direct" for s in call.place.snapshots.values())
    if pending >= call.settings["pending_snapshots"]:
        raise Refused("ConcurrentLimitExceededException", "You have reached the limit of pending snapshots")
    now = call.world.now()
    identifier = call.world.new_id("snap")
    made = Snapshot(
        identifier, call.account, call.region, size, now, call.get("Description") or "", tags, encrypted, key,
        parent=parent and parent.id, lineage=parent.lineage if parent else identifier,
        base=parent.blocks if parent else {}, timeout=timeout, expires=now + datetime.timedelta(minutes=timeout),
        unseen=call.settings["snapshot_unseen"],
    )
    call.place.snapshots[identifier] = made
    return remember(call, {
        "SnapshotId": identifier, "OwnerId": call.account, "Status": "pending", "StartTime": now, "VolumeSize": size,
        "BlockSize": BLOCK, "Tags": tag_list(tags), "ParentSnapshotId": made.parent, "KmsKeyArn": key,
        "Description": made.description, "SseType": "sse-kms" if encrypted else "sse-ebs",
    })


def _parent_and_key(call, size):
    """(the parent or None, whether the new snapshot is encrypted, its key's ARN)."""
    place, asked, key = call.place, call.get("Encrypted"), call.get("KmsKeyArn")
    parent = call.get("ParentSnapshotId")
    if parent is not None:
        if asked is not None:
            raise invalid("INVALID_PARAMETER_VALUE", "Encrypted and ParentSnapshotId can't be specified together")
        parent = _snapshot(call, parent, "DEPENDENCY_RESOURCE_NOT_FOUND")
        if parent.account != call.account:
            raise invalid("INVALID_DEPENDENCY_REQUEST", "The parent snapshot must belong to you")
        if parent.state != "completed":
            raise invalid("INVALID_SNAPSHOT_ID", "The parent snapshot is not completed")
        if size < parent.size:
            raise invalid("INVALID_VOLUME_SIZE", f"VolumeSize is smaller than the parent's {parent.size} GiB")
        if not parent.encrypted and place.encrypt:
            raise invalid("INVALID_DEPENDENCY_REQUEST", "The parent snapshot is unencrypted, but encryption by default "
                          "is on for this account and region")
        if key is not None and not parent.encrypted:
            raise invalid("INVALID_PARAMETER_VALUE", "KmsKeyArn can't be specified with an unencrypted parent")
        if key is not None and resolve_key(call, key, _wrong_key).arn != parent.key:
            raise invalid("INVALID_CUSTOMER_KEY", "KmsKeyArn must be the parent's key")
        return parent, parent.encrypted, parent.key
    encrypted = bool(asked) or place.encrypt
    if key is not None and not encrypted:
        raise invalid("INVALID_PARAMETER_VALUE", "KmsKeyArn requires Encrypted to be true")
    if key is not None and not key.startswith("arn:"):
        raise invalid("INVALID_CUSTOMER_KEY", "KmsKeyArn must be an ARN")
    return None, encrypted, resolve_key(call, key or place.default_key, _wrong_key).arn if encrypted else None


def _wrong_key(message):
    return invalid("INVALID_CUSTOMER_KEY", message)


@handles("ebs", "PutSnapshotBlock")
def put_snapshot_block(call):
    """Called without the world's lock: hashing and writing happen side by side."""
    world, index, data = call.world, call.get("BlockIndex"), call.get("BlockData")
    with world.lock:
        snapshot = _own(call, call.get("SnapshotId"))
        _must_be_open(snapshot)
    if call.get("ChecksumAlgorithm") != "SHA256":
        raise invalid("INVALID_PARAMETER_VALUE", "ChecksumAlgorithm must be SHA256")
    if call.get("DataLength") != BLOCK or len(data) != BLOCK:
        raise invalid("INVALID_BLOCK", f"A block has {BLOCK} bytes: DataLength says {call.get('DataLength')}, the body "
                      f"has {len(data)}")
    if not 0 <= index or (index + 1) * BLOCK > snapshot.size * GIB:
        raise invalid("INVALID_BLOCK", f"BlockIndex {index} lies outside of the volume of {snapshot.size} GiB")
    if not 0 <= call.get("Progress", 0) <= 100:
        raise invalid("INVALID_PARAMETER_VALUE", "Progress must be between 0 and 100")
    with _Writing(snapshot.id, index):
        digest = hashlib.sha256(data).digest()
        if base64.b64encode(digest).decode() != call.get("Checksum"):
            raise invalid("INVALID_BLOCK", "Checksum is not that of the data")
        world.blocks.put(digest, data)
        with world.lock:
            _must_be_open(snapshot)
            snapshot.own[index] = digest
            snapshot.puts += 1
    call.parameters["BlockData"] = f"sha256:{digest.hex()}"
    return {"Checksum": call.get("Checksum"), "ChecksumAlgorithm": "SHA256"}


class _Writing:
    """Two at once for the same block are refused."""

    def __init__(self, *block):
        self.block = block

    def __enter__(self):
        with _writing_lock:
            if self.block in _writing:
                raise invalid("CONFLICTING_BLOCK_UPDATE", "The block is being written by another request")
            _writing.add(self.block)

    def __exit__(self, *_):
        with _writing_lock:
            _writing.discard(self.block)


def _own(call, identifier):
    snapshot = _snapshot(call, identifier)
    if snapshot.account != call.account:
        raise Refused("AccessDeniedException", "The snapshot belongs to another account", Reason="UNAUTHORIZED_ACCOUNT")
    return snapshot


def _must_be_open(snapshot):
    if snapshot.state != "pending" or snapshot.sealed or snapshot.origin != "direct":
        state = "completed" if snapshot.sealed else snapshot.state
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot is not in the pending state: {state}")


@handles("ebs", "CompleteSnapshot")
def complete_snapshot(call):
    snapshot = _own(call, call.get("SnapshotId"))
    _must_be_open(snapshot)
    count, checksum = call.get("ChangedBlocksCount"), call.get("Checksum")
    if count != len(snapshot.own):
        raise invalid("INVALID_PARAMETER_VALUE", f"ChangedBlocksCount is {count}, but {len(snapshot.own)} blocks were "
                      "written")
    together = {call.get("ChecksumAlgorithm"), call.get("ChecksumAggregationMethod")}
    if checksum is None and together != {None}:
        raise invalid("INVALID_PARAMETER_VALUE", "Checksum is missing")
    if checksum is not None:
        if call.get("ChecksumAlgorithm") != "SHA256" or call.get("ChecksumAggregationMethod") != "LINEAR":
            raise invalid("INVALID_PARAMETER_VALUE", "Checksum needs ChecksumAlgorithm SHA256 and "
                          "ChecksumAggregationMethod LINEAR")
        whole = hashlib.sha256(b"".join(snapshot.own[i] for i in sorted(snapshot.own))).digest()
        if base64.b64encode(whole).decode() != checksum:
            raise invalid("INVALID_PARAMETER_VALUE", "Checksum is not that of the blocks")
    snapshot.sealed = True
    snapshot.polls = call.settings["snapshot_polls"]
    if snapshot.polls == 0:
        snapshot.state, snapshot.completed = "completed", call.world.now()
    return {"Status": snapshot.state}


# ---- reading


def _token(call, snapshot, index, until):
    text = f"{snapshot.id} {index} {int(until.timestamp())}"
    mark = hmac.new(SECRET, text.encode(), "sha256").digest()[:12]
    return base64.b64encode(mark + str(int(until.timestamp())).encode()).decode()


def _check_token(call, snapshot, index, token):
    try:
        raw = base64.b64decode(token)
        until = datetime.datetime.fromtimestamp(int(raw[12:]), datetime.timezone.utc)
        good = hmac.compare_digest(_token(call, snapshot, index, until), token)
    except (ValueError, OverflowError):
        good = False
    if not good:
        raise invalid("INVALID_BLOCK_TOKEN", "The block token is not one of this block")
    if call.world.now() >= until:
        raise invalid("INVALID_BLOCK_TOKEN", "The block token has expired")


def _readable(call, identifier):
    snapshot = _snapshot(call, identifier)
    if snapshot.state != "completed":
        raise invalid("INVALID_SNAPSHOT_ID", f"The snapshot is {snapshot.state}, not completed")
    return snapshot


def _page(call, indexes):
    """(this page's indexes, NextToken)."""
    limit = call.get("MaxResults", 10000)
    if not 100 <= limit <= 10000:
        raise invalid("INVALID_PARAMETER_VALUE", "MaxResults must be between 100 and 10000")
    start, token = call.get("StartingBlockIndex") or 0, call.get("NextToken")
    if token is not None:
        try:
            start = int(base64.b64decode(token, validate=True))
        except ValueError:
            raise invalid("INVALID_PAGE_TOKEN", "The page token is not valid") from None
    rest = [index for index in indexes if index >= start]
    after = base64.b64encode(str(rest[limit]).encode()).decode() if len(rest) > limit else None
    return rest[:limit], after


@handles("ebs", "ListSnapshotBlocks")
def list_snapshot_blocks(call):
    snapshot = _readable(call, call.get("SnapshotId"))
    until = call.world.now() + TOKENS_LAST
    page, after = _page(call, sorted(snapshot.blocks))
    return {
        "Blocks": [{"BlockIndex": i, "BlockToken": _token(call, snapshot, i, until)} for i in page],
        "ExpiryTime": until, "VolumeSize": snapshot.size, "BlockSize": BLOCK, "NextToken": after,
    }


@handles("ebs", "ListChangedBlocks")
def list_changed_blocks(call):
    second = _readable(call, call.get("SecondSnapshotId"))
    first = call.get("FirstSnapshotId") and _readable(call, call.get("FirstSnapshotId"))
    if first and (first.lineage != second.lineage or first.started > second.started):
        raise invalid("UNRELATED_SNAPSHOTS", "The snapshots are not of the same volume")
    before, after_ = first.blocks if first else {}, second.blocks
    changed = sorted(i for i in before.keys() | after_.keys() if before.get(i) != after_.get(i))
    until = call.world.now() + TOKENS_LAST
    page, after = _page(call, changed)
    rows = []
    for i in page:
        row = {"BlockIndex": i}
        if i in before:
            row["FirstBlockToken"] = _token(call, first, i, until)
        if i in after_:
            row["SecondBlockToken"] = _token(call, second, i, until)
        rows.append(row)
    return {"ChangedBlocks": rows, "ExpiryTime": until, "VolumeSize": second.size, "BlockSize": BLOCK,
            "NextToken": after}


@handles("ebs", "GetSnapshotBlock")
def get_snapshot_block(call):
    snapshot, index = _readable(call, call.get("SnapshotId")), call.get("BlockIndex")
    _check_token(call, snapshot, index, call.get("BlockToken"))
    digest = snapshot.own.get(index) or snapshot.base[index]
    return {"DataLength": BLOCK, "BlockData": call.world.blocks.get(digest),
            "Checksum": base64.b64encode(digest).decode(), "ChecksumAlgorithm": "SHA256"}
