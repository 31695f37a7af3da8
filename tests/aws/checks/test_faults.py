"""Faults, rates, the request log, and how the process ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
from pathlib import Path

import boto3
import botocore.exceptions

from aws import wire

from .kit import BLOCK, HOME, Check, b64, block, client, client_with, control


class Rules(Check):
    def fault(self, **rule):
        control("POST", "faults", rule)

    def test_which_calls_they_meet(self):
        self.fault(operation="StartSnapshot", region=HOME, throttle=True, **{"from": 2}, times=2)
        start = self.ebs.start_snapshot
        start(VolumeSize=1)
        for _ in range(2):
            self.refused("RequestThrottledException", start, VolumeSize=1)
        client("ebs", "us-east-1").start_snapshot(VolumeSize=1)
        start(VolumeSize=1)
        rule = control("GET", "faults")[0]
        self.assertEqual((rule["seen"], rule["met"]), (4, 2))

    def test_what_they_do(self):
        codes = {
            "RequestLimitExceeded": {"throttle": True}, "InternalError": {"internal": 500}, "Unavailable": {"internal": 503},
            "UnauthorizedOperation": {"deny": True}, "RequestExpired": {"expire": True},
            "Odd": {"error": "Odd", "status": 418},
        }
        for code, action in codes.items():
            self.fault(service="ec2", times=1, **action)
            self.refused(code, self.ec2.describe_images)
        self.fault(service="ebs", deny=True, times=1)
        self.refused("AccessDeniedException", self.ebs.start_snapshot, VolumeSize=1)
        self.ec2.describe_images(Owners=["self"])

    def test_connections_break(self):
        self.fault(operation="DescribeImages", reset=True, times=1)
        with self.assertRaises(botocore.exceptions.HTTPClientError):
            self.ec2.describe_images()
        self.fault(operation="DescribeImages", hang=1, times=1)
        before = time.monotonic()
        with self.assertRaises(botocore.exceptions.HTTPClientError):
            self.ec2.describe_images()
        self.assertGreater(time.monotonic() - before, 0.9)
        self.settings(regions_down=["us-east-1"])
        with self.assertRaises(botocore.exceptions.HTTPClientError):
            client("ec2", "us-east-1").describe_images()
        self.ec2.describe_images(Owners=["self"])

    def test_an_answer_is_lost_but_not_the_effect(self):
        snapshot = self.snapshot({})
        self.fault(operation="RegisterImage", reset=True, after=True, times=1)
        with self.assertRaises(botocore.exceptions.HTTPClientError):
            self.image(snapshot)
        self.refused("InvalidAMIName.Duplicate", self.image, snapshot=snapshot)

    def test_a_halt_keeps_every_call_back(self):
        self.fault(mutating=True, halt=True, **{"from": 3})
        errors = []

        def work():
            try:
                made = self.ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
                for index in range(9):
                    self.put(made, index, block(index))
            except botocore.exceptions.HTTPClientError as error:
                errors.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        self.assertTrue(control("GET", "halted?seconds=10")["halted"])
        other = client_with("ec2", HOME, ("test", "test", None))
        late = threading.Thread(target=lambda: self.assertRaises(
            botocore.exceptions.HTTPClientError, other.describe_images))
        late.start()
        time.sleep(0.3)
        self.assertTrue(worker.is_alive() and late.is_alive())
        control("DELETE", "faults")
        worker.join(10)
        late.join(10)
        self.assertEqual(len(errors), 1)
        state = control("GET", "state")["places"][0]
        self.assertEqual([s["written"] for s in state["snapshots"]], [1])
        self.assertFalse(control("GET", "halted?seconds=0")["halted"])

    def test_rules_that_make_no_sense_are_refused(self):
        for wrong in ({"operation": "X"}, {"reset": True, "hang": 1}, {"oops": 1, "reset": True}):
            with self.assertRaises(urllib.error.HTTPError):
                self.fault(**wrong)


class Rates(Check):
    def test_the_real_rates_throttle(self):
        self.settings(rates=True)
        codes = []
        for _ in range(15):
            try:
                self.ebs.start_snapshot(VolumeSize=1)
            except botocore.exceptions.ClientError as error:
                codes.append(error.response["Error"]["Code"])
        self.assertIn("RequestThrottledException", codes)
        self.settings(rate_overrides={"DescribeImages": 1})
        self.ec2.describe_images(Owners=["self"])
        self.refused("RequestLimitExceeded", self.ec2.describe_images, Owners=["self"])


class Log(Check):
    def test_requests_are_in_the_log_and_valid(self):
        made = self.image(TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "a", "Value": "b"}]}])
        client("ssm").put_parameter(Name="/a", Type="String", DataType="aws:ec2:image", Value=made)
        s3 = client("s3", "us-east-1")
        s3.create_bucket(Bucket="kiln-log")
        s3.put_object(Bucket="kiln-log", Key="k", Body=b"abc", ChecksumAlgorithm="SHA256", Metadata={"a": "b"})
        entries = control("GET", "log")
        self.assertEqual([p for entry in entries for p in wire.problems(entry)], [])
        register, = [e for e in entries if e["operation"] == "RegisterImage"]
        self.assertEqual(register["parameters"]["BlockDeviceMappings"][0]["Ebs"]["VolumeType"], "gp3")
        self.assertEqual((register["region"], register["status"], register["access_key"]), (HOME, 200, "123456789012"))
        put, = control("GET", "log?operation=PutSnapshotBlock")
        self.assertTrue(put["parameters"]["BlockData"].startswith("sha256:"))
        self.assertEqual(control("GET", "count")["ebs:PutSnapshotBlock"], 1)

    def test_what_the_models_do_not_allow_is_found(self):
        good = {"service": "ec2", "operation": "RegisterImage", "parameters": {"Name": "abc"}}
        self.assertEqual(wire.problems(good), [])
        wrong = [
            {"parameters": {}}, {"parameters": {"Name": 3}}, {"parameters": {"Name": "abc", "BootMode": "bios"}},
            {"unknown": ["Nmae"]}, {"wrong": ["EnaSupport: 'yes'"]}, {"operation": None}, {"operation": "RegisterImages"},
            {"service": "ebs", "operation": "StartSnapshot", "parameters": {"VolumeSize": 0}},
            {"service": "ssm", "operation": "PutParameter", "parameters": {"Name": "", "Value": "x"}},
        ]
        for change in wrong:
            with self.subTest(change):
                self.assertEqual(len(wire.problems({**good, **change})), 1, wire.problems({**good, **change}))

    def test_members_that_were_sent(self):
        value = {"Name": "x", "BlockDeviceMappings": [{"Ebs": {"VolumeSize": 1}}], "Tags": []}
        self.assertEqual(sorted(wire.paths(value)), ["BlockDeviceMappings[].Ebs.VolumeSize", "Name", "Tags[]"])


class Process(unittest.TestCase):
    def start(self, *arguments, **options):
        process = subprocess.Popen([sys.executable, "-m", "aws.server", "--port", "0", *arguments],
                                   stdout=subprocess.PIPE, text=True, **options)
        self.addCleanup(lambda: (process.terminate(), process.wait(), process.stdout.close(),
                                 process.stdin and process.stdin.close()))
        return process, process.stdout.readline().strip()

    def client_of(self, url, service):
        return boto3.client(service, endpoint_url=url, region_name=HOME, aws_access_key_id="t", aws_secret_access_key="t")

    def test_it_is_ready_soon(self):
        before = time.monotonic()
        _, url = self.start()
        self.assertRegex(url, r"http://127\.0\.0\.1:\d+")
        self.assertLess(time.monotonic() - before, 3)

    def test_it_ends_with_a_closed_pipe_and_with_signals(self):
        process, _ = self.start("--with-parent", stdin=subprocess.PIPE)
        process.stdin.close()
        self.assertEqual(process.wait(5), 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            process, _ = self.start()
            process.send_signal(number)
            self.assertEqual(process.wait(5), 0)

    def test_it_ends_with_its_parent(self):
        script = ("import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-m', 'aws.server', '--port', '0', "
                  "'--with-parent'], stdin=subprocess.DEVNULL); print(p.pid, flush=True); time.sleep(60)")
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        parent.stdout.readline()
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for _ in range(50):
            if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
                return
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        self.fail("it outlived its parent")

    def test_state_is_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            process, url = self.start("--state", folder)
            ebs = self.client_of(url, "ebs")
            made = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
            ebs.put_snapshot_block(SnapshotId=made, BlockIndex=3, BlockData=block(3), DataLength=BLOCK,
                                   Checksum=b64(hashlib.sha256(block(3)).digest()), ChecksumAlgorithm="SHA256")
            ebs.complete_snapshot(SnapshotId=made, ChangedBlocksCount=1)
            process.terminate()
            process.wait(5)
            process, url = self.start("--state", folder)
            ec2, ebs = self.client_of(url, "ec2"), self.client_of(url, "ebs")
            while ec2.describe_snapshots(SnapshotIds=[made])["Snapshots"][0]["State"] == "pending":
                pass
            token = ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"][0]["BlockToken"]
            got = ebs.get_snapshot_block(SnapshotId=made, BlockIndex=3, BlockToken=token)["BlockData"].read()
            self.assertEqual(got, block(3))
            process.terminate()
            process.wait(5)

    def test_nothing_stays_behind(self):
        with tempfile.TemporaryDirectory() as folder:
            process, _ = self.start(env={**os.environ, "TMPDIR": folder})
            self.assertEqual(len(os.listdir(folder)), 1)
            process.terminate()
            process.wait(5)
            self.assertEqual(os.listdir(folder), [])

    def test_what_a_killed_one_left_is_removed_by_the_next(self):
        with tempfile.TemporaryDirectory() as folder:
            options = {"env": {**os.environ, "TMPDIR": folder}}
            first, _ = self.start(**options)
            living, url = self.start(**options)
            self.assertEqual(len(os.listdir(folder)), 2)
            first.kill()
            first.wait()
            last, _ = self.start(**options)
            self.assertEqual(len(os.listdir(folder)), 2)
            self.client_of(url, "ec2").describe_regions()
            for process in (living, last):
                process.terminate()
                process.wait(5)
            self.assertEqual(os.listdir(folder), [])

    def test_the_log_goes_to_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            process, url = self.start("--log", f"{folder}/log")
            self.client_of(url, "ec2").describe_regions()
            line = json.loads(Path(f"{folder}/log").read_text().splitlines()[0])
            self.assertEqual(line["operation"], "DescribeRegions")
            process.terminate()
            process.wait(5)
