"""EBS direct: what AWS refuses is refused, and what was written is what is read."""

from .kit import BLOCK, HOME, Check, block, client, control


class Start(Check):
    def test_answers_with_the_real_block_size(self):
        made = self.ebs.start_snapshot(VolumeSize=3, Tags=[{"Key": "a", "Value": "b"}], Description="d")
        self.assertEqual((made["BlockSize"], made["VolumeSize"], made["Status"]), (BLOCK, 3, "pending"))
        self.assertEqual(made["Tags"], [{"Key": "a", "Value": "b"}])
        self.assertEqual(self.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"][0]["State"], "pending")

    def test_a_client_token_gives_the_same_snapshot(self):
        first = self.ebs.start_snapshot(VolumeSize=1, ClientToken="one")["SnapshotId"]
        self.assertEqual(self.ebs.start_snapshot(VolumeSize=1, ClientToken="one")["SnapshotId"], first)
        self.assertNotEqual(self.ebs.start_snapshot(VolumeSize=1, ClientToken="two")["SnapshotId"], first)
        self.refused("ConflictException", self.ebs.start_snapshot, VolumeSize=2, ClientToken="one")
        self.refused("ConflictException", self.ebs.start_snapshot, VolumeSize=1, ClientToken="one", Timeout=120)
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ClientToken="x" * 65)

    def test_sizes_and_timeouts_have_limits(self):
        for wrong in ({"VolumeSize": 65537}, {"Timeout": 4321}, {"Description": "x" * 256},
                      {"Tags": [{"Key": "aws:x", "Value": ""}]}, {"Tags": [{"Key": "a"}, {"Key": "a"}]}):
            with self.subTest(wrong):
                self.refused("ValidationException", self.ebs.start_snapshot, **{"VolumeSize": 1, **wrong})

    def test_an_unfinished_snapshot_fails_after_its_timeout(self):
        made = self.ebs.start_snapshot(VolumeSize=1, Timeout=10)["SnapshotId"]
        self.put(made, 0, block(0))
        self.settings(clock_offset=601)
        self.refused("ValidationException", self.put, snapshot=made, index=1, data=block(1))
        self.assertEqual(self.wait(self.ec2, made), "error")

    def test_parents_are_checked(self):
        pending = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=pending)
        self.refused("ResourceNotFoundException", self.ebs.start_snapshot, VolumeSize=1,
                     ParentSnapshotId="snap-00000000000000000")
        parent = self.snapshot({0: block(0)})
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent, Encrypted=True)
        large, arn = self.snapshot({}, VolumeSize=2), client("kms").create_key()["KeyMetadata"]["Arn"]
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=large)
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent, KmsKeyArn=arn)
        encrypted = self.snapshot({}, Encrypted=True)
        child = self.ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=encrypted)
        self.assertEqual(child["SseType"], "sse-kms")
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=encrypted,
                     KmsKeyArn=arn)
        other = client("ebs", HOME, "222222222222")
        self.refused("AccessDeniedException", other.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
        self.ec2.modify_snapshot_attribute(SnapshotId=parent, CreateVolumePermission={"Add": [{"UserId": "222222222222"}]})
        self.refused("ValidationException", other.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)
        self.ec2.enable_ebs_encryption_by_default()
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)

    def test_pending_snapshots_are_limited(self):
        self.settings(pending_snapshots=2)
        for _ in range(2):
            self.ebs.start_snapshot(VolumeSize=1)
        self.refused("ConcurrentLimitExceededException", self.ebs.start_snapshot, VolumeSize=1)

    def test_encryption_takes_the_right_key(self):
        kms = client("kms")
        key = kms.create_key(Description="mine")["KeyMetadata"]
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, KmsKeyArn=key["Arn"])
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, Encrypted=True, KmsKeyArn=key["KeyId"])
        made = self.ebs.start_snapshot(VolumeSize=1, Encrypted=True, KmsKeyArn=key["Arn"])
        self.assertEqual(made["KmsKeyArn"], key["Arn"])
        kms.disable_key(KeyId=key["KeyId"])
        self.refused("ValidationException", self.ebs.start_snapshot, VolumeSize=1, Encrypted=True, KmsKeyArn=key["Arn"])
        self.ec2.enable_ebs_encryption_by_default()
        made = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        row = self.ec2.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]
        self.assertTrue(row["Encrypted"])
        managed = kms.describe_key(KeyId="alias/aws/ebs")["KeyMetadata"]
        self.assertEqual((row["KmsKeyId"], managed["KeyManager"]), (managed["Arn"], "AWS"))

    def test_a_snapshot_is_not_found_for_a_while(self):
        self.settings(snapshot_unseen=3)
        made = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        for _ in range(3):
            self.refused("ResourceNotFoundException", self.put, snapshot=made, index=0, data=block(0))
        self.put(made, 0, block(0))


class Put(Check):
    def setUp(self):
        super().setUp()
        self.made = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]

    def test_wrong_blocks_are_refused(self):
        good = block(1)
        wrong = [
            {"data": good[:-1]}, {"data": good + b"x"}, {"data": good, "DataLength": 512},
            {"data": good, "Checksum": "A" * 43 + "="}, {"data": good, "index": 2048}, {"data": good, "Progress": 101},
            {"data": good, "ChecksumAlgorithm": "SHA1"},
        ]
        for parameters in wrong:
            with self.subTest({k: v for k, v in parameters.items() if k != "data"}):
                self.refused("ValidationException", self.put, snapshot=self.made, **{"index": 0, **parameters})
        self.refused("ResourceNotFoundException", self.put, snapshot="snap-00000000000000000", index=0, data=good)
        self.refused("AccessDeniedException", self.put, snapshot=self.made, index=0, data=good,
                     ebs=client("ebs", HOME, "222222222222"))
        # Whom it is shared with may read it later, not write.
        self.ec2.modify_snapshot_attribute(SnapshotId=self.made,
                                           CreateVolumePermission={"Add": [{"UserId": "222222222222"}]})
        self.refused("AccessDeniedException", self.put, snapshot=self.made, index=0, data=good,
                     ebs=client("ebs", HOME, "222222222222"))

    def test_a_block_can_be_written_again(self):
        for _ in range(2):
            self.put(self.made, 2047, block(1))
        self.put(self.made, 2047, block(2))
        self.complete(self.made, {2047: block(2)})
        self.wait(self.ec2, self.made)
        self.assertEqual(self.read(self.made), {2047: block(2)})

    def test_nothing_is_written_after_completion(self):
        self.put(self.made, 0, block(0))
        self.complete(self.made, {0: block(0)})
        self.refused("ValidationException", self.put, snapshot=self.made, index=1, data=block(1))


class Complete(Check):
    def test_count_and_checksum_must_be_right_and_it_counts_once(self):
        made, blocks = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"], {i: block(i) for i in (5, 0, 3)}
        for index, data in blocks.items():
            self.put(made, index, data)
        refuse = lambda **changed: self.refused(  # noqa: E731
            "ValidationException", self.complete, snapshot=made, blocks=blocks, **changed)
        refuse(ChangedBlocksCount=2)
        refuse(ChangedBlocksCount=4)
        refuse(Checksum="A" * 43 + "=")
        refuse(ChecksumAggregationMethod="TREE")
        self.refused("ValidationException", self.ebs.complete_snapshot, SnapshotId=made, ChangedBlocksCount=3,
                     ChecksumAlgorithm="SHA256")
        self.complete(made, blocks)
        refuse()
        states = [self.ec2.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]["State"] for _ in range(4)]
        self.assertEqual(states, ["pending", "pending", "completed", "completed"])
        refuse()


class Read(Check):
    def test_a_pending_snapshot_is_not_readable(self):
        made = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        self.refused("ValidationException", self.ebs.list_snapshot_blocks, SnapshotId=made)

    def test_blocks_of_parents_are_inherited(self):
        parent = self.snapshot({0: block(0), 1: block(1), 7: block(7)})
        child = self.snapshot({1: bytes(BLOCK), 9: block(9)}, ParentSnapshotId=parent)
        whole = {0: block(0), 1: bytes(BLOCK), 7: block(7), 9: block(9)}
        self.assertEqual(self.read(child), whole)
        self.ec2.delete_snapshot(SnapshotId=parent)
        self.assertEqual(self.read(child), whole)

    def test_changed_blocks(self):
        parent = self.snapshot({0: block(0), 1: block(1)})
        child = self.snapshot({1: block(11), 9: block(9)}, ParentSnapshotId=parent)
        rows = self.ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=child)["ChangedBlocks"]
        self.assertEqual([(r["BlockIndex"], "FirstBlockToken" in r, "SecondBlockToken" in r) for r in rows],
                         [(1, True, True), (9, False, True)])
        rows = self.ebs.list_changed_blocks(SecondSnapshotId=child)["ChangedBlocks"]
        self.assertEqual([r["BlockIndex"] for r in rows], [0, 1, 9])
        self.refused("ValidationException", self.ebs.list_changed_blocks, FirstSnapshotId=self.snapshot({}),
                     SecondSnapshotId=child)

    def test_lists_come_in_pages(self):
        blocks = {i: block(i % 3) for i in range(230)}
        made = self.snapshot(blocks)
        page = self.ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100)
        self.assertEqual((len(page["Blocks"]), page["VolumeSize"], page["BlockSize"]), (100, 1, BLOCK))
        self.assertEqual(self.read(made), blocks)
        page = self.ebs.list_snapshot_blocks(SnapshotId=made, StartingBlockIndex=229)
        self.assertEqual([b["BlockIndex"] for b in page["Blocks"]], [229])
        self.refused("ValidationException", self.ebs.list_snapshot_blocks, SnapshotId=made, NextToken="!")
        self.refused("ValidationException", self.ebs.list_snapshot_blocks, SnapshotId=made, MaxResults=10001)

    def test_tokens_are_of_one_block_and_expire(self):
        made = self.snapshot({0: block(0), 1: block(1)})
        tokens = [b["BlockToken"] for b in self.ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]]
        get = self.ebs.get_snapshot_block
        self.refused("ValidationException", get, SnapshotId=made, BlockIndex=0, BlockToken=tokens[1])
        self.refused("ValidationException", get, SnapshotId=made, BlockIndex=0, BlockToken="AAAA")
        self.settings(clock_offset=8 * 86400)
        self.refused("ValidationException", get, SnapshotId=made, BlockIndex=0, BlockToken=tokens[0])

    def test_holes_of_encrypted_volumes_are_noise(self):
        made = self.snapshot({0: block(0), 1: bytes(BLOCK)})
        plain = control("GET", f"volume/{HOME}/{made}")
        self.assertEqual(len(plain), 1 << 30)
        self.assertEqual(plain[BLOCK:3 * BLOCK], bytes(2 * BLOCK))
        del plain
        noisy = control("GET", f"volume/{HOME}/{made}?encrypted=1")
        self.assertEqual(noisy[:2 * BLOCK], block(0) + bytes(BLOCK))
        self.assertNotIn(bytes(64), noisy[2 * BLOCK:4 * BLOCK])
