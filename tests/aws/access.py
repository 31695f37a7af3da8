"""What an account allows in a region: encryption by default, KMS keys, block public access, regions it opted in to."""

import json

from .protocol import Refused
from .registry import handles, matches
from .world import ALWAYS, BY_CHOICE, Key

# ---- encryption by default


@handles("ec2", "GetEbsEncryptionByDefault")
def get_encryption_by_default(call):
    return {"EbsEncryptionByDefault": call.place.encrypt, "SseType": "sse-ebs"}


@handles("ec2", "EnableEbsEncryptionByDefault", "DisableEbsEncryptionByDefault")
def set_encryption_by_default(call):
    call.place.encrypt = call.operation.startswith("Enable")
    return {"EbsEncryptionByDefault": call.place.encrypt}


@handles("ec2", "GetEbsDefaultKmsKeyId", "ResetEbsDefaultKmsKeyId", "ModifyEbsDefaultKmsKeyId")
def default_key(call):
    if call.operation.startswith("Reset"):
        call.place.default_key = "alias/aws/ebs"
    elif call.operation.startswith("Modify"):
        call.place.default_key = resolve_key(call, call.get("KmsKeyId"), _invalid_key).arn
    return {"KmsKeyId": call.place.default_key}


def _invalid_key(message):
    return Refused("InvalidKey.NotFound", message)


# ---- keys


def managed_key(call, account=None, region=None):
    """The account's `aws/ebs`: AWS makes it when it is first needed."""
    place = call.world.place(account or call.account, region or call.region)
    if "alias/aws/ebs" not in place.aliases:
        made = _make_key(call.world, place, "AWS", "Default key that protects my EBS volumes when no other key is defined")
        place.aliases["alias/aws/ebs"] = made.id
    return place.keys[place.aliases["alias/aws/ebs"]]


def _make_key(world, place, manager, description, policy=""):
    number = world.new_id("key")[5:]
    identifier = f"{number[:8]}-{number[8:12]}-4{number[12:15]}-8{number[1:4]}-{number[4:16]}"
    arn = f"arn:aws:kms:{place.region}:{place.account}:key/{identifier}"
    key = Key(identifier, arn, world.now(), manager, description, policy=policy or _own_policy(place.account))
    place.keys[identifier] = key
    return key


def _own_policy(account):
    return json.dumps({"Version": "2012-10-17", "Statement": [{
        "Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
        "Action": "kms:*", "Resource": "*"}]})


def find_key(call, name):
    """The key that an id, an ARN or an alias means in this region, of whichever account; None if there is none."""
    account, region = call.account, call.region
    if name.startswith("arn:"):
        parts = name.split(":", 5)
        if len(parts) < 6 or parts[2] != "kms" or parts[3] != region:
            return None
        account, name = parts[4], parts[5].removeprefix("key/")
    if name == "alias/aws/ebs":
        return managed_key(call, account, region)
    place = call.world.place(account, region)
    if name.startswith("alias/"):
        name = place.aliases.get(name)
    return place.keys.get(name)


def resolve_key(call, name, error):
    """As `find_key`, but only one that can be used now; else `error(message)` is raised."""
    key = find_key(call, name)
    if key is None:
        raise error(f"The KMS key {name} does not exist in {call.region}")
    if key.state != "Enabled":
        raise error(f"The KMS key {key.arn} is {key.state}")
    if not key.usable or not _allows(key, call.account):
        raise error(f"The KMS key {key.arn} is not accessible")
    return key


def _allows(key, account):
    """Whether a key's policy lets an account use it at all."""
    if key.arn.split(":")[4] == account:
        return True
    for statement in json.loads(key.policy)["Statement"]:
        principals = statement.get("Principal", {})
        principals = principals.get("AWS", []) if isinstance(principals, dict) else principals
        principals = [principals] if isinstance(principals, str) else principals
        if statement["Effect"] == "Allow" and any(p == "*" or account in p for p in principals):
            return True
    return False


def _kms_key(call, name):
    key = find_key(call, name)
    if key is None:
        raise Refused("NotFoundException", f"Key '{name}' does not exist")
    return key


@handles("kms", "CreateKey")
def create_key(call):
    key = _make_key(call.world, call.place, "CUSTOMER", call.get("Description") or "", call.get("Policy"))
    return {"KeyMetadata": _metadata(key)}


@handles("kms", "DescribeKey")
def describe_key(call):
    key = _kms_key(call, call.get("KeyId"))
    if not key.usable or not _allows(key, call.account):
        raise Refused("AccessDeniedException", f"User: {call.caller.arn} is not authorized to perform: kms:DescribeKey "
                      f"on resource: {key.arn}")
    return {"KeyMetadata": _metadata(key)}


def _metadata(key):
    return {
        "AWSAccountId": key.arn.split(":")[4], "KeyId": key.id, "Arn": key.arn, "CreationDate": key.created,
        "Enabled": key.state == "Enabled", "Description": key.description, "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": key.state, "Origin": "AWS_KMS", "KeyManager": key.manager, "KeySpec": "SYMMETRIC_DEFAULT",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "MultiRegion": False,
    }


@handles("kms", "EnableKey", "DisableKey", "ScheduleKeyDeletion")
def change_key(call):
    key = _kms_key(call, call.get("KeyId"))
    key.state = {"EnableKey": "Enabled", "DisableKey": "Disabled"}.get(call.operation, "PendingDeletion")
    return {"KeyId": key.arn, "KeyState": key.state} if key.state == "PendingDeletion" else {}


@handles("kms", "CreateAlias", "DeleteAlias")
def change_alias(call):
    name = call.get("AliasName")
    if not name.startswith("alias/") or name.startswith("alias/aws/"):
        raise Refused("InvalidAliasNameException", "Aliases begin with alias/, but not with alias/aws/")
    if call.operation == "DeleteAlias":
        call.place.aliases.pop(name, None)
    elif name in call.place.aliases:
        raise Refused("AlreadyExistsException", f"An alias with the name {name} already exists")
    else:
        call.place.aliases[name] = _kms_key(call, call.get("TargetKeyId")).id
    return {}


@handles("kms", "ListAliases")
def list_aliases(call):
    managed_key(call)
    prefix = f"arn:aws:kms:{call.region}:{call.account}:"
    return {"Aliases": [{"AliasName": name, "AliasArn": prefix + name, "TargetKeyId": key}
                        for name, key in sorted(call.place.aliases.items())], "Truncated": False}


@handles("kms", "GetKeyPolicy")
def get_key_policy(call):
    return {"Policy": _kms_key(call, call.get("KeyId")).policy, "PolicyName": "default"}


@handles("kms", "PutKeyPolicy")
def put_key_policy(call):
    key = _kms_key(call, call.get("KeyId"))
    if key.manager == "AWS":
        raise Refused("UnsupportedOperationException", "The policy of an AWS managed key can't be changed")
    try:
        json.loads(call.get("Policy"))["Statement"]
    except (ValueError, KeyError, TypeError):
        raise Refused("MalformedPolicyDocumentException", "The policy is no policy") from None
    key.policy = call.get("Policy")
    return {}


# ---- block public access


@handles("ec2", "GetImageBlockPublicAccessState", "EnableImageBlockPublicAccess", "DisableImageBlockPublicAccess")
def image_block_public_access(call):
    if call.operation.startswith("Enable"):
        if call.get("ImageBlockPublicAccessState") != "block-new-sharing":
            raise Refused("InvalidParameterValue", "The state must be block-new-sharing")
        call.place.images_private = True
    elif call.operation.startswith("Disable"):
        call.place.images_private = False
    state = "block-new-sharing" if call.place.images_private else "unblocked"
    return {"ImageBlockPublicAccessState": state,
            **({"ManagedBy": "account"} if call.operation.startswith("Get") else {})}


@handles("ec2", "GetSnapshotBlockPublicAccessState", "EnableSnapshotBlockPublicAccess",
         "DisableSnapshotBlockPublicAccess")
def snapshot_block_public_access(call):
    if call.operation.startswith("Enable"):
        if call.get("State") not in ("block-all-sharing", "block-new-sharing"):
            raise Refused("InvalidParameterValue", "The state must be block-all-sharing or block-new-sharing")
        call.place.snapshots_private = call.get("State")
    elif call.operation.startswith("Disable"):
        call.place.snapshots_private = "unblocked"
    return {"State": call.place.snapshots_private,
            **({"ManagedBy": "account"} if call.operation.startswith("Get") else {})}


# ---- regions and quotas


@handles("ec2", "DescribeRegions")
def describe_regions(call):
    asked = call.get("RegionNames")
    for name in asked or []:
        if name not in ALWAYS + BY_CHOICE:
            raise Refused("InvalidParameterValue", f"Invalid region provided: {name}")
    rows = []
    for name in asked or call.world.regions():
        opted = call.world.place(call.account, name).opted_in
        status = "opt-in-not-required" if name in ALWAYS else "opted-in" if opted else "not-opted-in"
        row = {"RegionName": name, "Endpoint": f"ec2.{name}.amazonaws.com", "OptInStatus": status}
        shown = opted or call.get("AllRegions") or asked
        if shown and matches(call.get("Filters"), {"region-name": name, "endpoint": row["Endpoint"],
                                                   "opt-in-status": status}):
            rows.append(row)
    return {"Regions": rows}


@handles("ec2", "DescribeAvailabilityZones")
def describe_availability_zones(call):
    return {"AvailabilityZones": [{
        "ZoneName": f"{call.region}{letter}", "ZoneId": f"{call.region}-az{number}", "RegionName": call.region,
        "State": "available", "ZoneType": "availability-zone", "OptInStatus": "opt-in-not-required",
    } for number, letter in enumerate("abc", 1)]}


# Names and codes as Service Quotas has them; the settings and the place's own values decide.
QUOTAS = {
    ("ec2", "L-B665C33B"): ("AMIs", "images"), ("ec2", "L-0E3CBAB9"): ("Public AMIs", "public_images"),
    ("ebs", "L-309BACF6"): ("Snapshots per Region", 100000),
}


def _quota(call, service, code):
    name, value = QUOTAS[service, code]
    value = call.place.quotas.get(code, call.settings[value] if isinstance(value, str) else value)
    return {"ServiceCode": service, "QuotaCode": code, "QuotaName": name, "Value": float(value), "Unit": "None",
            "Adjustable": True, "GlobalQuota": False,
            "QuotaArn": f"arn:aws:servicequotas:{call.region}:{call.account}:{service}/{code}"}


@handles("service-quotas", "GetServiceQuota")
def get_service_quota(call):
    if (call.get("ServiceCode"), call.get("QuotaCode")) not in QUOTAS:
        raise Refused("NoSuchResourceException", "There is no such quota")
    return {"Quota": _quota(call, call.get("ServiceCode"), call.get("QuotaCode"))}


@handles("service-quotas", "ListServiceQuotas")
def list_service_quotas(call):
    return {"Quotas": [_quota(call, *key) for key in QUOTAS if key[0] == call.get("ServiceCode")]}
