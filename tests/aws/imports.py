"""ImportSnapshot: an object in a bucket becomes a snapshot, in the background, as a task."""

import hashlib
import threading

from .access import resolve_key
from .blocks import BLOCK, ZERO_DIGEST
from .protocol import Refused
from .registry import handles, matches, paged, remember, remembered, tag_facts, tag_list, tags_of
from .world import Snapshot

GIB = 1 << 30


def _wrong(message):
    return Refused("InvalidParameter", message)


@handles("ec2", "ImportSnapshot")
def import_snapshot(call):
    known = remembered(call)
    if known is not None:
        return known
    container = call.get("DiskContainer") or {}
    form = (container.get("Format") or "").upper()
    if form not in ("RAW", "VHD", "VMDK"):
        raise _wrong(f"The format {container.get('Format')} is not RAW, VHD or VMDK")
    role = call.get("RoleName") or "vmimport"
    if role not in call.settings["service_roles"]:
        raise _wrong(f"The service role {role} provided does not exist or does not have sufficient permissions")
    if call.get("KmsKeyId") is not None and not call.get("Encrypted"):
        raise _wrong("KmsKeyId requires Encrypted")
    encrypted = bool(call.get("Encrypted")) or call.place.encrypt
    key = resolve_key(call, call.get("KmsKeyId") or call.place.default_key, _wrong).arn if encrypted else None
    where, found = _object(call, container)
    identifier = f"import-{call.world.new_id('snap')}"
    task = {
        "id": identifier, "status": "active", "message": "pending", "polls": call.settings["import_polls"],
        "looks": 0, "tags": tags_of(call, "import-snapshot-task")["import-snapshot-task"],
        "description": call.get("Description") or "", "bucket": where, "format": form, "size": found.size,
        "encrypted": encrypted, "key": key, "snapshot": None, "blocks": None, "error": None, "cancelled": False,
    }
    if form != "RAW":
        task["error"] = f"ClientError: the local AWS reads RAW images, not {form}"
    elif found.size == 0:
        task["error"] = "ClientError: Disk validation failed [the image is empty]"
    else:
        reading = (call.world, task, list(found.pieces))
        threading.Thread(target=_read, args=reading, daemon=True).start()
    call.place.tasks[identifier] = task
    return remember(call, _shown(task))


def _object(call, container):
    """({bucket and key}, the object) that a disk container means."""
    where = container.get("UserBucket")
    if where is None:
        url = container.get("Url") or ""
        if not url.startswith("s3://"):
            raise _wrong("DiskContainer has neither a UserBucket nor a Url that begins with s3://")
        bucket, _, key = url[5:].partition("/")
        where = {"S3Bucket": bucket, "S3Key": key}
    bucket = call.world.buckets.get(where.get("S3Bucket"))
    if bucket is None or bucket.account != call.account:
        raise _wrong(f"The bucket {where.get('S3Bucket')} does not exist or is not accessible")
    if bucket.region != call.region:
        raise _wrong("The given S3 bucket is not local to the region")
    if where.get("S3Key") not in bucket.objects:
        raise _wrong(f"The given S3 object {where.get('S3Key')} does not exist")
    return where, bucket.objects[where["S3Key"]]


def _read(world, task, pieces):
    """Cuts the object into blocks. Zeros are left out, but not where the snapshot is encrypted."""
    blocks, rest, index = {}, b"", 0
    try:
        for chunk in world.files.read(pieces):
            rest += chunk
            while len(rest) >= BLOCK:
                _keep(world, task, blocks, index, rest[:BLOCK])
                rest, index = rest[BLOCK:], index + 1
        if rest:
            _keep(world, task, blocks, index, rest.ljust(BLOCK, b"\0"))
        task["blocks"] = blocks
    except OSError:
        task["error"] = "ClientError: the object was removed while it was being read"


def _keep(world, task, blocks, index, data):
    digest = hashlib.sha256(data).digest()
    if digest != ZERO_DIGEST or task["encrypted"]:
        world.blocks.put(digest, data)
        blocks[index] = digest


def _advance(call, task):
    """One look at a task that is under way."""
    if task["status"] != "active":
        return
    task["looks"] += 1
    if task["looks"] <= task["polls"]:
        task["message"] = ("pending", "validating", "converting", "updating")[min(task["looks"], 3)]
        return
    if task["error"]:
        task["status"], task["message"] = "deleted", task["error"]
    elif task["blocks"] is not None:
        now = call.world.now()
        made = Snapshot(
            call.world.new_id("snap"), call.account, call.region, -(-task["size"] // GIB), now,
            f"Created by AWS-VMImport service for {task['id']}", {}, task["encrypted"], task["key"], own=task["blocks"],
            state="completed", origin="import", sealed=True, completed=now,
        )
        made.lineage = made.id
        call.place.snapshots[made.id] = made
        task |= {"status": "completed", "message": None, "snapshot": made.id, "blocks": None}


def _shown(task):
    detail = {
        "Description": task["description"], "DiskImageSize": float(task["size"]), "Encrypted": task["encrypted"],
        "Format": task["format"], "KmsKeyId": task["key"], "SnapshotId": task["snapshot"], "Status": task["status"],
        "StatusMessage": task["message"], "UserBucket": task["bucket"],
        "Progress": str(min(95, 100 * task["looks"] // (task["polls"] + 1))) if task["status"] == "active" else None,
    }
    detail = {key: value for key, value in detail.items() if value is not None}
    return {"Description": task["description"], "ImportTaskId": task["id"], "SnapshotTaskDetail": detail,
            "Tags": tag_list(task["tags"])}


@handles("ec2", "DescribeImportSnapshotTasks")
def describe_import_snapshot_tasks(call):
    asked = call.get("ImportTaskIds")
    for one in asked or []:
        if one not in call.place.tasks:
            raise Refused("InvalidConversionTaskId.Malformed", f"The task ID {one} does not exist")
    rows = []
    for identifier in sorted(asked or call.place.tasks):
        task = call.place.tasks[identifier]
        _advance(call, task)
        if matches(call.get("Filters"), {"task-state": task["status"], **tag_facts(task["tags"])}):
            rows.append(_shown(task))
    rows, token = paged(call, rows, least=1)
    return {"ImportSnapshotTasks": rows, "NextToken": token}


@handles("ec2", "CancelImportTask")
def cancel_import_task(call):
    task = call.place.tasks.get(call.get("ImportTaskId"))
    if task is None:
        raise Refused("InvalidConversionTaskId.Malformed", "The task ID does not exist")
    before = task["status"]
    if before == "active":
        task |= {"status": "deleted", "message": "User cancelled the task.", "blocks": None}
    return {"ImportTaskId": task["id"], "PreviousState": before, "State": task["status"]}
