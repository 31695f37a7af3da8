"""EC2's calls on images: what is registered is what is described, and wrong combinations are refused."""

import base64
import datetime

from .kit import ACCOUNT, HOME, Check, block, client, control

FAR = "us-east-1"
UEFI = base64.b64encode(b"AMZNUEFI" + bytes(32)).decode()
ORGANIZATION = "arn:aws:organizations::123456789012:organization/o-kilntest00"
UNIT = "arn:aws:organizations::123456789012:ou/o-kilntest00/ou-abcd-12345678"


def now():
    return datetime.datetime.now(datetime.timezone.utc)


class Register(Check):
    def test_every_member_is_kept(self):
        snapshot = self.snapshot({0: block(0)})
        made = self.image(
            snapshot, BootMode="uefi", TpmSupport="v2.0", ImdsSupport="v2.0", UefiData=UEFI, SriovNetSupport="simple",
            Description="words", Name="kiln-1.2 (a)", ebs={"VolumeSize": 8, "Iops": 4000, "Throughput": 250,
                                                         "DeleteOnTermination": False},
            TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}])
        row = self.ec2.describe_images(ImageIds=[made])["Images"][0]
        expected = {
            "Name": "kiln-1.2 (a)", "Description": "words", "Architecture": "x86_64", "BootMode": "uefi",
            "TpmSupport": "v2.0", "ImdsSupport": "v2.0", "SriovNetSupport": "simple", "EnaSupport": True,
            "RootDeviceName": "/dev/xvda", "VirtualizationType": "hvm", "OwnerId": ACCOUNT, "Public": False,
            "State": "available", "Tags": [{"Key": "a", "Value": "b"}],
            "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {
                "SnapshotId": snapshot, "VolumeType": "gp3", "VolumeSize": 8, "Iops": 4000, "Throughput": 250,
                "DeleteOnTermination": False, "Encrypted": False}}],
        }
        self.assertEqual({key: row.get(key) for key in expected}, expected)
        attribute = self.ec2.describe_image_attribute(ImageId=made, Attribute="uefiData")
        self.assertEqual(attribute["UefiData"]["Value"], UEFI)

    def test_defaults_are_as_bad_as_in_aws(self):
        made = self.image(Architecture=None, VirtualizationType=None, EnaSupport=None)
        row = self.ec2.describe_images(ImageIds=[made])["Images"][0]
        self.assertEqual((row["Architecture"], row["VirtualizationType"], row["EnaSupport"]),
                         ("i386", "paravirtual", False))
        self.assertNotIn("ImdsSupport", row)

    def test_names(self):
        self.image(Name="taken")
        snapshot = self.snapshot({})
        self.refused("InvalidAMIName.Duplicate", self.image, snapshot=snapshot, Name="taken")
        for wrong in ("x" * 129, "semi;colon"):
            self.refused("InvalidAMIName.Malformed", self.image, snapshot=snapshot, Name=wrong)
        self.image(self.snapshot({}, FAR), FAR, Name="taken")

    def test_wrong_combinations(self):
        snapshot = self.snapshot({})
        combination, value = "InvalidParameterCombination", "InvalidParameterValue"
        wrong = [
            (combination, {"TpmSupport": "v2.0", "BootMode": "uefi-preferred"}), (combination, {"TpmSupport": "v2.0"}),
            (combination, {"Architecture": "arm64", "BootMode": "legacy-bios"}),
            (combination, {"Architecture": "arm64", "BootMode": "uefi-preferred"}),
            (combination, {"Architecture": "i386", "BootMode": "uefi"}), (combination, {"VirtualizationType": None}),
            (combination, {"UefiData": UEFI, "BootMode": "legacy-bios"}),
            (value, {"UefiData": "AAAA", "BootMode": "uefi"}), (value, {"UefiData": "!", "BootMode": "uefi"}),
            (value, {"BootMode": "bios"}), (value, {"TpmSupport": "2.0"}), (value, {"ImdsSupport": "v1.0"}),
            (value, {"Architecture": "riscv64"}), (value, {"Description": "x" * 256}),
            (value, {"TagSpecifications": [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]}),
        ]
        for code, parameters in wrong:
            with self.subTest(parameters):
                self.refused(code, self.image, snapshot=snapshot, **parameters)

    def test_wrong_volumes(self):
        snapshot = self.snapshot({}, VolumeSize=4)
        mapping, value, combination = ("InvalidBlockDeviceMapping", "InvalidParameterValue", "InvalidParameterCombination")
        wrong = [
            (mapping, {"VolumeSize": 3}), (mapping, {"Encrypted": True}), ("InvalidParameter", {"KmsKeyId": "alias/a"}),
            (mapping, {"VolumeType": "st1", "VolumeSize": 500}), (value, {"VolumeType": "gp9"}),
            (value, {"VolumeSize": 70000}), (combination, {"VolumeType": "gp2", "Iops": 3000}),
            (combination, {"VolumeType": "gp2", "Throughput": 125}), (value, {"Iops": 100}),
            (combination, {"Iops": 10000}), (combination, {"Throughput": 1000}), (value, {"Throughput": 50}),
            ("MissingParameter", {"VolumeType": "io1"}), ("InvalidSnapshot.NotFound", {"SnapshotId": "snap-" + "0" * 17}),
        ]
        for code, ebs in wrong:
            with self.subTest(ebs):
                self.refused(code, self.image, snapshot=snapshot, ebs=ebs)
        self.refused(mapping, self.image, snapshot=snapshot, RootDeviceName="/dev/sda1")
        self.refused(mapping, self.image, snapshot=snapshot, RootDeviceName=None)
        pending = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        self.refused("InvalidSnapshot.InvalidState", self.image, snapshot=pending)

    def test_it_is_pending_for_a_while_and_unseen_at_first(self):
        self.settings(image_unseen=2, image_polls=1)
        made = self.image(wait=False)
        for _ in range(2):
            self.refused("InvalidAMIID.NotFound", self.ec2.describe_images, ImageIds=[made])
        states = [self.ec2.describe_images(ImageIds=[made])["Images"][0]["State"] for _ in range(2)]
        self.assertEqual(states, ["pending", "available"])

    def test_unknown_members_are_refused(self):
        def unknown(params, **_):
            params["body"]["BlockDeviceMapping.1.Ebs.Sise"] = "8"

        ec2 = client("ec2", HOME, ACCOUNT)
        snapshot = self.snapshot({})
        ec2.meta.events.register("before-call.ec2.RegisterImage", unknown)
        try:
            message = self.refused("UnknownParameter", self.image, snapshot=snapshot)
        finally:
            ec2.meta.events.unregister("before-call.ec2.RegisterImage", unknown)
        self.assertIn("BlockDeviceMapping.1.Ebs.Sise", message)


class Describe(Check):
    def test_filters_and_owners(self):
        made = self.image(TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "k", "Value": "v"}]}])
        find = lambda **p: [i["ImageId"] for i in self.ec2.describe_images(**p)["Images"]]  # noqa: E731
        for filters in ({"name": "kiln"}, {"name": "k*n"}, {"tag:k": "v"}, {"tag-key": "k"}, {"is-public": "false"},
                        {"state": "available"}, {"architecture": "x86_64"}, {"owner-id": ACCOUNT}):
            wanted = [{"Name": name, "Values": [value]} for name, value in filters.items()]
            self.assertEqual(find(Owners=["self"], Filters=wanted), [made], filters)
        self.assertEqual(find(Filters=[{"Name": "name", "Values": ["other"]}]), [])
        self.assertEqual(find(Owners=["222222222222"]), [])
        self.refused("InvalidAMIID.NotFound", self.ec2.describe_images, ImageIds=["ami-00000000000000000"])
        self.refused("InvalidAMIID.Malformed", self.ec2.describe_images, ImageIds=["x"])
        self.refused("InvalidAMIID.NotFound", client("ec2", HOME, "222222222222").describe_images, ImageIds=[made])


class Attributes(Check):
    def launch(self, image):
        return self.ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"]

    def test_launch_permissions_of_every_kind(self):
        made = self.image()
        rows = [{"UserId": "222222222222"}, {"OrganizationArn": ORGANIZATION}, {"OrganizationalUnitArn": UNIT}]
        self.ec2.modify_image_attribute(ImageId=made, LaunchPermission={"Add": rows + [{"UserId": "333333333333"}]})
        self.ec2.modify_image_attribute(ImageId=made, LaunchPermission={"Remove": [{"UserId": "333333333333"}]})
        self.assertEqual(self.launch(made), rows)
        plain = {"ImageId": made, "Attribute": "launchPermission"}
        self.ec2.modify_image_attribute(**plain, OperationType="add", OrganizationArns=[ORGANIZATION[:-1] + "1"],
                                        OrganizationalUnitArns=[UNIT], UserIds=["444444444444"])
        self.assertEqual(len(self.launch(made)), 5)
        self.ec2.modify_image_attribute(**plain, OperationType="remove", OrganizationalUnitArns=[UNIT])
        self.assertEqual(len(self.launch(made)), 4)
        other = client("ec2", HOME, "222222222222")
        row = other.describe_images(ExecutableUsers=["self"])["Images"][0]
        self.assertEqual((row["ImageId"], row.get("Tags", [])), (made, []))
        self.refused("AuthFailure", other.deregister_image, ImageId=made)
        for wrong in ({"UserId": "123"}, {"Group": "some"}, {"OrganizationArn": "o-kilntest00"},
                      {"OrganizationalUnitArn": ORGANIZATION}):
            self.refused("InvalidAMIAttributeItemValue", self.ec2.modify_image_attribute, ImageId=made,
                         LaunchPermission={"Add": [wrong]})

    def test_public_images_need_public_access(self):
        made, everybody = self.image(), {"LaunchPermission": {"Add": [{"Group": "all"}]}}
        modify = self.ec2.modify_image_attribute
        self.refused("OperationNotPermitted", modify, ImageId=made, **everybody)
        self.ec2.disable_image_block_public_access()
        self.assertEqual(self.ec2.get_image_block_public_access_state()["ImageBlockPublicAccessState"], "unblocked")
        modify(ImageId=made, **everybody)
        self.assertTrue(self.ec2.describe_images(ImageIds=[made])["Images"][0]["Public"])
        encrypted = self.image(self.snapshot({}, Encrypted=True), Name="encrypted")
        self.refused("InvalidParameter", modify, ImageId=encrypted, **everybody)
        self.refused("InvalidParameter", modify, ImageId=encrypted,
                     LaunchPermission={"Add": [{"UserId": "222222222222"}]})

    def test_pending_images_and_odd_requests_are_refused(self):
        made = self.image(wait=False)
        modify = self.ec2.modify_image_attribute
        one = {"LaunchPermission": {"Add": [{"UserId": "222222222222"}]}}
        self.refused("InvalidAMIID.Unavailable", modify, ImageId=made, **one)
        self.wait_image(self.ec2, made)
        self.refused("InvalidParameterCombination", modify, ImageId=made, Description={"Value": "x"}, **one)
        self.refused("InvalidParameterCombination", modify, ImageId=made)
        modify(ImageId=made, Description={"Value": "new"})
        modify(ImageId=made, ImdsSupport={"Value": "v2.0"})
        row = self.ec2.describe_images(ImageIds=[made])["Images"][0]
        self.assertEqual((row["Description"], row["ImdsSupport"]), ("new", "v2.0"))


class Deprecation(Check):
    def test_dates_have_limits_and_are_rounded(self):
        made, deprecate = self.image(), self.ec2.enable_image_deprecation
        at = (now() + datetime.timedelta(days=30)).replace(second=40, microsecond=0)
        deprecate(ImageId=made, DeprecateAt=at)
        shown = self.ec2.describe_images(ImageIds=[made])["Images"][0]["DeprecationTime"]
        self.assertEqual(shown, (at + datetime.timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:00.000Z"))
        self.refused("InvalidParameterValue", deprecate, ImageId=made, DeprecateAt=now() - datetime.timedelta(days=1))
        self.refused("InvalidParameterValue", deprecate, ImageId=made, DeprecateAt=now() + datetime.timedelta(days=3700))
        control("POST", f"place/{ACCOUNT}/{HOME}", {"images_private": False})
        self.ec2.modify_image_attribute(ImageId=made, LaunchPermission={"Add": [{"Group": "all"}]})
        self.refused("InvalidParameterValue", deprecate, ImageId=made, DeprecateAt=now() + datetime.timedelta(days=800))
        other = client("ec2", HOME, "222222222222")
        self.assertEqual(len(other.describe_images(Owners=[ACCOUNT])["Images"]), 1)
        self.settings(clock_offset=31 * 86400)
        self.assertEqual(len(other.describe_images(Owners=[ACCOUNT])["Images"]), 0)
        self.assertEqual(len(other.describe_images(Owners=[ACCOUNT], IncludeDeprecated=True)["Images"]), 1)
        self.assertEqual(len(self.ec2.describe_images(Owners=["self"])["Images"]), 1)


class Deregister(Check):
    def test_protection_with_a_cooldown(self):
        made = self.image()
        self.ec2.enable_image_deregistration_protection(ImageId=made)
        self.refused("OperationNotPermitted", self.ec2.deregister_image, ImageId=made)
        self.ec2.enable_image_deregistration_protection(ImageId=made, WithCooldown=True)
        row = self.ec2.describe_images(ImageIds=[made])["Images"][0]
        self.assertEqual(row["DeregistrationProtection"], "enabled-with-cooldown")
        self.ec2.disable_image_deregistration_protection(ImageId=made)
        self.refused("OperationNotPermitted", self.ec2.deregister_image, ImageId=made)
        self.settings(clock_offset=24 * 3600 + 1)
        self.ec2.deregister_image(ImageId=made)
        self.refused("InvalidAMIID.Unavailable", self.ec2.describe_images, ImageIds=[made])

    def test_snapshots_go_with_it_unless_shared(self):
        alone, shared = self.snapshot({}), self.snapshot({})
        first, second = self.image(alone, Name="first"), self.image(shared, Name="second")
        third = self.image(shared, Name="third")
        remove = lambda image: [(r["SnapshotId"], r["ReturnCode"]) for r in self.ec2.deregister_image(  # noqa: E731
            ImageId=image, DeleteAssociatedSnapshots=True)["DeleteSnapshotResults"]]
        self.assertEqual(remove(first), [(alone, "success")])
        self.assertEqual(remove(second), [(shared, "skipped")])
        self.assertEqual(remove(third), [(shared, "success")])
        self.assertEqual(self.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"], [])
        self.image(Name="first")


class Instances(Check):
    def test_they_name_their_image(self):
        made = self.image()
        run = self.ec2.run_instances(ImageId=made, MinCount=2, MaxCount=2)["Instances"]
        self.ec2.terminate_instances(InstanceIds=[run[0]["InstanceId"]])
        wanted = [{"Name": "image-id", "Values": [made]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found = self.ec2.describe_instances(Filters=wanted)["Reservations"]
        self.assertEqual([i["InstanceId"] for r in found for i in r["Instances"]], [run[1]["InstanceId"]])
        self.refused("InvalidAMIID.NotFound", self.ec2.run_instances, ImageId="ami-00000000000000000", MinCount=1,
                     MaxCount=1)


class Copy(Check):
    def copy(self, source, **parameters):
        parameters = {"Name": "kiln", "SourceImageId": source, "SourceRegion": HOME, **parameters}
        return client("ec2", FAR).copy_image(**parameters)["ImageId"]

    def test_a_copy_is_the_same_image(self):
        far = client("ec2", FAR)
        source = self.image(BootMode="uefi", TpmSupport="v2.0", ImdsSupport="v2.0",
                            TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}])
        tags = [{"ResourceType": kind, "Tags": [{"Key": kind, "Value": "x"}]} for kind in ("image", "snapshot")]
        made = self.copy(source, CopyImageTags=True, TagSpecifications=tags)
        row = self.wait_image(far, made)
        self.assertEqual(row["Tags"], [{"Key": "a", "Value": "b"}, {"Key": "image", "Value": "x"}])
        self.assertEqual((row["BootMode"], row["TpmSupport"], row["ImdsSupport"], row["SourceImageId"]),
                         ("uefi", "v2.0", "v2.0", source))
        snapshot = row["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
        self.assertEqual(self.read(snapshot, FAR), {0: block(0)})
        shown = far.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]
        self.assertEqual(shown["Tags"], [{"Key": "snapshot", "Value": "x"}])

    def test_tokens_and_duplicates(self):
        source = self.image()
        first = self.copy(source, ClientToken="t")
        self.assertEqual(self.copy(source, ClientToken="t"), first)
        self.refused("IdempotentParameterMismatch", self.copy, source=source, ClientToken="t", Name="other")
        self.assertNotEqual(self.copy(source), first)

    def test_a_key_that_cannot_be_used_fails_it_later(self):
        far, source = client("ec2", FAR), self.image()
        made = self.copy(source, Encrypted=True, KmsKeyId="alias/nothing")
        self.assertEqual(self.wait_image(far, made)["State"], "failed")
        self.refused("InvalidAMIID.NotFound", self.copy, source="ami-00000000000000000")


class DryRun(Check):
    def test_tells_what_would_happen(self):
        calls = {
            "register_image": {"Name": "kiln"}, "copy_snapshot": {"SourceSnapshotId": "snap-0", "SourceRegion": FAR},
            "copy_image": {"Name": "kiln", "SourceImageId": "ami-0", "SourceRegion": FAR},
            "modify_image_attribute": {"ImageId": "ami-0"}, "modify_snapshot_attribute": {"SnapshotId": "snap-0"},
            "deregister_image": {"ImageId": "ami-0"}, "delete_snapshot": {"SnapshotId": "snap-0"},
            "enable_image_deprecation": {"ImageId": "ami-0", "DeprecateAt": now()}, "import_snapshot": {},
            "create_tags": {"Resources": ["ami-0"], "Tags": [{"Key": "a", "Value": "b"}]},
            "enable_image_deregistration_protection": {"ImageId": "ami-0"}, "describe_images": {},
        }
        control("POST", "faults", {"operation": "CopyImage", "deny": True})
        for name, parameters in calls.items():
            code = "UnauthorizedOperation" if name == "copy_image" else "DryRunOperation"
            self.refused(code, getattr(self.ec2, name), DryRun=True, **parameters)
        self.assertEqual(control("GET", "state")["places"], [])
