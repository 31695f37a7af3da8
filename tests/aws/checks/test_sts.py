"""STS: MFA codes that count once, roles with conditions, sessions that end, signatures that are checked."""

import json
import os
import urllib.request

import boto3
import botocore.session

from .kit import ACCOUNT, HOME, Check, client, client_with, control, server

ROLE = "arn:aws:iam::222222222222:role/publisher"
SERIAL = f"arn:aws:iam::{ACCOUNT}:mfa/kiln"
SECRET = "JBSWY3DPEHPK3PXP"


class Case(Check):
    sts = property(lambda self: client("sts", "us-east-1"))

    def assume(self, **parameters):
        return self.sts.assume_role(**{"RoleArn": ROLE, "RoleSessionName": "kiln", **parameters})["Credentials"]

    def role(self, **facts):
        control("POST", "roles", {"arn": ROLE, **facts})

    def device(self):
        control("POST", "mfa", {"serial": SERIAL, "secret": SECRET, "account": ACCOUNT})

    def code(self, steps=0):
        return control("GET", f"mfa?serial={SERIAL}&steps={steps}")["code"]

    def using(self, credentials, service="ec2", region=HOME):
        return client_with(service, region, (credentials["AccessKeyId"], credentials["SecretAccessKey"],
                                             credentials["SessionToken"]))


class Mfa(Case):
    def test_a_code_counts_once(self):
        self.device()
        self.role(mfa=True)
        self.refused("AccessDenied", self.assume)
        code = self.code()
        self.assume(SerialNumber=SERIAL, TokenCode=code)
        message = self.refused("AccessDenied", self.assume, SerialNumber=SERIAL, TokenCode=code)
        self.assertIn("MultiFactorAuthentication failed with invalid MFA one time pass code.", message)
        self.refused("AccessDenied", self.sts.get_session_token, SerialNumber=SERIAL, TokenCode=code)
        self.assume(SerialNumber=SERIAL, TokenCode=self.code(1))

    def test_the_next_step_has_a_new_code(self):
        self.device()
        self.assume(SerialNumber=SERIAL, TokenCode=self.code())
        self.settings(clock_offset=30)
        self.assume(SerialNumber=SERIAL, TokenCode=self.code())
        self.refused("AccessDenied", self.assume, SerialNumber=SERIAL, TokenCode=self.code(-3))
        self.refused("AccessDenied", self.assume, SerialNumber=SERIAL, TokenCode=self.code(3))

    def test_wrong_codes_and_devices(self):
        self.device()
        wrong = f"{(int(self.code()) + 1) % 1000000:06d}"
        self.refused("AccessDenied", self.assume, SerialNumber=SERIAL, TokenCode=wrong)
        self.refused("AccessDenied", self.assume, SerialNumber=SERIAL + "2", TokenCode=self.code())
        self.refused("ValidationError", self.assume, SerialNumber=SERIAL, TokenCode="abcdef")
        self.refused("ValidationError", self.assume, SerialNumber=SERIAL)

    def test_a_session_with_mfa_opens_roles(self):
        self.device()
        self.role(mfa=True)
        plain = self.sts.get_session_token()["Credentials"]
        self.refused("AccessDenied", self.using(plain, "sts").assume_role, RoleArn=ROLE, RoleSessionName="kiln")
        session = self.sts.get_session_token(SerialNumber=SERIAL, TokenCode=self.code())["Credentials"]
        self.using(session, "sts").assume_role(RoleArn=ROLE, RoleSessionName="kiln")


class Roles(Case):
    def test_a_role_works_in_its_own_account(self):
        credentials = self.assume()
        who = self.using(credentials, "sts").get_caller_identity()
        self.assertEqual((who["Account"], who["Arn"]),
                         ("222222222222", "arn:aws:sts::222222222222:assumed-role/publisher/kiln"))
        self.using(credentials, "ebs").start_snapshot(VolumeSize=1)
        self.assertEqual(self.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"], [])
        self.assertEqual(len(self.using(credentials).describe_snapshots(OwnerIds=["self"])["Snapshots"]), 1)

    def test_conditions(self):
        self.role(external_id="secret-id")
        self.refused("AccessDenied", self.assume)
        self.refused("AccessDenied", self.assume, ExternalId="other")
        self.assume(ExternalId="secret-id")
        middle = "arn:aws:iam::123456789012:role/middle"
        self.role(principals=[middle])
        self.refused("AccessDenied", self.assume)
        first = self.assume(RoleArn=middle)
        self.using(first, "sts").assume_role(RoleArn=ROLE, RoleSessionName="kiln")
        self.settings(unknown_roles=False)
        self.refused("AccessDenied", self.assume, RoleArn=middle)

    def test_durations(self):
        self.refused("ValidationError", self.assume, DurationSeconds=43201)
        self.role(max_duration=3600)
        self.refused("ValidationError", self.assume, DurationSeconds=7200)
        first = self.using(self.assume(RoleArn="arn:aws:iam::123456789012:role/first"), "sts")
        self.refused("ValidationError", first.assume_role, RoleArn=ROLE, RoleSessionName="kiln", DurationSeconds=3601)

    def test_web_identity(self):
        self.role(web_identity="a-good-token")
        unsigned = boto3.client("sts", endpoint_url=server(), region_name="us-east-1", aws_access_key_id="x",
                                aws_secret_access_key="x")
        assume = unsigned.assume_role_with_web_identity
        names = {"RoleArn": ROLE, "RoleSessionName": "kiln"}
        assume(**names, WebIdentityToken="a-good-token")
        self.refused("AccessDenied", assume, **names, WebIdentityToken="another-token")
        self.refused("ExpiredTokenException", assume, **names, WebIdentityToken="expired")


class Sessions(Case):
    def test_they_end(self):
        credentials = self.assume(DurationSeconds=900)
        ec2, ebs = self.using(credentials), self.using(credentials, "ebs")
        ec2.describe_images(Owners=["self"])
        control("POST", "expire", {"access_key": credentials["AccessKeyId"]})
        self.refused("RequestExpired", ec2.describe_images, Owners=["self"])
        self.refused("ExpiredTokenException", ebs.start_snapshot, VolumeSize=1)
        self.refused("ExpiredTokenException", self.using(credentials, "ssm").get_parameters, Names=["/a"])
        self.refused("ExpiredToken", self.using(credentials, "sts").get_caller_identity)
        self.refused("ExpiredToken", self.using(credentials, "s3").list_buckets)

    def test_what_nobody_gave_is_refused(self):
        good = self.assume()
        wrong = {**good, "SecretAccessKey": "wrong"}
        self.refused("AuthFailure", self.using(wrong).describe_images)
        self.refused("InvalidSignatureException", self.using(wrong, "ebs").start_snapshot, VolumeSize=1)
        self.refused("AuthFailure", self.using({**good, "SessionToken": "wrong"}).describe_images)
        self.refused("AuthFailure", self.using({**good, "AccessKeyId": "ASIAUNKNOWN"}).describe_images)
        for service, call, parameters in (
                ("ec2", "describe_images", {"Owners": ["self"]}), ("ebs", "start_snapshot", {"VolumeSize": 1}),
                ("ssm", "get_parameters", {"Names": ["/a"]}), ("sts", "get_caller_identity", {}),
                ("s3", "list_buckets", {})):
            getattr(self.using(good, service), call)(**parameters)

    def test_users_have_keys_and_clocks(self):
        control("POST", "keys", {"access_key": "AKIAKILN", "secret": "s", "account": "444444444444", "user": "ann"})
        good = client_with("sts", HOME, ("AKIAKILN", "s", None))
        self.assertEqual(good.get_caller_identity()["Arn"], "arn:aws:iam::444444444444:user/ann")
        self.refused("SignatureDoesNotMatch", client_with("sts", HOME, ("AKIAKILN", "t", None)).get_caller_identity)
        self.settings(clock_offset=3600)
        self.refused("SignatureDoesNotMatch", good.get_caller_identity)
        self.settings(unknown_keys=False, clock_offset=0)
        self.refused("InvalidClientTokenId", self.sts.get_caller_identity)


class Elsewhere(Case):
    def test_sso(self):
        sso = client("sso", "eu-central-1")
        got = sso.get_role_credentials(roleName="admin", accountId="333333333333", accessToken="kiln-sso-token")
        found = got["roleCredentials"]
        who = client_with("sts", HOME, (found["accessKeyId"], found["secretAccessKey"], found["sessionToken"]))
        self.assertEqual(who.get_caller_identity()["Account"], "333333333333")
        self.refused("UnauthorizedException", sso.get_role_credentials, roleName="admin", accountId="333333333333",
                     accessToken="wrong")
        oidc = client("sso-oidc", "eu-central-1")
        token = oidc.create_token(clientId="c", clientSecret="s", grantType="refresh_token",
                                  refreshToken="kiln-refresh-token")["accessToken"]
        sso.get_role_credentials(roleName="admin", accountId="333333333333", accessToken=token)

    def test_machines_and_containers(self):
        os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = server()
        try:
            found = botocore.session.get_session().get_component("credential_provider")
            found = [p for p in found.providers if p.METHOD == "iam-role"][0].load()
        finally:
            del os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
        frozen = found.get_frozen_credentials()
        who = client_with("sts", HOME, (frozen.access_key, frozen.secret_key, frozen.token))
        self.assertIn("kiln-machine", who.get_caller_identity()["Arn"])
        with urllib.request.urlopen(f"{server()}/container-credentials") as answer:
            self.assertIn("AccessKeyId", json.load(answer))
