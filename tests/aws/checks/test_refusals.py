"""Refusals that need no story: a call, and the code that it gets."""

import base64
import threading

from .kit import ACCOUNT, HOME, Check, block, client, client_with, control

OTHER = "222222222222"
FAR = "us-east-1"


class Snapshots(Check):
    def test_each(self):
        own = self.snapshot({0: block(0)})
        add = {"Add": [{"UserId": OTHER}]}
        self.ec2.modify_snapshot_attribute(SnapshotId=own, CreateVolumePermission=add)
        other = client("ec2", HOME, OTHER)
        self.refused("UnauthorizedOperation", other.delete_snapshot, SnapshotId=own)
        plain = {"SnapshotId": own, "Attribute": "createVolumePermission", "OperationType": "add"}
        cases = [
            ("InvalidSnapshotID.Malformed", "describe_snapshots", {"SnapshotIds": ["x"]}),
            ("InvalidParameterCombination", "describe_snapshots", {"SnapshotIds": [own], "MaxResults": 5}),
            ("InvalidParameterValue", "describe_snapshots", {"MaxResults": 1}),
            ("InvalidNextToken", "describe_snapshots", {"MaxResults": 5, "NextToken": "x"}),
            ("InvalidID", "create_tags", {"Resources": ["x-1"], "Tags": [{"Key": "a", "Value": "b"}]}),
            ("InvalidAMIID.NotFound", "create_tags", {"Resources": ["ami-1"], "Tags": [{"Key": "a", "Value": "b"}]}),
            ("TagLimitExceeded", "create_tags", {"Resources": [own], "Tags": [
                {"Key": str(n), "Value": ""} for n in range(51)]}),
            ("InvalidUserID.Malformed", "modify_snapshot_attribute", {**plain, "UserIds": ["123"]}),
            ("InvalidParameterValue", "modify_snapshot_attribute", {**plain, "Attribute": "productCodes"}),
            ("InvalidParameterCombination", "modify_snapshot_attribute", plain),
            ("InvalidParameterCombination", "modify_snapshot_attribute", {**plain, "UserIds": [OTHER],
                                                                        "CreateVolumePermission": add}),
            ("MissingParameter", "modify_snapshot_attribute", {"SnapshotId": own, "UserIds": [OTHER]}),
            ("InvalidParameterCombination", "modify_snapshot_attribute", {"SnapshotId": own, "CreateVolumePermission": {
                "Add": [{"UserId": OTHER, "Group": "all"}]}}),
        ]
        for code, name, parameters in cases:
            with self.subTest(f"{name} {parameters}"):
                self.refused(code, getattr(self.ec2, name), **parameters)

    def test_copies(self):
        own = self.snapshot({})
        copy = {"SourceSnapshotId": own, "SourceRegion": HOME}
        cases = [
            ("InvalidParameterValue", {"SourceRegion": "eu-nowhere-1"}), ("InvalidParameterValue", {"Description": "x" * 256}),
            ("InvalidParameterValue", {"CompletionDurationMinutes": 20}),
            ("InvalidParameterValue", {"TagSpecifications": [{"ResourceType": "image", "Tags": [{"Key": "a"}]}]}),
        ]
        for code, parameters in cases:
            self.refused(code, client("ec2", FAR).copy_snapshot, **{**copy, **parameters})
        # One under the account's own default key is of no use to others, however it is shared.
        secret = self.snapshot({}, Encrypted=True)
        self.refused("InvalidSnapshot.NotFound", client("ec2", FAR, OTHER).copy_snapshot, SourceSnapshotId=secret,
                     SourceRegion=HOME)


class Images(Check):
    def test_registration(self):
        own = self.snapshot({})
        cases = [
            ("UnsupportedOperation", {"ImageLocation": "bucket/manifest"}),
            ("OperationNotPermitted", {"BillingProducts": ["bp-1"]}),
            ("InvalidParameterCombination", {"Architecture": "arm64", "VirtualizationType": "paravirtual"}),
            ("InvalidParameterCombination", {"KernelId": "aki-1"}),
            ("InvalidParameterValue", {"BootMode": "uefi",
                                       "UefiData": base64.b64encode(b"AMZNUEFI" + bytes(65536)).decode()}),
        ]
        for code, parameters in cases:
            with self.subTest(list(parameters)):
                self.refused(code, self.image, snapshot=own, **parameters)
        self.settings(images=0)
        self.refused("AMIQuotaExceeded", self.image, snapshot=own)

    def test_attributes(self):
        made, modify = self.image(), self.ec2.modify_image_attribute
        describe = self.ec2.describe_image_attribute
        plain = {"ImageId": made, "Attribute": "launchPermission"}
        cases = [
            ("InvalidParameterValue", describe, {"ImageId": made, "Attribute": "wrong"}),
            ("InvalidParameterValue", modify, {"ImageId": made, "Description": {"Value": "x" * 256}}),
            ("InvalidParameterValue", modify, {"ImageId": made, "ImdsSupport": {"Value": "v1.0"}}),
            ("InvalidParameterValue", modify, {"ImageId": made, "Attribute": "bootMode", "Value": "uefi"}),
            ("InvalidParameterCombination", modify, {**plain, "OperationType": "add"}),
            ("MissingParameter", modify, {**plain, "UserIds": [OTHER]}),
            ("InvalidParameterCombination", modify, {"ImageId": made, "LaunchPermission": {
                "Add": [{"UserId": OTHER, "Group": "all"}]}}),
            ("InvalidParameterCombination", modify, {"ImageId": made, "UserIds": [OTHER], "LaunchPermission": {
                "Add": [{"UserId": OTHER}]}}),
            ("InvalidParameterValue", self.ec2.reset_image_attribute, {"ImageId": made, "Attribute": "description"}),
        ]
        for code, function, parameters in cases:
            with self.subTest(parameters):
                self.refused(code, function, **parameters)

    def test_public_ones(self):
        control("POST", f"place/{ACCOUNT}/{HOME}", {"images_private": False})
        key = client("kms").create_key()["KeyMetadata"]["Arn"]
        encrypted = self.image(self.snapshot({}, Encrypted=True, KmsKeyArn=key), Name="encrypted")
        everybody = {"LaunchPermission": {"Add": [{"Group": "all"}]}}
        self.refused("InvalidParameter", self.ec2.modify_image_attribute, ImageId=encrypted, **everybody)
        self.settings(public_images=0)
        self.refused("PublicAMIQuotaExceeded", self.ec2.modify_image_attribute, ImageId=self.image(), **everybody)

    def test_a_pending_image_is_not_copied(self):
        made = self.image(wait=False)
        self.refused("InvalidAMIID.Unavailable", client("ec2", FAR).copy_image, Name="kiln", SourceImageId=made,
                     SourceRegion=HOME)


class Blocks(Check):
    def test_two_at_once_for_one_block(self):
        """Not every race is one: that some are refused, and that what stays is one of the two, is what is sure."""
        made, codes = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"], []

        def write(seed):
            ebs = client("ebs", HOME)
            for _ in range(60):
                try:
                    self.put(made, 0, block(seed), ebs)
                except ebs.exceptions.ValidationException as error:
                    codes.append(error.response["Reason"])

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        self.assertEqual(set(codes), {"CONFLICTING_BLOCK_UPDATE"})


class Keys(Check):
    def test_kms(self):
        kms = client("kms")
        key = kms.create_key(Description="mine")["KeyMetadata"]
        kms.create_alias(AliasName="alias/kiln", TargetKeyId=key["KeyId"])
        self.assertEqual(kms.describe_key(KeyId="alias/kiln")["KeyMetadata"]["Arn"], key["Arn"])
        cases = [
            ("NotFoundException", "describe_key", {"KeyId": "alias/none"}),
            ("AlreadyExistsException", "create_alias", {"AliasName": "alias/kiln", "TargetKeyId": key["KeyId"]}),
            ("InvalidAliasNameException", "create_alias", {"AliasName": "alias/aws/x", "TargetKeyId": key["KeyId"]}),
            ("MalformedPolicyDocumentException", "put_key_policy", {"KeyId": key["KeyId"], "Policy": "{}"}),
            ("UnsupportedOperationException", "put_key_policy", {"KeyId": "alias/aws/ebs", "Policy": "{}"}),
        ]
        for code, name, parameters in cases:
            self.refused(code, getattr(kms, name), **parameters)
        self.refused("AccessDeniedException", client("kms", HOME, OTHER).describe_key, KeyId=key["Arn"])
        control("POST", f"kms/{ACCOUNT}/{HOME}/{key['KeyId']}", {"usable": False})
        self.refused("AccessDeniedException", kms.describe_key, KeyId=key["KeyId"])
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, Encrypted=True, KmsKeyArn=key["Arn"])
        self.refused("InvalidKey.NotFound", self.ec2.modify_ebs_default_kms_key_id, KmsKeyId="alias/none")

    def test_states_have_names(self):
        self.refused("InvalidParameterValue", self.ec2.enable_image_block_public_access,
                     ImageBlockPublicAccessState="block-all")
        self.refused("InvalidParameterValue", self.ec2.enable_snapshot_block_public_access, State="unblocked")
        self.refused("InvalidParameterValue", self.ec2.describe_regions, RegionNames=["eu-nowhere-1"])
        quotas = client("service-quotas")
        value = quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-0E3CBAB9")["Quota"]["Value"]
        self.assertEqual(value, 5.0)
        self.refused("NoSuchResourceException", quotas.get_service_quota, ServiceCode="ec2", QuotaCode="L-00000000")


class Volumes(Check):
    def test_mappings(self):
        own, root = self.snapshot({}), {"DeviceName": "/dev/xvda"}
        foreign = self.snapshot({}, HOME, OTHER)
        client("ec2", HOME, OTHER).modify_snapshot_attribute(
            SnapshotId=foreign, CreateVolumePermission={"Add": [{"UserId": ACCOUNT}]})
        good = {**root, "Ebs": {"SnapshotId": own}}
        cases = [
            ("InvalidBlockDeviceMapping", [good, good]), ("InvalidBlockDeviceMapping", [root]),
            ("InvalidBlockDeviceMapping", [{**root, "Ebs": {"VolumeSize": 8}}]),
            ("InvalidSnapshot.NotFound", [{**root, "Ebs": {"SnapshotId": foreign}}]),
            ("MissingParameter", [good, {"DeviceName": "/dev/xvdb", "Ebs": {"VolumeType": "gp3"}}]),
        ]
        for code, mappings in cases:
            with self.subTest(mappings):
                self.refused(code, self.image, snapshot=own, BlockDeviceMappings=mappings)


class Parameters(Check):
    def test_each(self):
        put = {"Name": "/kiln/a", "Value": "x", "Type": "String"}
        image = {"Value": "ami-00000000000000000", "DataType": "aws:ec2:image"}
        self.refused("ValidationException", self.ssm.put_parameter, Name="/kiln/a", Value="x")
        cases = [
            ("UnsupportedParameterType", "put_parameter", {**put, "Type": "Text"}),
            ("ValidationException", "put_parameter", {**put, "Value": "x" * 4097}),
            ("ValidationException", "put_parameter", {**put, **image, "Type": "StringList"}),
            ("ParameterPatternMismatchException", "put_parameter", {**put, "AllowedPattern": "[0-9]+"}),
            ("ValidationException", "get_parameters", {"Names": [f"/a{n}" for n in range(11)]}),
            ("ParameterNotFound", "get_parameter_history", {"Name": "/none"}),
            ("InvalidResourceId", "list_tags_for_resource", {"ResourceType": "Parameter", "ResourceId": "/none"}),
        ]
        for code, name, parameters in cases:
            with self.subTest(parameters):
                self.refused(code, getattr(self.ssm, name), **parameters)


class Sessions(Check):
    def test_each(self):
        sts, names = client("sts", FAR), {"RoleArn": f"arn:aws:iam::{OTHER}:role/r", "RoleSessionName": "kiln"}
        serial = f"arn:aws:iam::{OTHER}:mfa/kiln"
        control("POST", "mfa", {"serial": serial, "secret": "JBSWY3DPEHPK3PXP", "account": OTHER})
        code = control("GET", f"mfa?serial={serial}")["code"]
        cases = [
            ("AccessDenied", {"SerialNumber": serial, "TokenCode": code}),
            ("ValidationError", {"RoleArn": "arn:aws:iam::1:role/xxxxxxxxxx"}), ("ValidationError", {"RoleSessionName": "a b"}),
            ("ValidationError", {"ExternalId": "a b"}),
        ]
        for expected, parameters in cases:
            with self.subTest(parameters):
                self.refused(expected, sts.assume_role, **{**names, **parameters})
        self.refused("ValidationError", sts.assume_role, **names, DurationSeconds=43201)
        control("POST", "roles", {"arn": names["RoleArn"], "max_duration": 43200})
        first = sts.assume_role(RoleArn=f"arn:aws:iam::{ACCOUNT}:role/first", RoleSessionName="kiln")["Credentials"]
        chained = client_with("sts", FAR, (first["AccessKeyId"], first["SecretAccessKey"], first["SessionToken"]))
        self.refused("ValidationError", chained.assume_role, **names, DurationSeconds=7200)
        self.refused("InvalidGrantException", client("sso-oidc").create_token, clientId="c", clientSecret="s",
                     grantType="refresh_token", refreshToken="wrong")
        made = sts.get_session_token()["Credentials"]
        session = client_with("sts", FAR, (made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]))
        self.refused("AccessDenied", session.get_session_token)
        self.refused("ValidationError", sts.get_session_token, DurationSeconds=129601)


class Objects(Check):
    def test_buckets_and_objects(self):
        s3, bucket = client("s3"), {"Bucket": "kiln-b"}
        here = {"CreateBucketConfiguration": {"LocationConstraint": HOME}}
        s3.create_bucket(**bucket, **here)
        s3.put_object(**bucket, Key="k", Body=b"abc")
        other = client("s3", HOME, OTHER)
        cases = [
            ("BucketAlreadyOwnedByYou", s3.create_bucket, {**bucket, **here}),
            ("BucketAlreadyExists", other.create_bucket, {**bucket, **here}),
            ("InvalidBucketName", s3.create_bucket, {"Bucket": "Kiln", **here}),
            ("IllegalLocationConstraintException", s3.create_bucket, {"Bucket": "kiln-c"}),
            ("AccessDenied", s3.list_objects_v2, {**bucket, "ExpectedBucketOwner": OTHER}),
            ("NoSuchKey", s3.get_object, {**bucket, "Key": "none"}),
            ("InvalidRange", s3.get_object, {**bucket, "Key": "k", "Range": "bytes=3-"}),
            ("PreconditionFailed", s3.put_object, {**bucket, "Key": "k", "Body": b"", "IfNoneMatch": "*"}),
            ("NotImplemented", s3.create_multipart_upload, {**bucket, "Key": "k", "ChecksumAlgorithm": "CRC64NVME"}),
            ("InvalidRequest", s3.create_multipart_upload, {**bucket, "Key": "k", "ChecksumAlgorithm": "SHA256",
                                                            "ChecksumType": "FULL_OBJECT"}),
        ]
        for code, function, parameters in cases:
            with self.subTest(code):
                self.refused(code, function, **parameters)

    def test_uploads(self):
        s3, where = client("s3", FAR), {"Bucket": "kiln-b", "Key": "k"}
        s3.create_bucket(Bucket="kiln-b")
        where["UploadId"] = s3.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
        self.refused("InvalidArgument", s3.upload_part, **where, PartNumber=10001, Body=b"x", ChecksumAlgorithm="SHA256")
        done = s3.upload_part(**where, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256")
        good = {"PartNumber": 1, "ETag": done["ETag"], "ChecksumSHA256": done["ChecksumSHA256"]}
        wrong = base64.b64encode(bytes(32)).decode()
        finish = s3.complete_multipart_upload
        self.refused("MalformedXML", finish, **where, MultipartUpload={"Parts": []})
        self.refused("InvalidPart", finish, **where, MultipartUpload={"Parts": [{**good, "ChecksumSHA256": wrong}]})
        self.refused("InvalidRequest", finish, **where, MultipartUpload={"Parts": [good]}, MpuObjectSize=2)
        self.refused("BadDigest", finish, **where, MultipartUpload={"Parts": [good]}, ChecksumSHA256=wrong)
        finish(**where, MultipartUpload={"Parts": [good]}, MpuObjectSize=1)

    def test_tasks(self):
        s3 = client("s3", FAR)
        s3.create_bucket(Bucket="kiln-far")
        s3.put_object(Bucket="kiln-far", Key="k", Body=b"abc")
        far = {"Format": "RAW", "UserBucket": {"S3Bucket": "kiln-far", "S3Key": "k"}}
        begin, task = self.ec2.import_snapshot, "InvalidConversionTaskId.Malformed"
        self.refused("InvalidParameter", begin, DiskContainer=far)
        self.refused("InvalidParameter", begin, DiskContainer={"Format": "RAW", "Url": "https://x/y"})
        self.refused(task, self.ec2.describe_import_snapshot_tasks, ImportTaskIds=["import-snap-0"])
        self.refused(task, self.ec2.cancel_import_task, ImportTaskId="import-snap-0")
        far_ec2 = client("ec2", FAR)
        made = far_ec2.import_snapshot(DiskContainer=far)["ImportTaskId"]
        self.assertEqual(far_ec2.cancel_import_task(ImportTaskId=made)["State"], "deleted")
