"""What block device mappings may say: sizes, types, operations and throughput of volumes."""

from . import snapshots
from .protocol import Refused

# Volume type: (smallest GiB, largest, fewest operations, most, operations a GiB at most, may boot).
TYPES = {
    "gp3": (1, 65536, 3000, 80000, 500, True),
    "gp2": (1, 16384, None, None, None, True),
    "io1": (4, 16384, 100, 64000, 50, True),
    "io2": (4, 65536, 100, 256000, 1000, True),
    "st1": (125, 16384, None, None, None, False),
    "sc1": (125, 16384, None, None, None, False),
    "standard": (1, 1024, None, None, None, True),
}
THROUGHPUT = (125, 2000)


def wrong(message):
    return Refused("InvalidBlockDeviceMapping", message)


def check_mappings(call, mappings, root):
    """The mappings as DescribeImages will show them."""
    if root is None or root not in [m.get("DeviceName") for m in mappings]:
        raise wrong("The request must contain a block device mapping of the root device: RootDeviceName is "
                    f"{root}")
    seen, found = set(), []
    for mapping in mappings:
        device = mapping.get("DeviceName")
        if not device or device in seen:
            raise wrong(f"The device '{device}' is used in more than one block-device mapping, or has no name")
        seen.add(device)
        if "Ebs" not in mapping:
            if device == root:
                raise wrong(f"The root device {device} has no snapshot")
            found.append(mapping)
            continue
        found.append({"DeviceName": device, "Ebs": _check_volume(call, device, mapping["Ebs"], device == root)})
    return found


def _check_volume(call, device, ebs, is_root):
    snapshot = None
    if "KmsKeyId" in ebs:
        raise Refused("InvalidParameter", f"KmsKeyId can't be specified when an image is registered: device {device}")
    if "SnapshotId" in ebs:
        if "Encrypted" in ebs:
            raise wrong(f"the encrypted flag cannot be specified since device {device} has a snapshot specified.")
        snapshot = snapshots.lookup(call, ebs["SnapshotId"])
        if snapshot.state != "completed":
            raise Refused("InvalidSnapshot.InvalidState", f"The snapshot {snapshot.id} is not completed: "
                          f"{snapshot.state}")
        if snapshot.account != call.account:
            raise Refused("InvalidSnapshot.NotFound", f"The snapshot '{snapshot.id}' does not belong to you.")
    elif is_root:
        raise wrong(f"The root device {device} has no snapshot")
    size = ebs.get("VolumeSize", snapshot.size if snapshot else None)
    if size is None:
        raise Refused("MissingParameter", f"The volume of {device} has neither a size nor a snapshot")
    if snapshot and size < snapshot.size:
        raise wrong(f"Volume of size {size}GB is smaller than snapshot '{snapshot.id}', expect size >= {snapshot.size}GB")
    kind = ebs.get("VolumeType", "standard")
    _check_kind(device, ebs, kind, size, is_root)
    shown = {"DeleteOnTermination": ebs.get("DeleteOnTermination", True), "VolumeSize": size, "VolumeType": kind,
             "SnapshotId": snapshot.id if snapshot else None, "Iops": ebs.get("Iops"),
             "Throughput": ebs.get("Throughput"), "Encrypted": snapshot.encrypted if snapshot else bool(
                 ebs.get("Encrypted") or call.place.encrypt)}
    if kind == "gp3":
        shown["Iops"], shown["Throughput"] = shown["Iops"] or 3000, shown["Throughput"] or 125
    return {key: value for key, value in shown.items() if value is not None}


def _check_kind(device, ebs, kind, size, is_root):
    if kind not in TYPES:
        raise Refused("InvalidParameterValue", f"Unknown volume type {kind} of {device}")
    least, most, fewest, many, each, boots = TYPES[kind]
    iops, throughput = ebs.get("Iops"), ebs.get("Throughput")
    if is_root and not boots:
        raise wrong(f"{kind} volumes can't be root devices: {device}")
    if not least <= size <= most:
        raise Refused("InvalidParameterValue", f"A volume of type {kind} has {least} to {most} GiB: {device} has {size}")
    if iops is None and kind in ("io1", "io2"):
        raise Refused("MissingParameter", f"Iops are required for a volume of type {kind}: {device}")
    if iops is not None:
        if fewest is None:
            raise Refused("InvalidParameterCombination", f"Iops can't be given for a volume of type {kind}: {device}")
        if not fewest <= iops <= many:
            raise Refused("InvalidParameterValue", f"A volume of type {kind} has {fewest} to {many} iops: {device} has "
                          f"{iops}")
        if iops > max(fewest, each * size):
            raise Refused("InvalidParameterCombination", f"Iops to volume size ratio of {iops}:{size} is too high; "
                          f"maximum is {each}:1")
    if throughput is not None:
        if kind != "gp3":
            raise Refused("InvalidParameterCombination", f"Throughput can't be given for a volume of type {kind}: {device}")
        if not THROUGHPUT[0] <= throughput <= THROUGHPUT[1]:
            raise Refused("InvalidParameterValue", f"Throughput is {THROUGHPUT[0]} to {THROUGHPUT[1]} MiB/s: {device} has "
                          f"{throughput}")
        if throughput * 4 > (iops or 3000):
            raise Refused("InvalidParameterCombination", f"Throughput to iops ratio of {throughput}:{iops or 3000} is too "
                          "high; maximum is 0.25 MiB/s an iops")
