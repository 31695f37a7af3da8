"""What the local AWS knows: accounts, and in each account and region the snapshots, images, tasks, parameters and keys.

Everything here is plain data that pickles. Handlers change it while they hold `World.lock`; only the bytes of blocks are
moved without it.
"""

import copy
import datetime
import hashlib
import itertools
import threading
from dataclasses import dataclass, field

from .settings import SETTINGS

UTC = datetime.timezone.utc
OWN_ACCOUNT = "123456789012"

# Regions that every account has, and some of those that it must opt in to.
ALWAYS = ["us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "eu-central-1", "eu-west-1", "eu-west-2",
          "eu-west-3", "eu-north-1", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1",
          "ap-southeast-1", "ap-southeast-2", "sa-east-1"]
BY_CHOICE = ["af-south-1", "ap-east-1", "ap-south-2", "ap-southeast-3", "ap-southeast-4", "eu-central-2", "eu-south-1",
             "eu-south-2", "il-central-1", "me-central-1", "me-south-1", "ca-west-1"]


@dataclass
class Snapshot:
    """An EBS snapshot. `own` are the blocks written into it, `base` those of its parent; both map an index to a digest."""

    id: str
    account: str
    region: str
    size: int  # GiB
    started: datetime.datetime
    description: str = ""
    tags: dict = field(default_factory=dict)
    encrypted: bool = False
    key: str = None  # ARN
    parent: str = None
    lineage: str = None
    base: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)
    state: str = "pending"
    message: str = None
    origin: str = "direct"  # or copy, import
    sealed: bool = False  # CompleteSnapshot was accepted
    completed: datetime.datetime = None
    polls: int = None  # descriptions left until it is completed (or fails); None: nothing moves it
    fails: str = None  # what it fails with when its polls are over
    unseen: int = 0  # answers "not found" left
    timeout: int = 60  # minutes
    expires: datetime.datetime = None
    users: set = field(default_factory=set)
    public: bool = False
    puts: int = 0

    @property
    def blocks(self):
        return {**self.base, **self.own}


@dataclass
class Image:
    """An AMI. `parameters` is what RegisterImage was called with."""

    id: str
    account: str
    region: str
    name: str
    created: datetime.datetime
    description: str = ""
    architecture: str = "i386"
    virtualization: str = "paravirtual"
    boot_mode: str = None
    tpm: str = None
    imds: str = None
    uefi: str = None
    ena: bool = False
    sriov: str = None
    root: str = None
    mappings: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)
    state: str = "pending"
    reason: str = None
    polls: int = None
    unseen: int = 0
    launch: list = field(default_factory=list)  # of {UserId|Group|OrganizationArn|OrganizationalUnitArn: …}
    deprecated: datetime.datetime = None
    protection: str = "disabled"
    unprotected: datetime.datetime = None  # when a cooldown is over
    source: dict = None  # of a copy: its source's id and region
    deregistered: datetime.datetime = None

    @property
    def public(self):
        return {"Group": "all"} in self.launch

    def snapshots(self):
        return [m["Ebs"]["SnapshotId"] for m in self.mappings if "SnapshotId" in m.get("Ebs", {})]


@dataclass
class Key:
    """A KMS key."""

    id: str
    arn: str
    created: datetime.datetime
    manager: str = "CUSTOMER"
    description: str = ""
    state: str = "Enabled"
    policy: str = ""
    usable: bool = True  # by EC2 for whoever calls


@dataclass
class Place:
    """One account in one region."""

    account: str
    region: str
    snapshots: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)
    parameters: dict = field(default_factory=dict)
    instances: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    aliases: dict = field(default_factory=dict)
    tokens: dict = field(default_factory=dict)  # (operation, client token): (parameters, result)
    encrypt: bool = False  # by default
    default_key: str = "alias/aws/ebs"
    images_private: bool = True  # block public access for AMIs, as new accounts have it
    snapshots_private: str = "unblocked"
    opted_in: bool = True
    quotas: dict = field(default_factory=dict)


@dataclass
class AccessKey:
    """Who an access key belongs to. A session has a token and an end."""

    id: str
    secret: str
    account: str
    arn: str
    user_id: str
    token: str = None
    expires: datetime.datetime = None
    mfa: bool = False
    root: dict = None


class World:
    """Everything. `settings` is what the control API changes (see settings.py)."""

    def __init__(self, blocks, files):
        self.lock = threading.RLock()
        self.blocks, self.files = blocks, files
        self._begin()

    def reset(self):
        """Back to an empty world with the settings of the beginning."""
        with self.lock:
            self._begin()
            self.blocks.reset()
            self.files.reset()

    def _begin(self):
        self.places = {}
        self.buckets = {}
        self.keys = {}  # access keys by id
        self.devices = {}  # MFA devices by serial: {"secret": base32, "used": {time steps}}
        self.roles = {}  # configured roles by ARN
        self.users = {}
        self.counters = itertools.count(1)
        self.settings = copy.deepcopy(SETTINGS)

    # What is kept between runs.
    KEPT = ("places", "buckets", "keys", "devices", "roles", "users", "settings")

    def kept(self):
        return {name: getattr(self, name) for name in self.KEPT} | {"next": next(self.counters)}

    def restore(self, kept):
        for name in self.KEPT:
            setattr(self, name, kept[name])
        self.settings = {**copy.deepcopy(SETTINGS), **self.settings}
        self.counters = itertools.count(kept["next"])

    def now(self):
        """The time, with the offset that tests set."""
        return datetime.datetime.now(UTC) + datetime.timedelta(seconds=self.settings["clock_offset"])

    def place(self, account, region):
        """The account's part of a region; made when first asked for."""
        key = (account, region)
        if key not in self.places:
            self.places[key] = Place(account, region, opted_in=region not in BY_CHOICE)
        return self.places[key]

    def regions(self):
        return sorted(ALWAYS + BY_CHOICE)

    def new_id(self, kind):
        """An identifier such as snap-0123456789abcdef0: never the same twice, the same in each run."""
        number = next(self.counters)
        return f"{kind}-0{hashlib.sha256(f'{kind} {number}'.encode()).hexdigest()[:16]}"

    def find(self, kind, identifier, region):
        """A snapshot or an image (`kind`: snapshots, images) by its id, in whichever account; None if there is none."""
        for place in self.places.values():
            if place.region == region and identifier in getattr(place, kind):
                return getattr(place, kind)[identifier]
        return None
