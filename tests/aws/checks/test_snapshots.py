"""EC2's calls on snapshots: sharing, copies, deletion, settings of the account."""

from .kit import HOME, Check, block, client

FAR = "us-east-1"


class Sharing(Check):
    def test_permissions_are_kept_and_shown(self):
        made = self.snapshot({0: block(0)})
        other = client("ec2", HOME, "222222222222")
        self.refused("InvalidSnapshot.NotFound", other.describe_snapshots, SnapshotIds=[made])
        self.ec2.modify_snapshot_attribute(SnapshotId=made, Attribute="createVolumePermission", OperationType="add",
                                           UserIds=["222222222222", "333333333333"])
        shared = self.ec2.describe_snapshot_attribute(SnapshotId=made, Attribute="createVolumePermission")
        self.assertEqual(shared["CreateVolumePermissions"], [{"UserId": "222222222222"}, {"UserId": "333333333333"}])
        self.assertEqual(other.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]["OwnerId"], "123456789012")
        self.assertEqual(self.read(made, account="222222222222"), {0: block(0)})
        self.ec2.modify_snapshot_attribute(SnapshotId=made, CreateVolumePermission={"Remove": [{"UserId": "222222222222"}]})
        self.refused("InvalidSnapshot.NotFound", other.describe_snapshots, SnapshotIds=[made])

    def test_encrypted_ones_are_never_public(self):
        key = client("kms").create_key()["KeyMetadata"]["Arn"]
        everybody = {"CreateVolumePermission": {"Add": [{"Group": "all"}]}}
        one = {"CreateVolumePermission": {"Add": [{"UserId": "222222222222"}]}}
        share = self.ec2.modify_snapshot_attribute
        under_default = self.snapshot({}, Encrypted=True)
        self.refused("OperationNotPermitted", share, SnapshotId=under_default, **one)
        under_own = self.snapshot({}, Encrypted=True, KmsKeyArn=key)
        self.refused("OperationNotPermitted", share, SnapshotId=under_own, **everybody)
        share(SnapshotId=under_own, **one)
        plain = self.snapshot({})
        share(SnapshotId=plain, **everybody)
        self.ec2.enable_snapshot_block_public_access(State="block-new-sharing")
        self.refused("OperationNotPermitted", share, SnapshotId=self.snapshot({}), **everybody)
        self.refused("InvalidParameterValue", share, SnapshotId=plain,
                     CreateVolumePermission={"Add": [{"Group": "some"}]})

    def test_block_public_access_has_states(self):
        state = lambda: self.ec2.get_snapshot_block_public_access_state()["State"]  # noqa: E731
        self.assertEqual(state(), "unblocked")
        self.ec2.enable_snapshot_block_public_access(State="block-all-sharing")
        self.assertEqual(state(), "block-all-sharing")
        self.ec2.disable_snapshot_block_public_access()
        self.assertEqual(state(), "unblocked")


class Copies(Check):
    def copy(self, source, region=FAR, **parameters):
        return client("ec2", region).copy_snapshot(SourceSnapshotId=source, SourceRegion=HOME, **parameters)["SnapshotId"]

    def test_a_copy_has_blocks_tags_and_takes_its_time(self):
        source, far = self.snapshot({0: block(0), 9: block(9)}), client("ec2", FAR)
        tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]
        made = self.copy(source, TagSpecifications=tags, Description="d")
        row = far.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]
        self.assertEqual((row["State"], row["Description"], row["Tags"]), ("pending", "d", [{"Key": "a", "Value": "b"}]))
        self.assertEqual(self.wait(far, made), "completed")
        self.assertEqual(self.read(made, FAR), {0: block(0), 9: block(9)})
        self.refused("InvalidSnapshot.NotFound", self.copy, source="snap-00000000000000000")
        pending = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        self.refused("InvalidSnapshot.InvalidState", self.copy, source=pending)

    def test_encryption_of_copies(self):
        source, far = self.snapshot({0: block(0)}), client("ec2", FAR)
        key = client("kms", FAR).create_key()["KeyMetadata"]["Arn"]
        self.refused("InvalidParameterDependency", self.copy, source=source, KmsKeyId=key)
        made = self.copy(source, Encrypted=True, KmsKeyId=key)
        self.assertEqual(self.wait(far, made), "completed")
        self.assertEqual(far.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]["KmsKeyId"], key)
        # A key of another region is found out later, as in AWS.
        here = client("kms").create_key()["KeyMetadata"]["Arn"]
        wrong = self.copy(source, Encrypted=True, KmsKeyId=here)
        self.assertEqual(self.wait(far, wrong), "error")
        # boto3 signs the URL that an encrypted source needs.
        encrypted = self.snapshot({0: block(1)}, Encrypted=True)
        again = self.copy(encrypted)
        self.assertTrue(far.describe_snapshots(SnapshotIds=[again])["Snapshots"][0]["Encrypted"])
        self.assertEqual(self.wait(far, again), "completed")

    def test_encrypted_sources_need_a_signed_url(self):
        encrypted, far = self.snapshot({0: block(1)}, Encrypted=True), client("ec2", FAR)

        def change(url):
            def changed(params, **_):
                params["body"].pop("PresignedUrl", None)
                if url:
                    params["body"]["PresignedUrl"] = url

            far.meta.events.register_last("before-call.ec2.CopySnapshot", changed)
            self.addCleanup(far.meta.events.unregister, "before-call.ec2.CopySnapshot", changed)

        change(None)
        self.refused("MissingParameter", self.copy, source=encrypted)
        change(f"https://ec2.{HOME}.amazonaws.com/?Action=CopySnapshot&SourceSnapshotId={encrypted}")
        self.assertEqual(self.wait(far, self.copy(encrypted)), "error")

    def test_only_so_many_at_once(self):
        self.settings(copies_at_once=3)
        source = self.snapshot({})
        made = [self.copy(source) for _ in range(3)]
        self.refused("ResourceLimitExceeded", self.copy, source=source)
        self.wait(client("ec2", FAR), made[0])
        self.copy(source)


class Deletion(Check):
    def test_not_while_an_image_uses_it(self):
        made = self.snapshot({0: block(0)})
        image = self.image(made)
        self.refused("InvalidSnapshot.InUse", self.ec2.delete_snapshot, SnapshotId=made)
        self.ec2.deregister_image(ImageId=image)
        self.ec2.delete_snapshot(SnapshotId=made)
        self.refused("InvalidSnapshot.NotFound", self.ec2.delete_snapshot, SnapshotId=made)

    def test_a_pending_one_can_go_and_its_token_still_names_it(self):
        made = self.ebs.start_snapshot(VolumeSize=1, ClientToken="t")["SnapshotId"]
        self.ec2.delete_snapshot(SnapshotId=made)
        self.assertEqual(self.ebs.start_snapshot(VolumeSize=1, ClientToken="t")["SnapshotId"], made)
        self.refused("ResourceNotFoundException", self.put, snapshot=made, index=0, data=block(0))


class Tags(Check):
    def test_they_find_things_and_have_rules(self):
        made = self.snapshot({}, Tags=[{"Key": "kiln:system", "Value": "server"}])
        found = lambda value: [s["SnapshotId"] for s in self.ec2.describe_snapshots(  # noqa: E731
            OwnerIds=["self"], Filters=[{"Name": "tag:kiln:system", "Values": [value]}])["Snapshots"]]
        self.assertEqual((found("server"), found("serv*"), found("other")), ([made], [made], []))
        self.ec2.create_tags(Resources=[made], Tags=[{"Key": "kiln:system", "Value": "other"}])
        self.assertEqual(found("other"), [made])
        self.ec2.delete_tags(Resources=[made], Tags=[{"Key": "kiln:system"}])
        self.assertEqual(found("other"), [])
        self.refused("InvalidParameterValue", self.ec2.create_tags, Resources=[made], Tags=[{"Key": "aws:x", "Value": "y"}])
        self.refused("InvalidParameterValue", self.ec2.create_tags, Resources=[made],
                     Tags=[{"Key": "x", "Value": "y" * 256}])
        self.refused("InvalidParameterValue", self.ec2.describe_snapshots, Filters=[{"Name": "wrong", "Values": ["x"]}])


class Regions(Check):
    def test_opting_in(self):
        rows = {r["RegionName"]: r["OptInStatus"] for r in self.ec2.describe_regions(AllRegions=True)["Regions"]}
        self.assertEqual((rows[HOME], rows["eu-south-1"]), ("opt-in-not-required", "not-opted-in"))
        self.assertNotIn("eu-south-1", [r["RegionName"] for r in self.ec2.describe_regions()["Regions"]])
        self.refused("AuthFailure", client("ec2", "eu-south-1").describe_regions)
        self.refused("UnrecognizedClientException", client("ebs", "eu-south-1").start_snapshot, VolumeSize=1)
