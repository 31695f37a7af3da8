"""S3's checksums, and snapshots that are imported from it."""

import hashlib

from .kit import BLOCK, HOME, Check, b64, block, client, control

BUCKET = "kiln-images"
MIB = 1 << 20


class Case(Check):
    s3 = property(lambda self: client("s3"))

    def setUp(self):
        super().setUp()
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": HOME})

    def upload(self, data, size=5 * MIB, key="image.raw"):
        where = {"Bucket": BUCKET, "Key": key}
        upload = self.s3.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
        parts = []
        for number, start in enumerate(range(0, len(data), size), 1):
            piece = data[start:start + size]
            done = self.s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=piece,
                                       ChecksumSHA256=b64(hashlib.sha256(piece).digest()))
            parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": done["ChecksumSHA256"]})
        return {**where, "UploadId": upload}, parts

    def finish(self, upload, parts):
        return self.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def task(self, identifier):
        for _ in range(2000):
            tasks = self.ec2.describe_import_snapshot_tasks(ImportTaskIds=[identifier])["ImportSnapshotTasks"]
            if tasks[0]["SnapshotTaskDetail"]["Status"] != "active":
                return tasks[0]["SnapshotTaskDetail"]
        self.fail("the task stays active")

    def start(self, key="image.raw", form="RAW", **parameters):
        where = {"S3Bucket": parameters.pop("bucket", BUCKET), "S3Key": key}
        return self.ec2.import_snapshot(DiskContainer={"Format": form, "UserBucket": where}, **parameters)["ImportTaskId"]


class Sums(Case):
    def test_parts_and_their_checksums(self):
        data = b"".join(block(i) for i in range(22))
        upload, parts = self.upload(data)
        part = {**upload, "PartNumber": 4, "Body": b"x"}
        self.refused("BadDigest", self.s3.upload_part, **part, ChecksumSHA256=b64(bytes(32)))
        self.refused("InvalidRequest", self.s3.upload_part, **part, ChecksumSHA1=b64(hashlib.sha1(b"x").digest()))
        bare = [{key: value for key, value in one.items() if key != "ChecksumSHA256"} for one in parts]
        self.refused("InvalidRequest", self.finish, upload=upload, parts=bare)
        self.refused("InvalidPart", self.finish, upload=upload, parts=[{**parts[0], "ETag": '"0"'}] + parts[1:])
        self.refused("InvalidPartOrder", self.finish, upload=upload, parts=parts[::-1])
        done = self.finish(upload, parts)
        digests = b"".join(hashlib.sha256(data[i:i + 5 * MIB]).digest() for i in range(0, len(data), 5 * MIB))
        self.assertEqual(done["ChecksumSHA256"], f"{b64(hashlib.sha256(digests).digest())}-3")
        self.assertEqual(self.s3.get_object(Bucket=BUCKET, Key="image.raw")["Body"].read(), data)
        self.refused("NoSuchUpload", self.finish, upload=upload, parts=parts)

    def test_small_parts_and_aborted_uploads(self):
        upload, parts = self.upload(b"x" * 3 * MIB, MIB)
        self.refused("EntityTooSmall", self.finish, upload=upload, parts=parts)
        self.s3.abort_multipart_upload(**upload)
        self.assertEqual(self.s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []), [])
        self.refused("NoSuchUpload", self.s3.list_parts, **upload)

    def test_buckets(self):
        self.refused("NoSuchBucket", self.s3.put_object, Bucket="other-bucket", Key="a", Body=b"")
        # boto3 follows the redirection to the bucket's region.
        client("s3", "us-west-2").list_objects_v2(Bucket=BUCKET)
        seen = [(e["region"], e["status"]) for e in control("GET", "log?operation=ListObjectsV2")]
        self.assertEqual(seen, [("us-west-2", 301), (HOME, 200)])
        self.refused("AccessDenied", client("s3", HOME, "222222222222").list_objects_v2, Bucket=BUCKET)
        self.s3.put_object(Bucket=BUCKET, Key="a b/ü+c", Body=b"abc")
        self.refused("BucketNotEmpty", self.s3.delete_bucket, Bucket=BUCKET)
        self.assertEqual(self.s3.list_objects_v2(Bucket=BUCKET, Prefix="a b/")["Contents"][0]["Key"], "a b/ü+c")
        self.s3.delete_object(Bucket=BUCKET, Key="a b/ü+c")
        self.s3.delete_bucket(Bucket=BUCKET)


class Imports(Case):
    def test_an_object_becomes_a_snapshot(self):
        data = block(0) + bytes(3 * BLOCK) + block(4) + b"the rest"
        self.s3.put_object(Bucket=BUCKET, Key="image.raw", Body=data, ChecksumAlgorithm="SHA256")
        tags = [{"ResourceType": "import-snapshot-task", "Tags": [{"Key": "a", "Value": "b"}]}]
        task = self.start(TagSpecifications=tags, ClientToken="t", Description="d")
        self.assertEqual(self.start(TagSpecifications=tags, ClientToken="t", Description="d"), task)
        done = self.task(task)
        self.assertEqual(done["Status"], "completed")
        rest = b"the rest".ljust(BLOCK, b"\0")
        self.assertEqual(self.read(done["SnapshotId"]), {0: block(0), 4: block(4), 5: rest})
        found = self.ec2.describe_snapshots(Filters=[{"Name": "description", "Values": [f"*{task}*"]}])["Snapshots"]
        self.assertEqual([s["SnapshotId"] for s in found], [done["SnapshotId"]])

    def test_what_is_refused_and_what_fails_later(self):
        self.s3.put_object(Bucket=BUCKET, Key="image.raw", Body=block(0))
        self.s3.put_object(Bucket=BUCKET, Key="empty", Body=b"")
        self.refused("InvalidParameter", self.start, RoleName="unknown")
        self.refused("InvalidParameter", self.start, key="missing")
        self.refused("InvalidParameter", self.start, bucket="missing")
        self.refused("InvalidParameter", self.start, form="QCOW2")
        self.refused("InvalidParameter", self.start, KmsKeyId="alias/aws/ebs")
        self.settings(service_roles=["other"])
        self.refused("InvalidParameter", self.start)
        self.start(RoleName="other")
        done = self.task(self.start(key="empty", RoleName="other"))
        self.assertEqual((done["Status"], "validation" in done["StatusMessage"]), ("deleted", True))

    def test_an_encrypted_one_has_no_holes(self):
        self.s3.put_object(Bucket=BUCKET, Key="image.raw", Body=bytes(2 * BLOCK) + block(2))
        done = self.task(self.start(Encrypted=True))
        self.assertEqual(sorted(self.read(done["SnapshotId"])), [0, 1, 2])
