"""Whose request it is: access keys, sessions, their ends, and signatures."""

import datetime
import hashlib
import hmac
import re
import urllib.parse

from .faults import Fault, expired
from .world import OWN_ACCOUNT, AccessKey

AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request,\s*"
                           r"SignedHeaders=([^,]+),\s*Signature=([0-9a-f]{64})")
# A request's date may be off by so much.
SKEW = datetime.timedelta(minutes=15)


def scope(request):
    """The matched Authorization header, or None for an unsigned request."""
    return AUTHORIZATION.match(request.headers.get("authorization", ""))


def caller(world, call, signed):
    """The AccessKey of a signed request; a Fault where it is none, has ended, or the signature is wrong."""
    identifier, sent = signed[1], call.request.headers.get("x-amz-security-token")
    known = world.keys.get(identifier)
    if known is None:
        if not world.settings["unknown_keys"] or sent is not None and identifier.startswith("ASIA"):
            raise invalid(call.service)
        account = identifier if re.fullmatch(r"\d{12}", identifier) else OWN_ACCOUNT
        return AccessKey(identifier, None, account, f"arn:aws:iam::{account}:user/kiln", "AIDAKILNTESTUSER00000")
    if known.token is not None and sent != known.token:
        raise invalid(call.service)
    if known.expires is not None and world.now() >= known.expires:
        raise expired(call.service)
    if world.settings["signatures"] and known.secret is not None:
        _check(world, call, signed, known)
    return known


def invalid(service):
    if service == "ec2":
        return Fault("AuthFailure", 401, "AWS was not able to validate the provided access credentials")
    if service == "s3":
        return Fault("InvalidAccessKeyId", 403, "The AWS Access Key Id you provided does not exist in our records.")
    if service in ("sts", "iam"):
        return Fault("InvalidClientTokenId", 403, "The security token included in the request is invalid.")
    return Fault("UnrecognizedClientException", 403 if service == "ebs" else 400,
                 "The security token included in the request is invalid.")


def _mismatch(service):
    code = {"ec2": "AuthFailure", "s3": "SignatureDoesNotMatch", "sts": "SignatureDoesNotMatch",
            "iam": "SignatureDoesNotMatch"}.get(service, "InvalidSignatureException")
    return Fault(code, 403, "The request signature we calculated does not match the signature you provided.")


def _check(world, call, signed, key):
    """Signature version 4, from its specification."""
    request, (_, day, region, service, names, signature) = call.request, signed.groups()
    sent = request.headers.get("x-amz-date", "")
    try:
        at = datetime.datetime.strptime(sent, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        raise _mismatch(call.service) from None
    if abs(at - world.now()) > SKEW:
        code = "RequestTimeTooSkewed" if service == "s3" else "RequestExpired" if service == "ec2" else (
            "SignatureDoesNotMatch" if service in ("sts", "iam") else "InvalidSignatureException")
        raise Fault(code, 403 if service == "s3" else 400,
                    f"Signature expired: {sent} is not within 15 minutes of the server's time")
    digest = request.headers.get("x-amz-content-sha256")
    if digest is None:
        digest = hashlib.sha256(request.body).hexdigest()
    elif re.fullmatch("[0-9a-f]{64}", digest) and hashlib.sha256(request.body).hexdigest() != digest:
        raise _mismatch(call.service)
    quote = (lambda path: path) if service == "s3" else (lambda path: urllib.parse.quote(path, "/~"))
    query = urllib.parse.parse_qsl(request.query, keep_blank_values=True)
    pairs = sorted((urllib.parse.quote(k, "~"), urllib.parse.quote(v, "~")) for k, v in query)
    canonical = "\n".join([
        request.method, quote(request.path), "&".join(f"{k}={v}" for k, v in pairs),
        *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in names.split(";")), "", names, digest,
    ])
    where = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{sent}\n{where}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = ("AWS4" + key.secret).encode()
    for part in where.split("/"):
        secret = hmac.new(secret, part.encode(), "sha256").digest()
    if not hmac.compare_digest(hmac.new(secret, text.encode(), "sha256").hexdigest(), signature):
        raise _mismatch(call.service)
