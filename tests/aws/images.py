"""EC2's calls on images: register, describe, attributes, deprecation, protection, deregister, copy."""

import base64
import datetime
import re

from . import snapshots
from .protocol import Refused, timestamp
from .registry import handles, matches, overlooked, paged, remember, remembered, tag_facts, tag_list, tags_of
from .volumes import check_mappings
from .world import Image

NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
TEN_YEARS, TWO_YEARS = datetime.timedelta(days=3653), datetime.timedelta(days=731)
COOLDOWN = datetime.timedelta(hours=24)


def lookup(call, identifier, own=False):
    """An image that the caller sees (or owns), else EC2's error."""
    if not identifier.startswith("ami-"):
        raise Refused("InvalidAMIID.Malformed", f"Invalid id: \"{identifier}\" (expecting \"ami-...\")")
    found = call.world.find("images", identifier, call.region)
    if found is not None and found.deregistered and found.account == call.account:
        raise Refused("InvalidAMIID.Unavailable", f"The image ID '{identifier}' is no longer available")
    hidden = found is None or not visible(call, found)
    if not hidden and found.unseen > 0:
        found.unseen -= 1
        hidden = True
    if hidden:
        raise Refused("InvalidAMIID.NotFound", f"The image id '[{identifier}]' does not exist")
    if own and found.account != call.account:
        raise Refused("AuthFailure", f"Not authorized for image:{identifier}", 403)
    return found


def visible(call, image):
    if image.deregistered:
        return False
    if image.account == call.account or image.public or {"UserId": call.account} in image.launch:
        return True
    organization = call.settings["organization"]
    return any("OrganizationArn" in one and one["OrganizationArn"] == organization for one in image.launch)


# ---- register


@handles("ec2", "RegisterImage")
def register_image(call):
    name = check_name(call.get("Name"))
    _check_free(call, name)
    _check_quota(call)
    if call.get("ImageLocation") is not None:
        raise Refused("UnsupportedOperation", "Images backed by instance store are not supported here")
    if len(call.get("Description") or "") > 255:
        raise Refused("InvalidParameterValue", "The description is longer than 255 characters")
    if call.get("BillingProducts"):
        raise Refused("OperationNotPermitted", "You are not authorized to use billing products")
    _check_boot(call)
    mappings = check_mappings(call, call.get("BlockDeviceMappings") or [], call.get("RootDeviceName"))
    tags = tags_of(call, "image")["image"]
    made = Image(
        call.world.new_id("ami"), call.account, call.region, name, call.world.now(), call.get("Description") or "",
        call.get("Architecture") or "i386", call.get("VirtualizationType") or "paravirtual", call.get("BootMode"),
        call.get("TpmSupport"), call.get("ImdsSupport"), call.get("UefiData"), bool(call.get("EnaSupport")),
        call.get("SriovNetSupport"), call.get("RootDeviceName"), mappings, tags, polls=call.settings["image_polls"],
        unseen=call.settings["image_unseen"],
    )
    call.place.images[made.id] = made
    return {"ImageId": made.id}


def check_name(name):
    if not NAME.fullmatch(name):
        raise Refused("InvalidAMIName.Malformed", "AMI names must be between 3 and 128 characters long, and may contain "
                      "letters, numbers, and only these characters: ( ) [ ] space . / - ' @ _")
    return name


def _check_free(call, name):
    for image in call.place.images.values():
        if image.name == name and not image.deregistered:
            raise Refused("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {image.id}")


def _check_quota(call):
    images = [i for i in call.place.images.values() if not i.deregistered]
    if len(images) >= call.place.quotas.get("L-B665C33B", call.settings["images"]):
        raise Refused("AMIQuotaExceeded", "You have reached the maximum number of AMIs for your account in this Region")


def _check_boot(call):
    get = call.get
    choices = {
        "Architecture": ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac"),
        "VirtualizationType": ("hvm", "paravirtual"), "BootMode": ("legacy-bios", "uefi", "uefi-preferred"),
        "TpmSupport": ("v2.0",), "ImdsSupport": ("v2.0",), "SriovNetSupport": ("simple",),
    }
    for member, allowed in choices.items():
        if get(member) is not None and get(member) not in allowed:
            raise Refused("InvalidParameterValue", f"Value ({get(member)}) for parameter {member} is invalid: it must be "
                          f"{' or '.join(allowed)}")
    arch, mode, hvm = get("Architecture") or "i386", get("BootMode"), get("VirtualizationType") == "hvm"
    if arch == "arm64" and not hvm:
        raise Refused("InvalidParameterCombination", "arm64 images must be of virtualization type hvm")
    if arch == "arm64" and mode in ("legacy-bios", "uefi-preferred"):
        raise Refused("InvalidParameterCombination", f"The boot mode {mode} is not supported by architecture arm64")
    if arch == "i386" and mode in ("uefi", "uefi-preferred"):
        raise Refused("InvalidParameterCombination", f"The boot mode {mode} is not supported by architecture i386")
    if not hvm and (get("EnaSupport") or get("SriovNetSupport") or mode):
        raise Refused("InvalidParameterCombination", "EnaSupport, SriovNetSupport and BootMode need virtualization type "
                      "hvm")
    if hvm and (get("KernelId") or get("RamdiskId")):
        raise Refused("InvalidParameterCombination", "KernelId and RamdiskId are for paravirtual images")
    if get("TpmSupport") and mode != "uefi":
        raise Refused("InvalidParameterCombination", "TpmSupport requires the boot mode uefi")
    if get("UefiData") is not None:
        _check_uefi(get("UefiData"), mode)


def _check_uefi(text, mode):
    if mode not in ("uefi", "uefi-preferred"):
        raise Refused("InvalidParameterCombination", "UefiData requires the boot mode uefi or uefi-preferred")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused("InvalidParameterValue", "UefiData is not base64") from None
    if len(text) > 64 * 1024:
        raise Refused("InvalidParameterValue", "UefiData is longer than 64 KiB")
    if not data.startswith(b"AMZNUEFI"):
        raise Refused("InvalidParameterValue", "UefiData is no store of UEFI variables")


# ---- describe


@handles("ec2", "DescribeImages")
def describe_images(call):
    asked = call.get("ImageIds")
    if asked:
        found = [lookup(call, one) for one in asked]
    else:
        everywhere = [p for p in call.world.places.values() if p.region == call.region]
        found = [i for p in everywhere for i in p.images.values() if visible(call, i)]
        found = [i for i in found if not overlooked(i)]
    rows = []
    for one in sorted(found, key=lambda i: i.id):
        _advance(call, one)
        if _wanted(call, one, bool(asked)) and matches(call.get("Filters"), _facts(one)):
            rows.append(_describe(call, one))
    rows, token = paged(call, rows, least=1)
    return {"Images": rows, "NextToken": token}


def _wanted(call, image, named):
    own = image.account == call.account
    owners = call.get("Owners")
    if owners and not any(image.account == (call.account if o == "self" else o) for o in owners):
        return False
    users = call.get("ExecutableUsers")
    if users and not any((u == "all" and image.public) or (u == "self" and {"UserId": call.account} in image.launch)
                         or {"UserId": u} in image.launch for u in users):
        return False
    if image.state == "disabled" and not (call.get("IncludeDisabled") or named):
        return False
    past = image.deprecated and image.deprecated <= call.world.now()
    return not past or own or named or bool(call.get("IncludeDeprecated"))


def _advance(call, image):
    """One look at an image that is on its way to being available."""
    if image.state != "pending":
        return
    holding = [call.place.snapshots.get(s) for s in image.snapshots()]
    for snapshot in filter(None, holding):
        snapshots.advance(call, snapshot)
    failed = [s for s in holding if s is not None and s.state == "error"]
    if failed:
        image.state, image.reason = "failed", failed[0].message
        return
    image.polls -= 1
    if image.polls < 0 and all(s is None or s.state == "completed" for s in holding):
        image.state = "available"


def _describe(call, image):
    row = {
        "ImageId": image.id, "OwnerId": image.account, "Name": image.name, "Description": image.description or None,
        "ImageLocation": f"{image.account}/{image.name}", "ImageType": "machine", "State": image.state,
        "CreationDate": timestamp(image.created), "Architecture": image.architecture, "Public": image.public,
        "VirtualizationType": image.virtualization, "Hypervisor": "xen", "RootDeviceType": "ebs",
        "RootDeviceName": image.root, "BootMode": image.boot_mode, "TpmSupport": image.tpm, "ImdsSupport": image.imds,
        "EnaSupport": image.ena, "SriovNetSupport": image.sriov, "BlockDeviceMappings": image.mappings,
        "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances",
        "Tags": tag_list(image.tags) if image.account == call.account else [],
        "DeprecationTime": image.deprecated and timestamp(image.deprecated),
        "DeregistrationProtection": protection(call, image) if image.account == call.account else None,
        "StateReason": {"Code": "Client.InternalError", "Message": image.reason} if image.reason else None,
        "SourceImageId": image.source and image.source["id"],
        "SourceImageRegion": image.source and image.source["region"],
    }
    return {key: value for key, value in row.items() if value is not None}


def _facts(one):
    ebs = [m.get("Ebs", {}) for m in one.mappings]
    return {
        "image-id": one.id, "name": one.name, "owner-id": one.account, "state": one.state,
        "is-public": str(one.public).lower(), "architecture": one.architecture, "description": one.description,
        "virtualization-type": one.virtualization, "root-device-type": "ebs", "root-device-name": one.root,
        "ena-support": str(one.ena).lower(), "image-type": "machine", "hypervisor": "xen", "boot-mode": one.boot_mode,
        "creation-date": timestamp(one.created), "tpm-support": one.tpm, "imds-support": one.imds,
        "source-image-id": one.source and one.source["id"],
        "block-device-mapping.snapshot-id": [e["SnapshotId"] for e in ebs if "SnapshotId" in e],
        "block-device-mapping.device-name": [m["DeviceName"] for m in one.mappings],
        "block-device-mapping.volume-type": [e["VolumeType"] for e in ebs if "VolumeType" in e],
        "block-device-mapping.volume-size": [e["VolumeSize"] for e in ebs if "VolumeSize" in e],
        "block-device-mapping.encrypted": [str(e.get("Encrypted", False)).lower() for e in ebs],
        **tag_facts(one.tags),
    }


# ---- attributes


@handles("ec2", "DescribeImageAttribute")
def describe_image_attribute(call):
    image, attribute = lookup(call, call.get("ImageId"), own=True), call.get("Attribute")
    values = {
        "description": ("Description", image.description), "bootMode": ("BootMode", image.boot_mode),
        "sriovNetSupport": ("SriovNetSupport", image.sriov), "tpmSupport": ("TpmSupport", image.tpm),
        "uefiData": ("UefiData", image.uefi), "imdsSupport": ("ImdsSupport", image.imds),
        "deregistrationProtection": ("DeregistrationProtection", protection(call, image)),
        "lastLaunchedTime": ("LastLaunchedTime", None), "kernel": ("KernelId", None), "ramdisk": ("RamdiskId", None),
    }
    lists = {"launchPermission": ("LaunchPermissions", image.launch), "productCodes": ("ProductCodes", []),
             "blockDeviceMapping": ("BlockDeviceMappings", image.mappings)}
    if attribute in lists:
        member, value = lists[attribute]
    elif attribute in values:
        member, value = values[attribute]
        value = {} if value is None else {"Value": value}
    else:
        raise Refused("InvalidParameterValue", f"Value ({attribute}) for parameter attribute is invalid")
    return {"ImageId": image.id, member: value}


@handles("ec2", "ModifyImageAttribute")
def modify_image_attribute(call):
    image = lookup(call, call.get("ImageId"), own=True)
    if image.state != "available":
        raise Refused("InvalidAMIID.Unavailable", f"The image ID '{image.id}' is {image.state}, not available")
    attribute = call.get("Attribute")
    structured = [n for n in ("Description", "LaunchPermission", "ImdsSupport") if call.get(n) is not None]
    if len(structured) + (attribute is not None and not structured) != 1:
        raise Refused("InvalidParameterCombination", "Exactly one attribute is to be modified in a call")
    if "Description" in structured or attribute == "description":
        text = (call.get("Description") or {}).get("Value", call.get("Value"))
        if len(text or "") > 255:
            raise Refused("InvalidParameterValue", "The description is longer than 255 characters")
        image.description = text or ""
    elif "ImdsSupport" in structured or attribute == "imdsSupport":
        if (call.get("ImdsSupport") or {}).get("Value", call.get("Value")) != "v2.0":
            raise Refused("InvalidParameterValue", "ImdsSupport can only be set to v2.0")
        image.imds = "v2.0"
    elif "LaunchPermission" in structured or attribute == "launchPermission":
        _change_launch(call, image)
    else:
        raise Refused("InvalidParameterValue", f"The attribute {attribute} can't be modified")
    return {}


def _change_launch(call, image):
    add, remove = _launch_changes(call)
    for one in add + remove:
        _check_permission(one)
    if {"Group": "all"} in add and not image.public:
        _check_public(call, image)
    if add:
        held = [call.place.snapshots.get(s) for s in image.snapshots()]
        if any(s is not None and snapshots.default_managed(call, s) for s in held):
            raise Refused("InvalidParameter", f"Snapshot of {image.id} is encrypted with the AWS Managed CMK and can't be "
                          "shared")
    for one in add:
        if one not in image.launch:
            image.launch.append(one)
    image.launch = [one for one in image.launch if one not in remove]


def _launch_changes(call):
    """(to add, to remove) from either of the two forms of the call."""
    forms = {"UserIds": "UserId", "UserGroups": "Group", "OrganizationArns": "OrganizationArn",
             "OrganizationalUnitArns": "OrganizationalUnitArn"}
    plain = [{one: value} for many, one in forms.items() for value in call.get(many) or []]
    structured = call.get("LaunchPermission")
    if structured is not None:
        if plain or call.get("OperationType"):
            raise Refused("InvalidParameterCombination", "LaunchPermission can't be combined with the plain form")
        add, remove = structured.get("Add") or [], structured.get("Remove") or []
    elif call.get("OperationType") in ("add", "remove"):
        add, remove = (plain, []) if call.get("OperationType") == "add" else ([], plain)
    else:
        raise Refused("MissingParameter", "OperationType is missing")
    if not add and not remove:
        raise Refused("InvalidParameterCombination", "No launch permission was given to add or to remove")
    return add, remove


def _check_permission(one):
    if len(one) != 1:
        raise Refused("InvalidParameterCombination", "A launch permission names one account, group, organization or unit")
    (kind, value), = one.items()
    patterns = {
        "UserId": r"\d{12}", "Group": "all",
        "OrganizationArn": r"arn:aws[a-z-]*:organizations::\d{12}:organization/o-[a-z0-9]{10,32}",
        "OrganizationalUnitArn": r"arn:aws[a-z-]*:organizations::\d{12}:ou/o-[a-z0-9]{10,32}/"
                                 r"ou-[0-9a-z]{4,32}-[0-9a-z]{8,32}",
    }
    if not re.fullmatch(patterns[kind], value):
        code = "InvalidAMIAttributeItemValue"
        raise Refused(code, f"Invalid attribute item value \"{value}\" for {kind} item type.")


def _check_public(call, image):
    if call.place.images_private:
        raise Refused("OperationNotPermitted", "You can't publicly share this image because block public access for AMIs "
                      "is enabled for this account in this Region. Call the DisableImageBlockPublicAccess API and retry.")
    if any(m.get("Ebs", {}).get("Encrypted") for m in image.mappings):
        raise Refused("InvalidParameter", "Images with encrypted volumes can't be made public")
    public = sum(i.public and not i.deregistered for i in call.place.images.values())
    if public >= call.place.quotas.get("L-0E3CBAB9", call.settings["public_images"]):
        raise Refused("PublicAMIQuotaExceeded", "You have reached the maximum number of public AMIs in this Region")


@handles("ec2", "ResetImageAttribute")
def reset_image_attribute(call):
    if call.get("Attribute") != "launchPermission":
        raise Refused("InvalidParameterValue", "Only launchPermission can be reset")
    lookup(call, call.get("ImageId"), own=True).launch = []
    return {}


# ---- deprecation, protection, disabling


@handles("ec2", "EnableImageDeprecation")
def enable_image_deprecation(call):
    image, at, now = lookup(call, call.get("ImageId"), own=True), call.get("DeprecateAt"), call.world.now()
    if at < now:
        raise Refused("InvalidParameterValue", "The deprecation date must be in the future")
    if at > now + TEN_YEARS:
        raise Refused("InvalidParameterValue", "The deprecation date must be at most 10 years from now")
    if image.public and at > image.created + TWO_YEARS:
        raise Refused("InvalidParameterValue", "A public image is deprecated at most 2 years after its creation")
    # EC2 rounds to the nearest minute.
    at += datetime.timedelta(seconds=30)
    image.deprecated = at.replace(second=0, microsecond=0)
    return {"Return": True}


@handles("ec2", "DisableImageDeprecation")
def disable_image_deprecation(call):
    lookup(call, call.get("ImageId"), own=True).deprecated = None
    return {"Return": True}


def protection(call, image):
    """The state of the protection; a cooldown ends with the clock."""
    if image.unprotected and call.world.now() >= image.unprotected:
        image.protection, image.unprotected = "disabled", None
    return image.protection


@handles("ec2", "EnableImageDeregistrationProtection")
def enable_protection(call):
    image = lookup(call, call.get("ImageId"), own=True)
    image.protection = "enabled-with-cooldown" if call.get("WithCooldown") else "enabled-without-cooldown"
    image.unprotected = None
    return {"Return": image.protection}


@handles("ec2", "DisableImageDeregistrationProtection")
def disable_protection(call):
    image = lookup(call, call.get("ImageId"), own=True)
    if protection(call, image) == "enabled-with-cooldown":
        image.protection, image.unprotected = "disabled-in-cooldown", call.world.now() + COOLDOWN
    elif image.protection == "enabled-without-cooldown":
        image.protection = "disabled"
    return {"Return": image.protection}


@handles("ec2", "DisableImage", "EnableImage")
def disable_image(call):
    image = lookup(call, call.get("ImageId"), own=True)
    if call.operation == "EnableImage":
        image.state = "available"
    else:
        image.state, image.launch = "disabled", []
    return {"Return": True}


# ---- deregister


@handles("ec2", "DeregisterImage")
def deregister_image(call):
    image = lookup(call, call.get("ImageId"), own=True)
    if protection(call, image) != "disabled":
        raise Refused("OperationNotPermitted", f"You can't deregister {image.id} because deregistration protection is "
                      f"{image.protection}")
    image.deregistered = call.world.now()
    results = []
    for identifier in image.snapshots() if call.get("DeleteAssociatedSnapshots") else []:
        if snapshots.used_by(call, identifier, but=image.id):
            results.append({"SnapshotId": identifier, "ReturnCode": "skipped"})
        else:
            gone = call.place.snapshots.pop(identifier, None)
            results.append({"SnapshotId": identifier, "ReturnCode": "success" if gone else "client-error"})
    return {"Return": True, "DeleteSnapshotResults": results or None}


# ---- copy


@handles("ec2", "CopyImage")
def copy_image(call):
    known = remembered(call)
    if known is not None:
        return known
    check_name(call.get("Name"))
    _check_quota(call)
    snapshots.check_copy_parameters(call)
    source = call.world.find("images", call.get("SourceImageId"), call.get("SourceRegion"))
    if source is None or not visible(call, source):
        raise Refused("InvalidAMIID.NotFound", f"The image id '[{call.get('SourceImageId')}]' does not exist")
    if source.state != "available":
        raise Refused("InvalidAMIID.Unavailable", f"The image ID '{source.id}' is {source.state}, not available")
    tags = tags_of(call, "image", "snapshot")
    if call.get("CopyImageTags"):
        tags["image"] = {**source.tags, **tags["image"]} if source.account == call.account else tags["image"]
    snapshots.check_copies_limit(call)
    mappings = []
    for mapping in source.mappings:
        ebs = dict(mapping.get("Ebs") or {})
        if "SnapshotId" in ebs:
            held = snapshots.source_snapshot(call, ebs["SnapshotId"], source.region)
            text = f"Copied for DestinationAmi from SourceAmi {source.id} for SourceSnapshot {held.id}."
            made = snapshots.make_copy(call, held, text, dict(tags["snapshot"]), call.get("Encrypted"),
                                       call.get("KmsKeyId"))
            ebs |= {"SnapshotId": made.id, "Encrypted": made.encrypted}
        mappings.append({**mapping, "Ebs": ebs} if ebs else dict(mapping))
    made = Image(
        call.world.new_id("ami"), call.account, call.region, call.get("Name"), call.world.now(),
        call.get("Description") or "", source.architecture, source.virtualization, source.boot_mode, source.tpm,
        source.imds, source.uefi, source.ena, source.sriov, source.root, mappings, tags["image"],
        polls=call.settings["copy_polls"], unseen=call.settings["image_unseen"],
        source={"id": source.id, "region": source.region},
    )
    call.place.images[made.id] = made
    return remember(call, {"ImageId": made.id})
