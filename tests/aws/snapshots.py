"""EC2's calls on snapshots: describe, share, copy, delete, tag."""

from urllib.parse import parse_qsl, urlsplit

from . import ebs
from .access import find_key, resolve_key
from .protocol import Refused
from .registry import handles, matches, overlooked, paged, tag_facts, tag_list, tag_map, tags_of
from .world import Snapshot

# Owners of snapshots and images that aren't accounts.
OWNER_ALIASES = ("self", "amazon", "aws-marketplace")


def visible(call, snapshot):
    return snapshot.account == call.account or snapshot.public or call.account in snapshot.users


def lookup(call, identifier, own=False):
    """A snapshot that the caller sees (or owns), else EC2's error."""
    if not identifier.startswith("snap-"):
        raise Refused("InvalidSnapshotID.Malformed", f"Invalid id: \"{identifier}\" (expecting \"snap-...\")")
    found = call.world.find("snapshots", identifier, call.region)
    hidden = found is None or not visible(call, found)
    if not hidden and found.unseen > 0:
        found.unseen -= 1
        hidden = True
    if hidden:
        raise Refused("InvalidSnapshot.NotFound", f"The snapshot '{identifier}' does not exist.")
    if own and found.account != call.account:
        raise Refused("UnauthorizedOperation", "You do not own this snapshot", 403)
    ebs.expire(call.world, found)
    return found


def advance(call, snapshot):
    """One look at a snapshot that is on its way to completion."""
    ebs.expire(call.world, snapshot)
    if snapshot.state != "pending" or snapshot.polls is None:
        return
    snapshot.polls -= 1
    if snapshot.polls < 0:
        if snapshot.fails:
            snapshot.state, snapshot.message = "error", snapshot.fails
        else:
            snapshot.state, snapshot.completed = "completed", call.world.now()


def describe(call, snapshot):
    row = {
        "SnapshotId": snapshot.id, "OwnerId": snapshot.account, "State": snapshot.state,
        "StateMessage": snapshot.message, "StartTime": snapshot.started, "VolumeSize": snapshot.size,
        "VolumeId": "vol-ffffffff", "Description": snapshot.description, "Encrypted": snapshot.encrypted,
        "KmsKeyId": snapshot.key, "Progress": "100%" if snapshot.state == "completed" else _progress(snapshot),
        "Tags": tag_list(snapshot.tags) if snapshot.account == call.account else [], "StorageTier": "standard",
        "CompletionTime": snapshot.completed, "SseType": "sse-kms" if snapshot.encrypted else "sse-ebs",
        "FullSnapshotSizeInBytes": len(snapshot.blocks) * ebs.BLOCK,
    }
    return {key: value for key, value in row.items() if value is not None}


def _progress(snapshot):
    return "0%" if snapshot.polls is None else f"{max(0, 99 - 30 * snapshot.polls)}%"


@handles("ec2", "DescribeSnapshots")
def describe_snapshots(call):
    asked, owners = call.get("SnapshotIds"), call.get("OwnerIds")
    if asked and call.get("MaxResults") is not None:
        raise Refused("InvalidParameterCombination", "The parameter snapshotSet cannot be used with the parameter "
                      "maxResults")
    if asked:
        found = [lookup(call, one) for one in asked]
    else:
        everywhere = [p for p in call.world.places.values() if p.region == call.region]
        found = [s for p in everywhere for s in p.snapshots.values() if visible(call, s)]
        found = [s for s in found if not overlooked(s)]
    rows = []
    for one in sorted(found, key=lambda s: s.id):
        if owners and not any(one.account == (call.account if o == "self" else o) for o in owners):
            continue
        restorable = call.get("RestorableByUserIds")
        if restorable and not _restorable(call, one, restorable):
            continue
        advance(call, one)
        if matches(call.get("Filters"), _facts(one)):
            rows.append(describe(call, one))
    rows, token = paged(call, rows)
    return {"Snapshots": rows, "NextToken": token}


def _restorable(call, snapshot, users):
    own = snapshot.account == call.account
    return any((u == "self" and own) or (u == "all" and snapshot.public) or u in snapshot.users for u in users)


def _facts(one):
    return {
        "snapshot-id": one.id, "owner-id": one.account, "status": one.state, "description": one.description,
        "encrypted": str(one.encrypted).lower(), "volume-size": one.size, "volume-id": "vol-ffffffff",
        "start-time": one.started.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "storage-tier": "standard",
        "progress": "100%" if one.state == "completed" else _progress(one), **tag_facts(one.tags),
    }


@handles("ec2", "DeleteSnapshot")
def delete_snapshot(call):
    snapshot = lookup(call, call.get("SnapshotId"), own=True)
    user = used_by(call, snapshot.id)
    if user:
        raise Refused("InvalidSnapshot.InUse", f"The snapshot {snapshot.id} is currently in use by {user}")
    del call.place.snapshots[snapshot.id]
    return {}


def used_by(call, identifier, but=None):
    """The image that uses a snapshot."""
    return next((i.id for i in call.place.images.values()
                 if identifier in i.snapshots() and not i.deregistered and i.id != but), None)


# ---- sharing


def account_id(text):
    if not (len(text) == 12 and text.isdigit()):
        raise Refused("InvalidUserID.Malformed", f"Invalid user id: \"{text}\"")
    return text


def default_managed(call, snapshot):
    """Whether a snapshot is under the account's `aws/ebs`, which nobody else can use."""
    key = snapshot.key and find_key(call, snapshot.key)
    return key is not None and key.manager == "AWS"


@handles("ec2", "ModifySnapshotAttribute")
def modify_snapshot_attribute(call):
    snapshot = lookup(call, call.get("SnapshotId"), own=True)
    add, remove = _permission_changes(call)
    if add and default_managed(call, snapshot):
        raise Refused("OperationNotPermitted", "Encrypted snapshots with EBS default key cannot be shared")
    groups = {one["Group"] for one in add + remove if "Group" in one}
    if groups - {"all"}:
        raise Refused("InvalidParameterValue", f"The group {groups.pop()} is invalid")
    if {"Group": "all"} in add:
        if snapshot.encrypted:
            raise Refused("OperationNotPermitted", "Encrypted snapshots cannot be shared publicly")
        if call.place.snapshots_private != "unblocked":
            raise Refused("OperationNotPermitted", "You can't publicly share this snapshot because block public access "
                          "for snapshots is enabled in this Region")
    users = {account_id(one["UserId"]) for one in add if "UserId" in one}
    snapshot.users = (snapshot.users | users) - {one["UserId"] for one in remove if "UserId" in one}
    snapshot.public = (snapshot.public or {"Group": "all"} in add) and {"Group": "all"} not in remove
    return {}


def _permission_changes(call):
    """(to add, to remove) from either of the two forms of the call."""
    if call.get("Attribute") not in (None, "createVolumePermission"):
        raise Refused("InvalidParameterValue", f"The attribute {call.get('Attribute')} can't be modified")
    structured = call.get("CreateVolumePermission")
    plain = [{"UserId": u} for u in call.get("UserIds") or []] + [{"Group": g} for g in call.get("GroupNames") or []]
    if structured is not None:
        if plain:
            raise Refused("InvalidParameterCombination", "CreateVolumePermission can't be combined with UserIds and "
                          "GroupNames")
        add, remove = structured.get("Add") or [], structured.get("Remove") or []
    else:
        if call.get("Attribute") is None or call.get("OperationType") not in ("add", "remove"):
            raise Refused("MissingParameter", "Attribute and OperationType are missing")
        add, remove = (plain, []) if call.get("OperationType") == "add" else ([], plain)
    if not add and not remove:
        raise Refused("InvalidParameterCombination", "No permission was given to add or to remove")
    for one in add + remove:
        if len(one) != 1:
            raise Refused("InvalidParameterCombination", "A permission has either a UserId or a Group")
    return add, remove


@handles("ec2", "DescribeSnapshotAttribute")
def describe_snapshot_attribute(call):
    snapshot = lookup(call, call.get("SnapshotId"), own=True)
    if call.get("Attribute") == "productCodes":
        return {"SnapshotId": snapshot.id, "ProductCodes": []}
    shared = [{"UserId": user} for user in sorted(snapshot.users)]
    return {"SnapshotId": snapshot.id,
            "CreateVolumePermissions": shared + ([{"Group": "all"}] if snapshot.public else [])}


@handles("ec2", "ResetSnapshotAttribute")
def reset_snapshot_attribute(call):
    snapshot = lookup(call, call.get("SnapshotId"), own=True)
    snapshot.users, snapshot.public = set(), False
    return {}


# ---- copies


def copies_under_way(call):
    return sum(s.origin == "copy" and s.state == "pending" for s in call.place.snapshots.values())


def check_copies_limit(call):
    limit = call.settings["copies_at_once"]
    if copies_under_way(call) >= limit:
        raise Refused("ResourceLimitExceeded", "Too many snapshot copies in progress. The limit is "
                      f"{limit} for this destination region.")


def make_copy(call, source, description, tags, encrypted, key):
    """A pending copy of a snapshot in this region. A key that can't be used shows only afterwards, as in AWS."""
    encrypted = bool(encrypted) or source.encrypted or call.place.encrypt
    fails = None
    if encrypted:
        try:
            key = resolve_key(call, key or call.place.default_key, lambda message: Refused("Key", message)).arn
        except Refused as refused:
            fails = f"Given key ID is not accessible: {refused.message}"
            key = key or call.place.default_key
    made = Snapshot(
        call.world.new_id("snap"), call.account, call.region, source.size, call.world.now(), description, tags,
        encrypted, key if encrypted else None, own=source.blocks, origin="copy", sealed=True, fails=fails,
        polls=call.settings["copy_polls"],
    )
    made.lineage = made.id
    call.place.snapshots[made.id] = made
    return made


def source_snapshot(call, identifier, region):
    """The snapshot to copy, in its own region."""
    found = call.world.find("snapshots", identifier, region)
    if found is None or not visible(call, found):
        raise Refused("InvalidSnapshot.NotFound", f"The snapshot '{identifier}' does not exist in {region}.")
    if found.state != "completed":
        raise Refused("InvalidSnapshot.InvalidState", f"The snapshot {identifier} is not completed: {found.state}")
    if found.account != call.account and default_managed(call, found):
        raise Refused("InvalidSnapshot.NotFound", f"The snapshot '{identifier}' can't be decrypted by you.")
    return found


def check_copy_parameters(call):
    if call.get("KmsKeyId") is not None and not call.get("Encrypted"):
        raise Refused("InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set.")
    if call.get("SourceRegion") not in call.world.regions():
        raise Refused("InvalidParameterValue", f"Invalid source region {call.get('SourceRegion')}")
    if len(call.get("Description") or "") > 255:
        raise Refused("InvalidParameterValue", "The description is longer than 255 characters")


@handles("ec2", "CopySnapshot")
def copy_snapshot(call):
    check_copy_parameters(call)
    if call.get("DestinationRegion") not in (None, call.region):
        raise Refused("InvalidParameterValue", "DestinationRegion is not the region that was called")
    duration = call.get("CompletionDurationMinutes")
    if duration is not None and (duration % 15 or not 15 <= duration <= 2880):
        raise Refused("InvalidParameterValue", "CompletionDurationMinutes must be 15 to 2880 in steps of 15")
    source = source_snapshot(call, call.get("SourceSnapshotId"), call.get("SourceRegion"))
    if source.encrypted and call.get("PresignedUrl") is None and call.get("SourceRegion") != call.region:
        raise Refused("MissingParameter", "The request must contain the parameter PresignedUrl: the source snapshot is "
                      "encrypted")
    tags = tags_of(call, "snapshot")["snapshot"]
    check_copies_limit(call)
    description = call.get("Description")
    if description is None:
        description = f"[Copied {source.id} from {source.region}] {source.description}".strip()
    made = make_copy(call, source, description, tags, call.get("Encrypted"), call.get("KmsKeyId"))
    if source.encrypted and call.get("SourceRegion") != call.region:
        made.fails = made.fails or _wrong_presigned_url(call, source)
    return {"SnapshotId": made.id, "Tags": tag_list(made.tags)}


def _wrong_presigned_url(call, source):
    """What is wrong with the URL that lets this region read an encrypted source: None if nothing."""
    arguments = dict(parse_qsl(urlsplit(call.get("PresignedUrl")).query))
    wanted = {"Action": "CopySnapshot", "SourceRegion": source.region, "SourceSnapshotId": source.id,
              "DestinationRegion": call.region}
    scope = arguments.get("X-Amz-Credential", "").split("/")
    good = all(arguments.get(name) == value for name, value in wanted.items()) and "X-Amz-Signature" in arguments
    if good and len(scope) == 5 and scope[2:4] == [source.region, "ec2"]:
        return None
    return "The PresignedUrl is not one for this copy"


# ---- tags


def _taggable(call, identifier):
    if identifier.startswith("snap-"):
        return lookup(call, identifier, own=True).tags
    if identifier.startswith("ami-"):
        found = call.place.images.get(identifier)
        if found is None or found.deregistered:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{identifier}]' does not exist")
        return found.tags
    if identifier in call.place.tasks:
        return call.place.tasks[identifier]["tags"]
    raise Refused("InvalidID", f"The ID '{identifier}' is not valid")


@handles("ec2", "CreateTags")
def create_tags(call):
    resources = [_taggable(call, one) for one in call.get("Resources")]
    changed = [tag_map(call.get("Tags"), tags) for tags in resources]
    for tags, new in zip(resources, changed):
        tags.update(new)
    return {}


@handles("ec2", "DeleteTags")
def delete_tags(call):
    for tags in [_taggable(call, one) for one in call.get("Resources")]:
        wanted = call.get("Tags") or [{"Key": key} for key in tags]
        for tag in wanted:
            if tag.get("Value") in (None, tags.get(tag["Key"])):
                tags.pop(tag["Key"], None)
    return {}


@handles("ec2", "DescribeTags")
def describe_tags(call):
    rows = []
    kinds = (("image", call.place.images), ("snapshot", call.place.snapshots))
    for kind, identifier, one in ((k, i, o) for k, all_ in kinds for i, o in all_.items()):
        for key, value in sorted(one.tags.items()):
            facts = {"resource-id": identifier, "resource-type": kind, "key": key, "value": value,
                     **{f"tag:{key}": value}}
            if matches(call.get("Filters"), facts):
                rows.append({"ResourceId": identifier, "ResourceType": kind, "Key": key, "Value": value})
    rows, token = paged(call, rows)
    return {"Tags": rows, "NextToken": token}

