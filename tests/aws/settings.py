"""What tests can set through the control API, and what it is at first."""

SETTINGS = {
    # Seconds that AWS's clock is ahead of this machine's.
    "clock_offset": 0,
    # For so many calls after StartSnapshot that name it, a snapshot is "not found".
    "snapshot_unseen": 0,
    # For so many DescribeImages after RegisterImage or CopyImage, an image is "not found".
    "image_unseen": 0,
    # So many DescribeSnapshots after CompleteSnapshot say "pending".
    "snapshot_polls": 2,
    # So many DescribeImages after RegisterImage say "pending".
    "image_polls": 2,
    # So many DescribeSnapshots or DescribeImages after CopySnapshot and CopyImage say "pending".
    "copy_polls": 3,
    # So many DescribeImportSnapshotTasks after ImportSnapshot say "active".
    "import_polls": 3,
    # For so many reads after PutParameter, an aws:ec2:image parameter is not there yet (or has its old value).
    "parameter_polls": 2,
    # Snapshots that may be pending at once in an account and region.
    "pending_snapshots": 100,
    # Snapshot copies that may be under way at once into a region.
    "copies_at_once": 20,
    # Images that an account may have in a region, and public ones among them.
    "images": 50000,
    "public_images": 5,
    # Real request rates (quota.py): off unless a test is about them.
    "rates": False,
    # Changes to those rates: {"PutSnapshotBlock": 50}.
    "rate_overrides": {},
    # Whether signatures are checked for access keys whose secret is known (sessions, keys of the control API).
    "signatures": True,
    # Whether an access key that nobody introduced belongs to the default account (a key of 12 digits: to the account of
    # that number) instead of being refused.
    "unknown_keys": True,
    # Whether a role that nobody configured can be assumed.
    "unknown_roles": True,
    # Roles that services may assume here by default: what ImportSnapshot looks for.
    "service_roles": ["vmimport"],
    # Regions that don't answer: calls are met with a closed connection.
    "regions_down": [],
    # ARN of the organisation that the accounts belong to; None: they belong to none.
    "organization": "arn:aws:organizations::123456789012:organization/o-kilntest00",
    # Bearer tokens that the SSO portal takes.
    "sso_tokens": ["kiln-sso-token"],
    # The base64 of a web identity token is not looked into; tokens in here are refused.
    "refused_identities": ["expired"],
}
