"""AWS's wire protocols, driven by botocore's service models: requests become botocore's parameters, results go back.

What a request holds that its model doesn't know is kept apart (`Parsed.unknown`): the emulator refuses it.
"""

import base64
import datetime
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

import botocore.session

from .web import Response

# Signing names that differ from botocore's names of the services.
SIGNING = {
    "ec2": "ec2", "ebs": "ebs", "ssm": "ssm", "sts": "sts", "kms": "kms", "s3": "s3", "iam": "iam",
    "servicequotas": "service-quotas", "awsssoportal": "sso", "sso-oauth": "sso-oidc",
}
_session = botocore.session.get_session()
UTC = datetime.timezone.utc


@lru_cache(maxsize=None)
def model(service):
    """botocore's model of a service."""
    return _session.get_service_model(service)


@lru_cache(maxsize=None)
def operation(service, name):
    """botocore's model of an operation; None when there is none of that name."""
    found = model(service)
    return found.operation_model(name) if name in found.operation_names else None


@dataclass
class Parsed:
    """A request in botocore's words."""

    operation: str
    parameters: dict
    unknown: list = field(default_factory=list)
    wrong: list = field(default_factory=list)


class Refused(Exception):
    """An error that AWS would answer with."""

    def __init__(self, code, message, status=None, **members):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.members = code, message, status, members


# ---- requests


def parse(service, request):
    """The operation and its parameters, or None where it can't be told which operation it is."""
    kind = model(service).protocol
    if kind in ("ec2", "query"):
        return _parse_query(service, request, kind)
    if kind == "json":
        return _parse_json(service, request)
    return _parse_rest(service, request)


def _parse_query(service, request, kind):
    pairs = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    pairs += parse_qsl(request.query, keep_blank_values=True)
    flat = dict(pairs)
    name = flat.pop("Action", None)
    flat.pop("Version", None)
    found = name and operation(service, name)
    if not found:
        return None
    parsed = Parsed(name, {})
    tree = {}
    for key, value in flat.items():
        node = tree
        *folders, leaf = key.split(".")
        for part in folders:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                parsed.unknown.append(key)
                break
        else:
            node[leaf] = value
    if found.input_shape is not None:
        parsed.parameters = _QueryReader(kind, parsed).structure(found.input_shape, tree, "")
    else:
        parsed.unknown += list(flat)
    return parsed


class _QueryReader:
    """Walks the tree of a query's dotted keys along a shape."""

    def __init__(self, kind, parsed):
        self.kind, self.parsed = kind, parsed

    def name(self, key, shape):
        if self.kind == "ec2":
            if "queryName" in shape.serialization:
                return shape.serialization["queryName"]
            key = shape.serialization.get("name", key)
            return key[0].upper() + key[1:]
        return shape.serialization.get("name", key)

    def structure(self, shape, node, where):
        if not isinstance(node, dict):
            self.parsed.wrong.append(f"{where}: no structure")
            return {}
        node = dict(node)
        value = {}
        for key, member in shape.members.items():
            wire = self.name(key, member)
            if wire in node:
                value[key] = self.value(member, node.pop(wire), f"{where}.{wire}".lstrip("."))
        self.parsed.unknown += [f"{where}.{key}".lstrip(".") for key in node]
        return value

    def value(self, shape, node, where):
        if shape.type_name == "structure":
            return self.structure(shape, node, where)
        if shape.type_name == "list":
            return self.list(shape, node, where)
        if shape.type_name == "map":
            entries = node.get("entry", {}) if isinstance(node, dict) else {}
            return {e["key"]: self.value(shape.value, e["value"], where) for e in entries.values()}
        if isinstance(node, dict):
            self.parsed.unknown += [f"{where}.{key}" for key in node]
            return None
        try:
            return scalar(shape, node)
        except ValueError as error:
            self.parsed.wrong.append(f"{where}: {error}")
            return node

    def list(self, shape, node, where):
        if node == "":
            return []
        if isinstance(node, dict) and self.kind == "query" and not shape.serialization.get("flattened"):
            item = shape.member.serialization.get("name", "member")
            self.parsed.unknown += [f"{where}.{key}" for key in node if key != item]
            node = node.get(item, {})
        if not isinstance(node, dict):
            self.parsed.wrong.append(f"{where}: no list")
            return []
        numbers = sorted((k for k in node if k.isdigit()), key=int)
        self.parsed.unknown += [f"{where}.{key}" for key in node if not key.isdigit()]
        if [int(k) for k in numbers] != list(range(1, len(numbers) + 1)):
            self.parsed.wrong.append(f"{where}: its items aren't numbered from 1")
        return [self.value(shape.member, node[k], f"{where}.{k}") for k in numbers]


def scalar(shape, text):
    """A value that was sent as text."""
    kind = shape.type_name
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if kind in ("integer", "long"):
        return int(text)
    if kind in ("float", "double"):
        return float(text)
    if kind == "timestamp":
        return instant(text)
    if kind == "blob":
        return base64.b64decode(text, validate=True)
    return text


def instant(text):
    """A time from ISO 8601."""
    found = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _parse_json(service, request):
    prefix, _, name = request.headers.get("x-amz-target", "").rpartition(".")
    found = operation(service, name) if prefix == model(service).metadata["targetPrefix"] else None
    if not found:
        return None
    parsed = Parsed(name, {})
    try:
        value = json.loads(request.body or b"{}")
    except ValueError:
        raise Refused("SerializationException", "The body is no JSON") from None
    if found.input_shape is not None:
        parsed.parameters = _from_json(found.input_shape, value, "", parsed)
    return parsed


def _from_json(shape, value, where, parsed):
    if value is None:
        return None
    kind = shape.type_name
    expected = {"structure": dict, "map": dict, "list": list, "string": str, "boolean": bool}.get(kind)
    if expected and not isinstance(value, expected):
        parsed.wrong.append(f"{where}: no {kind}")
        return value
    if kind == "structure":
        names = {member.serialization.get("name", key): (key, member) for key, member in shape.members.items()}
        parsed.unknown += [f"{where}.{key}".lstrip(".") for key in value if key not in names]
        known = [(names[wire], item, wire) for wire, item in value.items() if wire in names and item is not None]
        return {key: _from_json(member, item, f"{where}.{wire}".lstrip("."), parsed)
                for (key, member), item, wire in known}
    if kind == "list":
        return [_from_json(shape.member, item, f"{where}[{i}]", parsed) for i, item in enumerate(value)]
    if kind == "map":
        return {key: _from_json(shape.value, item, f"{where}.{key}", parsed) for key, item in value.items()}
    if kind == "timestamp":
        return datetime.datetime.fromtimestamp(value, UTC) if isinstance(value, (int, float)) else instant(value)
    if kind == "blob":
        return base64.b64decode(value)
    return value


@lru_cache(maxsize=None)
def _routes(service):
    """[(method, pattern of the path, operation's model)] of a service that speaks REST."""
    routes = []
    for name in model(service).operation_names:
        found = operation(service, name)
        path = found.http["requestUri"].partition("?")[0]
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))
        routes.append((found.http["method"], re.compile(pattern), found))
    return routes


def _parse_rest(service, request):
    for method, pattern, found in _routes(service):
        matched = method == request.method and pattern.fullmatch(request.path)
        if matched:
            return _read_rest(found, matched.groupdict(), request)
    return None


# Headers that begin like members of a request but belong to the protocol.
PROTOCOL_HEADERS = {
    "x-amz-date", "x-amz-security-token", "x-amz-content-sha256", "x-amz-user-agent", "x-amz-target",
    "x-amz-decoded-content-length", "x-amz-trailer",
}


def _read_rest(found, uri, request):
    parsed = Parsed(found.name, {})
    arguments = request.arguments()
    headers = {k: v for k, v in request.headers.items() if k.startswith("x-amz-") and k not in PROTOCOL_HEADERS}
    shape = found.input_shape
    payload = shape.serialization.get("payload")
    body_members = {}
    for key, member in shape.members.items():
        place, wire = member.serialization.get("location"), member.serialization.get("name", key)
        text = None
        if place == "uri":
            text = unquote(uri[wire])
        elif place == "querystring":
            text = arguments.pop(wire, None)
        elif place == "header":
            text = headers.pop(wire.lower(), None)
        elif key == payload:
            parsed.parameters[key] = request.body
        else:
            body_members[wire] = (key, member)
        if text is not None:
            try:
                parsed.parameters[key] = scalar(member, text)
            except ValueError as error:
                parsed.wrong.append(f"{key}: {error}")
    if payload is None and request.body:
        try:
            sent = json.loads(request.body)
        except ValueError:
            raise Refused("ValidationException", "The body is no JSON", 400) from None
        for wire, item in sent.items():
            if wire not in body_members:
                parsed.unknown.append(wire)
            elif item is not None:
                key, member = body_members[wire]
                parsed.parameters[key] = _from_json(member, item, wire, parsed)
    parsed.unknown += [f"?{name}" for name in arguments] + list(headers)
    return parsed


# ---- results


def answer(service, name, result, request_id):
    """The response that carries a result: a dictionary in botocore's words."""
    found = operation(service, name)
    kind = model(service).protocol
    shape = found.output_shape
    result = {k: v for k, v in (result or {}).items() if v is not None}
    if kind in ("ec2", "query"):
        inner = xml_members(shape, result, kind) if shape is not None else ""
        return _xml_answer(service, name, shape, inner, kind, request_id)
    if kind == "json":
        body = json.dumps(_to_json(shape, result) if shape is not None else {}).encode()
        version = model(service).metadata.get("jsonVersion", "1.1")
        return Response(200, [("Content-Type", f"application/x-amz-json-{version}"),
                              ("x-amzn-RequestId", request_id)], body)
    return _rest_answer(found, result, request_id)


def _xml_answer(service, name, shape, inner, kind, request_id):
    space = model(service).metadata["xmlNamespace"]
    if kind == "ec2":
        inner = f"<requestId>{request_id}</requestId>{inner}"
    else:
        wrapper = shape.serialization.get("resultWrapper", f"{name}Result") if shape is not None else None
        inner = f"<{wrapper}>{inner}</{wrapper}>" if wrapper else ""
        inner += f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}Response xmlns="{space}">{inner}</{name}Response>'
    return Response(200, [("Content-Type", "text/xml;charset=UTF-8"), ("x-amzn-RequestId", request_id)],
                    body.encode())


def _rest_answer(found, result, request_id):
    shape = found.output_shape
    headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", request_id)]
    payload = shape.serialization.get("payload") if shape is not None else None
    body = {}
    for key, value in result.items():
        member = shape.members[key]
        if member.serialization.get("location") == "header":
            headers.append((member.serialization["name"], str(value)))
        elif key == payload:
            body = value
        else:
            body[member.serialization.get("name", key)] = _to_json(member, value)
    if isinstance(body, bytes):
        headers[0] = ("Content-Type", "application/octet-stream")
    else:
        body = json.dumps(body).encode()
    return Response(found.http.get("responseCode", 200), headers, body)


def xml_members(shape, value, kind):
    unknown = set(value) - set(shape.members)
    assert not unknown, f"{shape.name} has no {unknown}"
    return "".join(_xml(value[key], member, member.serialization.get("name", key), kind)
                   for key, member in shape.members.items() if value.get(key) is not None)


def _xml(value, shape, tag, kind):
    if shape.type_name == "structure":
        return f"<{tag}>{xml_members(shape, value, kind)}</{tag}>"
    if shape.type_name == "list":
        if shape.serialization.get("flattened"):
            return "".join(_xml(item, shape.member, tag, kind) for item in value)
        item_tag = shape.member.serialization.get("name", "item" if kind == "ec2" else "member")
        return f"<{tag}>{''.join(_xml(item, shape.member, item_tag, kind) for item in value)}</{tag}>"
    return f"<{tag}>{escape(text_of(shape, value))}</{tag}>"


def text_of(shape, value):
    if shape.type_name == "boolean":
        return "true" if value else "false"
    if shape.type_name == "timestamp":
        return timestamp(value)
    if shape.type_name == "blob":
        return base64.b64encode(value).decode()
    return str(value)


def timestamp(value):
    """ISO 8601 with milliseconds, as EC2 writes it."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


def _to_json(shape, value):
    if shape.type_name == "structure":
        unknown = set(value) - set(shape.members)
        assert not unknown, f"{shape.name} has no {unknown}"
        return {shape.members[k].serialization.get("name", k): _to_json(shape.members[k], v)
                for k, v in value.items() if v is not None}
    if shape.type_name == "list":
        return [_to_json(shape.member, item) for item in value]
    if shape.type_name == "map":
        return {key: _to_json(shape.value, item) for key, item in value.items()}
    if shape.type_name == "timestamp":
        return value.timestamp()
    if shape.type_name == "blob":
        return base64.b64encode(value).decode()
    return value


# ---- errors


def error(service, code, message, request_id, status=None, members=None):
    """The response that carries an error, in the form of the service's protocol."""
    kind = model(service).protocol
    text = escape(message)
    if kind == "ec2":
        body = (f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code>'
                f"<Message>{text}</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>")
        return Response(status or 400, [("Content-Type", "text/xml;charset=UTF-8")], body.encode())
    if kind == "query":
        space = model(service).metadata["xmlNamespace"]
        fault = "Receiver" if (status or 400) >= 500 else "Sender"
        body = (f'<ErrorResponse xmlns="{space}"><Error><Type>{fault}</Type><Code>{code}</Code>'
                f"<Message>{text}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>")
        return Response(status or 400, [("Content-Type", "text/xml")], body.encode())
    if kind == "rest-xml":
        body = (f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message>'
                f"<RequestId>{request_id}</RequestId></Error>")
        headers = [("Content-Type", "application/xml"), ("x-amz-request-id", request_id)]
        if "BucketRegion" in (members or {}):
            headers.append(("x-amz-bucket-region", members["BucketRegion"]))
        return Response(status or 400, headers, body.encode())
    headers = [("Content-Type", "application/json"), ("x-amzn-RequestId", request_id)]
    if kind == "json":
        body = {"__type": code, "message": message, **(members or {})}
    else:
        headers.append(("x-amzn-ErrorType", code))
        key = "error_description" if service == "sso-oidc" else "Message" if service == "ebs" else "message"
        body = {key: message, **(members or {})}
    return Response(status or _status(service, code), headers, json.dumps(body).encode())


def _status(service, code):
    shape = next((s for s in model(service).error_shapes if s.name == code), None)
    return (shape.metadata.get("error") or {}).get("httpStatusCode", 400) if shape is not None else 400
