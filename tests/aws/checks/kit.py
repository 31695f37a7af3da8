"""What the checks share: one server, clients, and snapshots made in a line."""

import atexit
import base64
import hashlib
import json
import os
import subprocess
import sys
import unittest
import urllib.request
from functools import lru_cache

import boto3
import botocore.exceptions
from botocore.config import Config

# Nothing of the user's own settings.
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "NO_PROXY": "127.0.0.1"}

BLOCK = 524288
HOME = "eu-central-1"
ACCOUNT = "123456789012"


@lru_cache(maxsize=None)
def server():
    """The URL of the server that all checks share."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aws.server", "--port", "0", "--with-parent"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=os.environ)
    atexit.register(lambda: (process.stdin.close(), process.wait(10), process.stdout.close()))
    return process.stdout.readline().strip()


def control(method, path, value=None):
    """A call of the control API."""
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(f"{server()}/_kiln/{path}", data, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return text if path.startswith("volume") else json.loads(text) if not path.startswith("log") else [
        json.loads(line) for line in text.splitlines()]


@lru_cache(maxsize=None)
def client(service, region=HOME, account=ACCOUNT, retries=False):
    """A client of an account: its access key is the account's number."""
    return client_with(service, region, (account, "secret", None))


def client_with(service, region, credentials):
    key, secret, token = credentials
    return boto3.client(
        service, endpoint_url=server(), region_name=region, aws_access_key_id=key, aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=20, s3={"addressing_style": "path"}))


def b64(digest):
    return base64.b64encode(digest).decode()


def block(seed):
    """Half a MiB that differs for each seed."""
    return hashlib.shake_128(str(seed).encode()).digest(4096) * 128


class Check(unittest.TestCase):
    """Starts each test with an empty world."""

    ec2, ebs, ssm = (property(lambda self, n=n: client(n)) for n in ("ec2", "ebs", "ssm"))

    def setUp(self):
        control("POST", "reset")

    def settings(self, **changes):
        control("POST", "settings", changes)

    def refused(self, code, function, **parameters):
        """The call fails with this code; gives the message back."""
        with self.assertRaises(botocore.exceptions.ClientError) as caught:
            function(**parameters)
        self.assertEqual(caught.exception.response["Error"]["Code"], code, caught.exception)
        return caught.exception.response["Error"]["Message"]

    def put(self, snapshot, index, data, ebs=None, **changed):
        digest = b64(hashlib.sha256(data).digest())
        parameters = {"SnapshotId": snapshot, "BlockIndex": index, "BlockData": data, "DataLength": len(data),
                      "Checksum": digest, "ChecksumAlgorithm": "SHA256", **changed}
        return (ebs or self.ebs).put_snapshot_block(**parameters)

    def complete(self, snapshot, blocks, ebs=None, **changed):
        whole = hashlib.sha256(b"".join(hashlib.sha256(blocks[i]).digest() for i in sorted(blocks))).digest()
        parameters = {"SnapshotId": snapshot, "ChangedBlocksCount": len(blocks), "Checksum": b64(whole),
                      "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR", **changed}
        return (ebs or self.ebs).complete_snapshot(**parameters)

    def snapshot(self, blocks, region=HOME, account=ACCOUNT, **parameters):
        """A completed snapshot of {index: bytes}."""
        ebs, ec2 = client("ebs", region, account), client("ec2", region, account)
        made = ebs.start_snapshot(**{"VolumeSize": 1, **parameters})["SnapshotId"]
        for index, data in blocks.items():
            self.put(made, index, data, ebs)
        self.complete(made, blocks, ebs)
        self.wait(ec2, made)
        return made

    def wait(self, ec2, snapshot):
        for _ in range(20):
            state = ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"]
            if state != "pending":
                return state
        self.fail("the snapshot stays pending")

    def wait_image(self, ec2, image):
        for _ in range(30):
            found = ec2.describe_images(ImageIds=[image])["Images"][0]
            if found["State"] != "pending":
                return found
        self.fail("the image stays pending")

    def read(self, snapshot, region=HOME, account=ACCOUNT):
        """{index: bytes} of a snapshot, through the EBS API."""
        ebs, token, found = client("ebs", region, account), {}, {}
        while True:
            page = ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100, **token)
            for one in page["Blocks"]:
                got = ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=one["BlockIndex"],
                                             BlockToken=one["BlockToken"])
                data = got["BlockData"].read()
                self.assertEqual(b64(hashlib.sha256(data).digest()), got["Checksum"])
                found[one["BlockIndex"]] = data
            if "NextToken" not in page:
                return found
            token = {"NextToken": page["NextToken"]}

    def image(self, snapshot=None, region=HOME, account=ACCOUNT, wait=True, ebs=None, **parameters):
        """A registered image."""
        ec2 = client("ec2", region, account)
        snapshot = snapshot or self.snapshot({0: block(0)}, region, account)
        parameters = {
            "Name": "kiln", "Architecture": "x86_64", "VirtualizationType": "hvm", "RootDeviceName": "/dev/xvda",
            "EnaSupport": True,
            "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot, "VolumeType": "gp3",
                                                                        **(ebs or {})}}], **parameters}
        made = ec2.register_image(**{k: v for k, v in parameters.items() if v is not None})["ImageId"]
        if wait:
            self.wait_image(ec2, made)
        return made
