"""S3's buckets and objects: what an upload for ImportSnapshot needs. Bytes are files; an object is its parts in order."""

import base64
import hashlib
import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from .protocol import Refused
from .registry import handles
from .s3_wire import answer
from .web import Response

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SMALLEST_PART = 5 << 20
PIECE = 1 << 20


@dataclass
class Piece:
    """Some bytes in a file of their own."""

    name: str
    size: int
    md5: str
    sums: dict = field(default_factory=dict)  # {"ChecksumSHA256": base64}


@dataclass
class Object:
    """An object, or an upload that is to become one (its pieces by part number)."""

    key: str
    pieces: list
    etag: str
    modified: object
    sums: dict = field(default_factory=dict)
    kind: str = None  # of its checksum: FULL_OBJECT or COMPOSITE
    metadata: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    content_type: str = "binary/octet-stream"
    encryption: dict = field(default_factory=dict)

    @property
    def size(self):
        return sum(piece.size for piece in self.pieces)


@dataclass
class Upload:
    """A multipart upload that is under way."""

    id: str
    key: str
    started: object
    algorithm: str = None
    parts: dict = field(default_factory=dict)
    like: Object = None


@dataclass
class Bucket:
    name: str
    account: str
    region: str
    created: object
    objects: dict = field(default_factory=dict)
    uploads: dict = field(default_factory=dict)


class Files:
    """The files that pieces are in."""

    def __init__(self, folder):
        self.folder = Path(folder) / "objects"
        self.folder.mkdir(exist_ok=True)
        self.numbers = itertools.count(1)

    def reset(self):
        for path in self.folder.iterdir():
            path.unlink()

    def write(self, data, sums):
        name = f"{next(self.numbers)}-{os.urandom(4).hex()}"
        (self.folder / name).write_bytes(data)
        return Piece(name, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), sums)

    def remove(self, pieces):
        for piece in pieces:
            (self.folder / piece.name).unlink(missing_ok=True)

    def read(self, pieces, start=0, length=None):
        """The bytes of some pieces in order, from `start` on, in chunks."""
        left = sum(piece.size for piece in pieces) - start if length is None else length
        for piece in pieces:
            if start >= piece.size:
                start -= piece.size
                continue
            with open(self.folder / piece.name, "rb") as file:
                file.seek(start)
                start = 0
                while left > 0 and (chunk := file.read(min(PIECE, left))):
                    left -= len(chunk)
                    yield chunk


# ---- buckets


def bucket_of(call):
    """The bucket that a call names, if the caller may use it."""
    found = call.world.buckets.get(call.get("Bucket"))
    if found is None:
        raise Refused("NoSuchBucket", "The specified bucket does not exist", 404)
    if found.account != call.account:
        raise Refused("AccessDenied", "Access Denied", 403)
    if call.get("ExpectedBucketOwner") not in (None, found.account):
        raise Refused("AccessDenied", "Access Denied", 403)
    if found.region != call.region:
        raise Refused("PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified "
                      f"endpoint: it is in {found.region}", 301, BucketRegion=found.region)
    return found


@handles("s3", "CreateBucket")
def create_bucket(call):
    name = call.get("Bucket")
    if not BUCKET.fullmatch(name):
        raise Refused("InvalidBucketName", "The specified bucket is not valid.", 400)
    place = (call.get("CreateBucketConfiguration") or {}).get("LocationConstraint")
    if (place or "us-east-1") != call.region:
        raise Refused("IllegalLocationConstraintException", f"The {place or 'unspecified'} location constraint is "
                      "incompatible for the region specific endpoint this request was sent to.", 400)
    if name in call.world.buckets:
        own = call.world.buckets[name].account == call.account
        raise Refused("BucketAlreadyOwnedByYou" if own else "BucketAlreadyExists", "The bucket exists already", 409)
    call.world.buckets[name] = Bucket(name, call.account, call.region, call.world.now())
    return {"Location": f"/{name}"}


@handles("s3", "HeadBucket", "GetBucketLocation", "DeleteBucket", "ListBuckets")
def about_buckets(call):
    if call.operation == "ListBuckets":
        rows = [{"Name": b.name, "CreationDate": b.created} for b in call.world.buckets.values()
                if b.account == call.account]
        return {"Buckets": rows, "Owner": {"ID": call.account}}
    bucket = bucket_of(call)
    if call.operation == "HeadBucket":
        return {"BucketRegion": bucket.region}
    if call.operation == "GetBucketLocation":
        return {"LocationConstraint": None if bucket.region == "us-east-1" else bucket.region}
    if bucket.objects or bucket.uploads:
        raise Refused("BucketNotEmpty", "The bucket you tried to delete is not empty", 409)
    del call.world.buckets[bucket.name]
    return {}


@handles("s3", "ListObjectsV2")
def list_objects(call):
    bucket, prefix = bucket_of(call), call.get("Prefix") or ""
    after = call.get("ContinuationToken") or call.get("StartAfter") or ""
    keys = [key for key in sorted(bucket.objects) if key.startswith(prefix) and key > after]
    limit = min(call.get("MaxKeys") or 1000, 1000)
    rows = [{"Key": o.key, "LastModified": o.modified, "ETag": o.etag, "Size": o.size, "StorageClass": "STANDARD"}
            for o in (bucket.objects[key] for key in keys[:limit])]
    more = len(keys) > limit
    return {"Name": bucket.name, "Prefix": prefix, "KeyCount": len(rows), "MaxKeys": limit, "IsTruncated": more,
            "Contents": rows, "NextContinuationToken": keys[limit - 1] if more else None}


# ---- objects


def sums_of(call):
    return {k: v for k, v in call.parameters.items()
            if k.startswith("Checksum") and k not in ("ChecksumAlgorithm", "ChecksumType", "ChecksumMode")}


def _described(call, **more):
    tags = call.get("Tagging")
    return {"metadata": call.get("Metadata") or {}, "content_type": call.get("ContentType") or "binary/octet-stream",
            "tags": dict(pair.split("=", 1) for pair in tags.split("&")) if tags else {},
            "encryption": {k: call.get(k) for k in ("ServerSideEncryption", "SSEKMSKeyId") if call.get(k)}, **more}


def _data(call):
    """The body; the log gets its digest."""
    data = call.get("Body") or b""
    if data:
        call.parameters["Body"] = f"sha256:{hashlib.sha256(data).hexdigest()} {len(data)}"
    return data


@handles("s3", "PutObject")
def put_object(call):
    with call.world.lock:
        bucket = bucket_of(call)
        if call.get("IfNoneMatch") == "*" and call.get("Key") in bucket.objects:
            raise Refused("PreconditionFailed", "At least one of the pre-conditions you specified did not hold", 412)
    piece = call.world.files.write(_data(call), sums_of(call))
    with call.world.lock:
        old = bucket.objects.get(call.get("Key"))
        made = Object(call.get("Key"), [piece], f'"{piece.md5}"', call.world.now(), piece.sums, "FULL_OBJECT",
                      **_described(call))
        bucket.objects[made.key] = made
        call.world.files.remove(old.pieces if old else [])
    return {"ETag": made.etag, **made.sums, **made.encryption}


def object_of(call):
    found = bucket_of(call).objects.get(call.get("Key"))
    if found is None:
        raise Refused("NoSuchKey", "The specified key does not exist.", 404)
    return found


@handles("s3", "HeadObject", "GetObject")
def get_object(call):
    with call.world.lock:
        found = object_of(call)
    shown = {"ETag": found.etag, "LastModified": found.modified, "ContentType": found.content_type,
             "AcceptRanges": "bytes", "Metadata": found.metadata, **found.encryption}
    if call.get("ChecksumMode") == "ENABLED" and not call.get("Range"):
        shown |= found.sums | ({"ChecksumType": found.kind} if found.sums else {})
    start, end, status = 0, found.size, 200
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.get("Range") or "")
    if asked:
        start, end = int(asked[1]), min(int(asked[2] or found.size - 1) + 1, found.size)
        if start >= end:
            raise Refused("InvalidRange", "The requested range is not satisfiable", 416)
        shown["ContentRange"], status = f"bytes {start}-{end - 1}/{found.size}", 206
    headers = answer("HeadObject", shown, call.request_id).headers
    if call.operation == "HeadObject":
        return Response(status, headers + [("Content-Length", str(end - start))])
    return Response(status, headers, chunks=call.world.files.read(found.pieces, start, end - start), length=end - start)


@handles("s3", "DeleteObject", "DeleteObjects")
def delete_objects(call):
    bucket = bucket_of(call)
    if call.operation == "DeleteObject":
        keys = [call.get("Key")]
    else:
        keys = [one["Key"] for one in (call.get("Delete") or {}).get("Objects") or []]
    for key in keys:
        gone = bucket.objects.pop(key, None)
        call.world.files.remove(gone.pieces if gone else [])
    return {} if call.operation == "DeleteObject" else {"Deleted": [{"Key": key} for key in keys]}


@handles("s3", "GetObjectTagging", "PutObjectTagging")
def object_tagging(call):
    found = object_of(call)
    if call.operation == "PutObjectTagging":
        found.tags = {tag["Key"]: tag["Value"] for tag in call.get("Tagging")["TagSet"]}
        return {}
    return {"TagSet": [{"Key": key, "Value": value} for key, value in found.tags.items()]}


# ---- multipart uploads


@handles("s3", "CreateMultipartUpload")
def create_multipart_upload(call):
    bucket, algorithm = bucket_of(call), call.get("ChecksumAlgorithm")
    if algorithm not in (None, "SHA256", "SHA1", "CRC32"):
        raise Refused("NotImplemented", f"The local AWS can't check {algorithm}", 501)
    if call.get("ChecksumType") == "FULL_OBJECT" and algorithm != "CRC32":
        raise Refused("InvalidRequest", "The FULL_OBJECT checksum type cannot be used with this checksum algorithm", 400)
    identifier = call.world.new_id("upload")[7:]
    like = Object(call.get("Key"), [], "", call.world.now(), **_described(call))
    bucket.uploads[identifier] = Upload(identifier, call.get("Key"), call.world.now(), algorithm, like=like)
    return {"Bucket": bucket.name, "Key": call.get("Key"), "UploadId": identifier, "ChecksumAlgorithm": algorithm,
            "ChecksumType": "COMPOSITE" if algorithm else None, **like.encryption}


def upload_of(call):
    found = bucket_of(call).uploads.get(call.get("UploadId"))
    if found is None or found.key != call.get("Key"):
        raise Refused("NoSuchUpload", "The specified multipart upload does not exist. The upload ID might be invalid, or "
                      "the multipart upload might have been aborted or completed.", 404)
    return found


@handles("s3", "UploadPart")
def upload_part(call):
    number, sums = call.get("PartNumber"), sums_of(call)
    with call.world.lock:
        upload = upload_of(call)
    if not 1 <= number <= 10000:
        raise Refused("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive", 400)
    if upload.algorithm and f"Checksum{upload.algorithm}" not in sums:
        have = ", ".join(sums) or "none"
        raise Refused("InvalidRequest", f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, "
                      f"actual checksum Type: {have}", 400)
    piece = call.world.files.write(_data(call), sums)
    with call.world.lock:
        old = upload.parts.get(number)
        upload.parts[number] = piece
        call.world.files.remove([old] if old else [])
    return {"ETag": f'"{piece.md5}"', **sums}


@handles("s3", "ListParts")
def list_parts(call):
    upload = upload_of(call)
    rows = [{"PartNumber": number, "ETag": f'"{piece.md5}"', "Size": piece.size, "LastModified": upload.started,
             **piece.sums} for number, piece in sorted(upload.parts.items())]
    rows = [row for row in rows if row["PartNumber"] > (call.get("PartNumberMarker") or 0)]
    limit = min(call.get("MaxParts") or 1000, 1000)
    more = len(rows) > limit
    return {"Bucket": call.get("Bucket"), "Key": upload.key, "UploadId": upload.id, "Parts": rows[:limit],
            "IsTruncated": more, "NextPartNumberMarker": rows[limit - 1]["PartNumber"] if more else None,
            "ChecksumAlgorithm": upload.algorithm}


@handles("s3", "ListMultipartUploads")
def list_multipart_uploads(call):
    bucket, prefix = bucket_of(call), call.get("Prefix") or ""
    rows = [{"Key": u.key, "UploadId": u.id, "Initiated": u.started, "ChecksumAlgorithm": u.algorithm}
            for u in bucket.uploads.values() if u.key.startswith(prefix)]
    return {"Bucket": bucket.name, "Uploads": rows, "IsTruncated": False}


@handles("s3", "AbortMultipartUpload")
def abort_multipart_upload(call):
    upload = upload_of(call)
    call.world.files.remove(upload.parts.values())
    del bucket_of(call).uploads[upload.id]
    return {}


@handles("s3", "CompleteMultipartUpload")
def complete_multipart_upload(call):
    bucket, upload = bucket_of(call), upload_of(call)
    listed = (call.get("MultipartUpload") or {}).get("Parts") or []
    if not listed:
        raise Refused("MalformedXML", "You must specify at least one part", 400)
    numbers = [part.get("PartNumber") for part in listed]
    if numbers != sorted(set(numbers)):
        raise Refused("InvalidPartOrder", "The list of parts was not in ascending order.", 400)
    pieces = [_listed_piece(upload, part) for part in listed]
    if any(piece.size < SMALLEST_PART for piece in pieces[:-1]):
        raise Refused("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size", 400)
    if call.get("MpuObjectSize") not in (None, sum(piece.size for piece in pieces)):
        raise Refused("InvalidRequest", "The provided object size does not match the parts", 400)
    made = upload.like
    made.pieces, made.modified, made.sums = pieces, call.world.now(), _composite(upload, pieces)
    made.kind = "COMPOSITE" if made.sums else None
    for member, value in sums_of(call).items():
        whole = made.sums.get(member)
        if value not in (whole, whole and whole.rpartition("-")[0]):
            raise Refused("BadDigest", f"The {member} you specified did not match the calculated checksum.", 400)
    together = hashlib.md5(b"".join(bytes.fromhex(piece.md5) for piece in pieces), usedforsecurity=False).hexdigest()
    made.etag = f'"{together}-{len(pieces)}"'
    old = bucket.objects.get(made.key)
    bucket.objects[made.key] = made
    del bucket.uploads[upload.id]
    call.world.files.remove((old.pieces if old else []) + [p for p in upload.parts.values() if p not in pieces])
    return {"Bucket": bucket.name, "Key": made.key, "ETag": made.etag, "Location": f"/{bucket.name}/{made.key}",
            "ChecksumType": made.kind, **made.sums}


def _listed_piece(upload, part):
    piece = upload.parts.get(part.get("PartNumber"))
    if piece is None or part.get("ETag", "").strip('"') != piece.md5:
        raise Refused("InvalidPart", "One or more of the specified parts could not be found. The part might not have been "
                      "uploaded, or the specified entity tag might not have matched the part's entity tag.", 400)
    sums = {k: v for k, v in part.items() if k.startswith("Checksum")}
    if any(piece.sums.get(member) != value for member, value in sums.items()):
        raise Refused("InvalidPart", "The checksum of a part is not the one that it was uploaded with", 400)
    if upload.algorithm and f"Checksum{upload.algorithm}" not in sums:
        raise Refused("InvalidRequest", f"The upload was created using a {upload.algorithm.lower()} checksum. The complete "
                      "request must include the checksum for each part. It was missing for part "
                      f"{part['PartNumber']} in the request.", 400)
    return piece


def _composite(upload, pieces):
    """The checksum of the parts' checksums, with their number."""
    if upload.algorithm not in ("SHA256", "SHA1"):
        return {}
    member = f"Checksum{upload.algorithm}"
    together = b"".join(base64.b64decode(piece.sums[member]) for piece in pieces)
    function = hashlib.sha256 if upload.algorithm == "SHA256" else hashlib.sha1
    return {member: f"{base64.b64encode(function(together).digest()).decode()}-{len(pieces)}"}


def listing(world):
    """All buckets for the state dump."""
    return [{
        "bucket": b.name, "account": b.account, "region": b.region,
        "objects": {key: {"size": o.size, "etag": o.etag, "tags": o.tags, **o.sums} for key, o in b.objects.items()},
        "uploads": {u.id: {"key": u.key, "parts": sorted(u.parts)} for u in b.uploads.values()},
    } for b in world.buckets.values()]
