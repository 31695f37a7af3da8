"""STS: who is calling, sessions, roles with conditions, and MFA codes that work once."""

import base64
import datetime
import hashlib
import hmac
import json
import re
import secrets
import struct

from .protocol import Refused
from .registry import handles
from .world import AccessKey

ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/([\w+=,.@/-]+)")
STEP = 30


def denied(message):
    return Refused("AccessDenied", message, 403)


def refuse(message):
    return Refused("ValidationError", message, 400)


def totp(secret, step):
    """The six digits of a base32 secret in a time step (RFC 6238)."""
    key = base64.b32decode(secret.upper() + "=" * (-len(secret) % 8))
    mark = hmac.new(key, struct.pack(">Q", step), "sha1").digest()
    offset = mark[-1] & 15
    return f"{(struct.unpack('>I', mark[offset:offset + 4])[0] & 0x7FFFFFFF) % 1000000:06d}"


def check_mfa(call):
    """Whether the call is made with MFA. A code counts in its own step and the one before and after, and once."""
    serial, code = call.get("SerialNumber"), call.get("TokenCode")
    if serial is None and code is None:
        return False
    if serial is None or code is None:
        raise refuse("SerialNumber and TokenCode must be given together")
    if not re.fullmatch(r"\d{6}", code):
        raise refuse("1 validation error detected: Value at 'tokenCode' failed to satisfy constraint: Member must satisfy "
                     "regular expression pattern: [\\d]*")
    device = call.world.devices.get(serial)
    if device is None:
        raise denied("MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your MFA serial number "
                     "is valid and associated with this user.")
    if device.get("account", call.account) != call.account:
        raise denied("MultiFactorAuthentication failed, must provide an MFA device of the caller's account")
    now = int(call.world.now().timestamp()) // STEP
    found = next((step for step in (now, now - 1, now + 1) if hmac.compare_digest(totp(device["secret"], step), code)),
                 None)
    # A code that was used, or one older than it, is as wrong as any other.
    if found is None or found <= device.get("last", -1):
        raise denied("MultiFactorAuthentication failed with invalid MFA one time pass code. ")
    device["last"] = found
    return True


def _session(call, account, arn, user_id, seconds, mfa):
    """A new session and its credentials in STS's words."""
    number = call.world.new_id("session")[9:].upper()
    key = AccessKey(
        f"ASIAKILN{number[:12]}", secrets.token_urlsafe(30), account, arn, user_id, mfa=mfa,
        token="IQoJb3JpZ2lu" + base64.b64encode(secrets.token_bytes(96)).decode(),
        expires=(call.world.now() + datetime.timedelta(seconds=seconds)).replace(microsecond=0),
    )
    call.world.keys[key.id] = key
    return {"AccessKeyId": key.id, "SecretAccessKey": key.secret, "SessionToken": key.token, "Expiration": key.expires}


@handles("sts", "GetCallerIdentity")
def get_caller_identity(call):
    return {"Account": call.caller.account, "Arn": call.caller.arn, "UserId": call.caller.user_id}


@handles("sts", "GetSessionToken")
def get_session_token(call):
    if call.caller.token is not None:
        raise denied("Cannot call GetSessionToken with session credentials")
    seconds = call.get("DurationSeconds", 43200)
    if not 900 <= seconds <= 129600:
        raise refuse("DurationSeconds must be between 900 and 129600")
    mfa = check_mfa(call)
    return {"Credentials": _session(call, call.account, call.caller.arn, call.caller.user_id, seconds, mfa)}


@handles("sts", "AssumeRole")
def assume_role(call):
    role, account, name = _role(call)
    mfa = check_mfa(call) or call.caller.mfa
    refusal = denied(f"User: {call.caller.arn} is not authorized to perform: sts:AssumeRole on resource: "
                     f"{call.get('RoleArn')}")
    if role.get("mfa") and not mfa:
        raise refusal
    if role.get("external_id") is not None and call.get("ExternalId") != role["external_id"]:
        raise refusal
    if role.get("principals") and not _principal(call.caller, role["principals"]):
        raise refusal
    chained = call.caller.token is not None and ":assumed-role/" in call.caller.arn
    return _assume(call, role, account, name, chained, mfa)


def _role(call):
    """(what is configured about the role, its account, its name)."""
    arn = call.get("RoleArn")
    matched = ROLE.fullmatch(arn)
    if not matched:
        raise refuse(f"{arn} is invalid")
    role = call.world.roles.get(arn)
    if role is None and not call.settings["unknown_roles"]:
        raise denied(f"User: {call.caller.arn if call.caller else 'anonymous'} is not authorized to perform: "
                     f"sts:{call.operation} on resource: {arn}")
    if not re.fullmatch(r"[\w+=,.@-]{2,64}", call.get("RoleSessionName")):
        raise refuse("1 validation error detected: Value at 'roleSessionName' failed to satisfy constraint")
    external = call.get("ExternalId")
    if external is not None and not re.fullmatch(r"[\w+=,.@:/-]{2,1224}", external):
        raise refuse("1 validation error detected: Value at 'externalId' failed to satisfy constraint")
    return role or {}, matched[1], matched[2].rsplit("/", 1)[-1]


def _principal(caller, allowed):
    """Whether the caller is among a role's principals: accounts, ARNs of users, ARNs of roles."""
    role = re.fullmatch(r"arn:aws:sts::(\d{12}):assumed-role/([^/]+)/.*", caller.arn)
    names = {caller.account, caller.arn, f"arn:aws:iam::{caller.account}:root"}
    if role:
        names.add(f"arn:aws:iam::{role[1]}:role/{role[2]}")
    return bool(names & set(allowed))


def _assume(call, role, account, name, chained, mfa):
    seconds, most = call.get("DurationSeconds", 3600), role.get("max_duration", 43200 if not chained else 3600)
    if seconds < 900 or seconds > 43200:
        raise refuse(f"1 validation error detected: Value '{seconds}' at 'durationSeconds' failed to satisfy constraint")
    if chained and seconds > 3600:
        raise refuse("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
    if seconds > most:
        raise refuse("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
    arn = f"arn:aws:sts::{account}:assumed-role/{name}/{call.get('RoleSessionName')}"
    user_id = f"AROA{hashlib.sha256(call.get('RoleArn').encode()).hexdigest()[:17].upper()}:{call.get('RoleSessionName')}"
    return {"Credentials": _session(call, account, arn, user_id, role.get("session_seconds", seconds), mfa),
            "AssumedRoleUser": {"AssumedRoleId": user_id, "Arn": arn}}


@handles("sts", "AssumeRoleWithWebIdentity")
def assume_role_with_web_identity(call):
    role, account, name = _role(call)
    token = call.get("WebIdentityToken")
    if len(token) < 4:
        raise refuse("1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint")
    if token in call.settings["refused_identities"]:
        raise Refused("ExpiredTokenException", "Token expired: current date/time must be before the expiration date/time",
                      400)
    if role.get("web_identity") not in (None, token):
        raise denied("Not authorized to perform sts:AssumeRoleWithWebIdentity")
    return {**_assume(call, role, account, name, False, False), "SubjectFromWebIdentityToken": "kiln",
            "Provider": "accounts.kiln.example", "Audience": "sts.amazonaws.com"}


# ---- SSO: the portal that gives a role's credentials, and the tokens for it


@handles("sso", "GetRoleCredentials")
def get_role_credentials(call):
    if call.get("accessToken") not in call.settings["sso_tokens"]:
        raise Refused("UnauthorizedException", "Session token not found or invalid", 401)
    account, role = call.get("accountId"), call.get("roleName")
    arn = f"arn:aws:sts::{account}:assumed-role/AWSReservedSSO_{role}_0123456789abcdef/kiln"
    made = _session(call, account, arn, f"AROAKILNSSO0000000000:{role}", 3600, False)
    return {"roleCredentials": {
        "accessKeyId": made["AccessKeyId"], "secretAccessKey": made["SecretAccessKey"],
        "sessionToken": made["SessionToken"], "expiration": int(made["Expiration"].timestamp() * 1000)}}


@handles("sso-oidc", "CreateToken")
def create_token(call):
    if call.get("grantType") != "refresh_token" or call.get("refreshToken") != "kiln-refresh-token":
        raise Refused("InvalidGrantException", "The grant is not valid", 400, error="invalid_grant")
    token = secrets.token_urlsafe(24)
    call.settings["sso_tokens"].append(token)
    return {"accessToken": token, "tokenType": "Bearer", "expiresIn": 28800, "refreshToken": "kiln-refresh-token"}


# ---- credentials that machines and containers get


def machine_credentials(world, role, call):
    """What an instance's metadata service answers for its role."""
    account = role.get("account")
    arn = f"arn:aws:sts::{account}:assumed-role/{role['name']}/i-0123456789abcdef0"
    made = _session(call, account, arn, f"AROAKILNMACHINE000000:{role['name']}", role.get("seconds", 21600), False)
    return json.dumps({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": world.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        "AccessKeyId": made["AccessKeyId"], "SecretAccessKey": made["SecretAccessKey"], "Token": made["SessionToken"],
        "Expiration": made["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"), "RoleArn": arn, "AccountId": account,
    }).encode()
