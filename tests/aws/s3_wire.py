"""S3 on the wire: which operation a path means, bodies in signed chunks, checksums, XML."""

import base64
import hashlib
import re
import zlib
from email.utils import parsedate_to_datetime
from urllib.parse import unquote
from xml.etree import ElementTree

from . import protocol
from .protocol import Refused
from .web import Response

# (method, whether there is a key, arguments that must be there): operation. The first that fits.
OPERATIONS = [
    ("GET", None, (), "ListBuckets"), ("PUT", False, (), "CreateBucket"), ("HEAD", False, (), "HeadBucket"),
    ("DELETE", False, (), "DeleteBucket"), ("GET", False, ("location",), "GetBucketLocation"),
    ("GET", False, ("list-type",), "ListObjectsV2"), ("GET", False, ("uploads",), "ListMultipartUploads"),
    ("POST", False, ("delete",), "DeleteObjects"),
    ("PUT", True, ("partNumber", "uploadId"), "UploadPart"), ("POST", True, ("uploads",), "CreateMultipartUpload"),
    ("POST", True, ("uploadId",), "CompleteMultipartUpload"), ("DELETE", True, ("uploadId",), "AbortMultipartUpload"),
    ("GET", True, ("uploadId",), "ListParts"), ("GET", True, ("tagging",), "GetObjectTagging"),
    ("PUT", True, ("tagging",), "PutObjectTagging"), ("PUT", True, (), "PutObject"), ("HEAD", True, (), "HeadObject"),
    ("GET", True, (), "GetObject"), ("DELETE", True, (), "DeleteObject"),
]
# Arguments that choose an operation and are no members; SDKs add x-id.
MARKERS = {"location", "list-type", "uploads", "delete", "tagging", "x-id"}
# Arguments that mean operations which aren't here.
OTHERS = {"acl", "policy", "policyStatus", "versioning", "versions", "cors", "lifecycle", "encryption", "notification",
          "publicAccessBlock", "ownershipControls", "torrent", "restore", "select", "attributes", "retention", "logging"}
PREFIX = "x-amz-checksum-"
CHECKSUMS = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
}
# What the root element of an answer is called, where that isn't the shape's name.
ROOTS = {
    "ListBuckets": "ListAllMyBucketsResult", "ListObjectsV2": "ListBucketResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult", "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "ListMultipartUploads": "ListMultipartUploadsResult", "ListParts": "ListPartsResult", "DeleteObjects": "DeleteResult",
    "GetObjectTagging": "Tagging",
}


def parse(request):
    """The operation and parameters of a request in S3's path style, as `protocol.Parsed`; None if it isn't known."""
    bucket, _, key = request.path.lstrip("/").partition("/")
    arguments = request.arguments()
    if set(arguments) & OTHERS:
        return None
    has_key = bool(key) if bucket else None
    name = next((operation for method, keyed, needed, operation in OPERATIONS
                 if method == request.method and keyed == has_key and all(n in arguments for n in needed)), None)
    if name is None:
        return None
    found = protocol.operation("s3", name)
    parsed = protocol.Parsed(name, {})
    headers = {k: v for k, v in request.headers.items()
               if k.startswith("x-amz-") and k not in protocol.PROTOCOL_HEADERS and not k.startswith("x-amz-meta-")}
    body = _body(request)
    if body.trailers:
        headers |= {k: v for k, v in body.trailers.items() if k.startswith("x-amz-")}
    uri = {"Bucket": unquote(bucket), "Key": unquote(key)}
    payload = found.input_shape.serialization.get("payload") if found.input_shape is not None else None
    for member, shape in found.input_shape.members.items() if found.input_shape is not None else ():
        place, wire = shape.serialization.get("location"), shape.serialization.get("name", member)
        text = None
        if place == "uri":
            text = uri[wire]
        elif place == "querystring":
            text = arguments.pop(wire, None)
        elif place == "header":
            text = headers.pop(wire.lower(), None) or request.headers.get(wire.lower())
        elif place == "headers":
            prefix = wire.lower()
            meta = {k[len(prefix):]: v for k, v in request.headers.items() if k.startswith(prefix)}
            if meta:
                parsed.parameters[member] = meta
        elif member == payload and body.data:
            parsed.parameters[member] = _payload(shape, body.data, parsed)
        if text is not None:
            try:
                parsed.parameters[member] = _header(shape, text)
            except ValueError as error:
                parsed.wrong.append(f"{member}: {error}")
    parsed.unknown += [f"?{n}" for n in arguments if n not in MARKERS] + list(headers)
    _check_sums(request, body.data, parsed)
    return parsed


def _header(shape, text):
    if shape.type_name == "timestamp" and "," in text:
        return parsedate_to_datetime(text)
    return protocol.scalar(shape, text)


class _Body:
    def __init__(self, data, trailers=None):
        self.data, self.trailers = data, trailers or {}


def _body(request):
    """The body without the framing of signed chunks (`aws-chunked`)."""
    if not request.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        return _Body(request.body)
    data, position, pieces = request.body, 0, []
    try:
        while True:
            end = data.index(b"\r\n", position)
            size = int(data[position:end].partition(b";")[0], 16)
            position = end + 2
            if size == 0:
                break
            pieces.append(data[position:position + size])
            position += size + 2
    except ValueError:
        raise Refused("IncompleteBody", "The chunks of the body are not well-formed", 400) from None
    trailers = dict(line.split(":", 1) for line in data[position:].decode("latin-1").split("\r\n") if ":" in line)
    whole = b"".join(pieces)
    if str(len(whole)) != request.headers.get("x-amz-decoded-content-length"):
        raise Refused("IncompleteBody", "x-amz-decoded-content-length is not the body's length", 400)
    promised = {n.strip().lower() for n in request.headers.get("x-amz-trailer", "").split(",") if n}
    trailers = {name.strip().lower(): value.strip() for name, value in trailers.items()}
    if not promised <= set(trailers):
        raise Refused("MalformedTrailerError", "The request's trailers are not those that were announced", 400)
    return _Body(whole, trailers)


def _check_sums(request, data, parsed):
    """Every checksum that came with the data must be right, and be one that can be checked."""
    digest = request.headers.get("x-amz-content-sha256", "")
    if re.fullmatch("[0-9a-f]{64}", digest) and hashlib.sha256(request.body).hexdigest() != digest:
        raise Refused("XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was "
                      "computed.", 400)
    md5 = request.headers.get("content-md5")
    if md5 and base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode() != md5:
        raise Refused("BadDigest", "The Content-MD5 you specified did not match what we received.", 400)
    if parsed.operation not in ("PutObject", "UploadPart"):
        return
    for member, value in list(parsed.parameters.items()):
        if not member.startswith("Checksum") or member in ("ChecksumAlgorithm", "ChecksumType", "ChecksumMode"):
            continue
        function = CHECKSUMS.get(member[8:].lower())
        if function is None:
            raise Refused("NotImplemented", f"The local AWS can't check {member}", 501)
        if base64.b64encode(function(data)).decode() != value:
            raise Refused("BadDigest", f"The {member[8:]} you specified did not match the calculated checksum.", 400)


def _payload(shape, data, parsed):
    if shape.type_name == "blob":
        return data
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError:
        raise Refused("MalformedXML", "The XML you provided was not well-formed", 400) from None
    return _from_xml(shape, root, parsed)


def _tag(element):
    return element.tag.rpartition("}")[2]


def _from_xml(shape, element, parsed):
    if shape.type_name != "structure":
        return protocol.scalar(shape, element.text or "")
    value, left = {}, [_tag(child) for child in element]
    for member, inner in shape.members.items():
        wire = inner.serialization.get("name", member)
        children = [child for child in element if _tag(child) == wire]
        left = [name for name in left if name != wire]
        if not children:
            continue
        if inner.type_name == "list" and inner.serialization.get("flattened"):
            value[member] = [_from_xml(inner.member, child, parsed) for child in children]
        elif inner.type_name == "list":
            value[member] = [_from_xml(inner.member, child, parsed) for child in children[0]]
        else:
            value[member] = _from_xml(inner, children[0], parsed)
    parsed.unknown += left
    return value


def answer(name, result, request_id):
    """The response that carries a result in botocore's words."""
    found = protocol.operation("s3", name)
    headers = [("x-amz-request-id", request_id)]
    shape, body = found.output_shape, {}
    for member, value in (result or {}).items():
        inner = shape.members[member]
        place = inner.serialization.get("location")
        if value is None:
            continue
        if place == "header":
            text = http_date(value) if inner.type_name == "timestamp" else protocol.text_of(inner, value)
            headers.append((inner.serialization["name"], text))
        elif place == "headers":
            headers += [(inner.serialization["name"] + key, text) for key, text in value.items()]
        else:
            body[member] = value
    status = found.http.get("responseCode", 200)
    if name == "GetBucketLocation":
        inner = body.get("LocationConstraint") or ""
        text = f'<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</LocationConstraint>'
    elif name in ROOTS:
        inner = protocol.xml_members(shape, body, "rest-xml")
        text = f'<{ROOTS[name]} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</{ROOTS[name]}>'
    else:
        return Response(status, headers)
    headers.append(("Content-Type", "application/xml"))
    return Response(status, headers, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode())


def http_date(value):
    return value.astimezone(protocol.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
