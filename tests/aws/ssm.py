"""SSM's parameters. Those of data type aws:ec2:image are checked after the answer, and not stored when there is no image."""

import copy
import fnmatch
import re

from .protocol import Refused
from .registry import handles

NAME = re.compile(r"(/?[a-zA-Z0-9_.-]+)(/[a-zA-Z0-9_.-]+){0,14}")
TYPES = ("String", "StringList", "SecureString")


@handles("ssm", "PutParameter")
def put_parameter(call):
    name, value, kind = call.get("Name"), call.get("Value"), call.get("Type")
    data_type = call.get("DataType") or "text"
    _check(name, value, kind, data_type, call.get("AllowedPattern"))
    stored = call.place.parameters.get(name)
    current = stored and _settle(call, stored)
    if current is None:
        if kind is None:
            raise Refused("ValidationException", "A parameter type is required when you create a parameter.")
    else:
        _check_overwrite(call, current, kind, data_type)
    version = (stored["last"] if stored else 0) + 1
    tags = {tag["Key"]: tag["Value"] for tag in call.get("Tags") or []}
    new = {
        "Name": name, "Type": kind or current["Type"], "Value": value, "Version": version, "DataType": data_type,
        "LastModifiedDate": call.world.now(), "Description": call.get("Description"), "Tier": call.get("Tier") or "Standard",
        "AllowedPattern": call.get("AllowedPattern"), "LastModifiedUser": call.caller.arn,
        "Tags": tags or (current["Tags"] if current else {}),
    }
    if stored is None:
        stored = call.place.parameters[name] = {"versions": [], "coming": [], "last": 0}
    stored["last"] = version
    if data_type == "aws:ec2:image":
        stored["coming"].append({"parameter": new, "polls": call.settings["parameter_polls"]})
    else:
        stored["versions"].append(new)
    return {"Version": version, "Tier": new["Tier"]}


def _check(name, value, kind, data_type, pattern):
    if not NAME.fullmatch(name) or len(name) > 1011 or ("/" in name and not name.startswith("/")):
        raise Refused("ValidationException", f"Parameter name: {name} must be a fully qualified name, of at most 15 levels "
                      "of letters, digits and .-_")
    if re.match(r"/?(aws|ssm)", name, re.IGNORECASE):
        raise Refused("ValidationException", 'Parameter name: can\'t be prefixed with "aws" or "ssm" (case-insensitive).')
    if kind not in (None, *TYPES):
        raise Refused("UnsupportedParameterType", f"The parameter type {kind} is not supported")
    if data_type not in ("text", "aws:ec2:image", "aws:ssm:integration"):
        raise Refused("ValidationException", f"The data type {data_type} is not supported")
    if not 1 <= len(value) <= 4096:
        raise Refused("ValidationException", "Standard tier parameters support a maximum parameter value of 4096 "
                      "characters, and at least one.")
    if data_type == "aws:ec2:image" and kind not in (None, "String"):
        raise Refused("ValidationException", "Parameters of data type aws:ec2:image are of type String")
    if data_type == "aws:ec2:image" and not re.fullmatch(r"ami-[0-9a-f]{8}([0-9a-f]{9})?", value):
        raise Refused("ValidationException", f"Parameter value {value} must be an image ID such as ami-12345abcdeEXAMPLE")
    if pattern is not None and not re.fullmatch(pattern, value):
        raise Refused("ParameterPatternMismatchException", "The value does not match the allowed pattern")


def _check_overwrite(call, current, kind, data_type):
    if not call.get("Overwrite"):
        raise Refused("ParameterAlreadyExists", "The parameter already exists. To overwrite this value, set the overwrite "
                      "option in the request to true.")
    if call.get("Tags"):
        raise Refused("ValidationException", "Invalid request: tags and overwrite can't be used together. To create a "
                      "parameter with tags, please remove overwrite flag. To update tags for an existing parameter, please "
                      "use AddTagsToResource or RemoveTagsFromResource.")
    if kind not in (None, current["Type"]):
        raise Refused("HierarchyTypeMismatchException", "The parameter's type can't be changed")
    if data_type != current["DataType"]:
        raise Refused("ValidationException", f"The data type of an existing parameter can't be changed from "
                      f"{current['DataType']} to {data_type}")


def _settle(call, stored, look=False):
    """The parameter as it is now, or None. `look` counts as a poll: what is being checked comes nearer."""
    for coming in list(stored["coming"]):
        if look:
            coming["polls"] -= 1
        if coming["polls"] < 0:
            stored["coming"].remove(coming)
            image = call.world.find("images", coming["parameter"]["Value"], call.region)
            if image is not None and not image.deregistered and image.state == "available":
                stored["versions"].append(coming["parameter"])
    return stored["versions"][-1] if stored["versions"] else None


def _read(call, name):
    name, _, selector = name.partition(":")
    stored = call.place.parameters.get(_plain(name))
    found = stored and _settle(call, stored, look=True)
    if found and selector.isdigit():
        found = next((v for v in stored["versions"] if v["Version"] == int(selector)), None)
    return found


def _plain(name):
    return name.split(":parameter", 1)[1] if name.startswith("arn:") else name


def _shown(call, one):
    slash = "" if one["Name"].startswith("/") else "/"
    arn = f"arn:aws:ssm:{call.region}:{call.account}:parameter{slash}{one['Name']}"
    shown = {key: one[key] for key in ("Name", "Type", "Value", "Version", "LastModifiedDate", "DataType")}
    return {**shown, "ARN": arn}


@handles("ssm", "GetParameter")
def get_parameter(call):
    found = _read(call, call.get("Name"))
    if not found:
        raise Refused("ParameterNotFound", f"Parameter {call.get('Name')} not found.")
    return {"Parameter": _shown(call, found)}


@handles("ssm", "GetParameters")
def get_parameters(call):
    if not 1 <= len(call.get("Names")) <= 10:
        raise Refused("ValidationException", "1 to 10 names can be asked for at once")
    found = {name: _read(call, name) for name in call.get("Names")}
    return {"Parameters": [_shown(call, one) for one in found.values() if one],
            "InvalidParameters": [name for name, one in found.items() if not one]}


@handles("ssm", "GetParametersByPath")
def get_parameters_by_path(call):
    path = call.get("Path").rstrip("/") + "/"
    rows = []
    for name in sorted(call.place.parameters):
        below = name.startswith(path) and (call.get("Recursive") or "/" not in name[len(path):])
        found = _read(call, name) if below else None
        if found:
            rows.append(_shown(call, found))
    rows, token = _page(call, rows)
    return {"Parameters": rows, "NextToken": token}


def _page(call, rows):
    """SSM pages by 10 unless asked for fewer (50 where it describes)."""
    limit = min(call.get("MaxResults") or 10, 50)
    start = int(call.get("NextToken") or 0)
    return rows[start:start + limit], str(start + limit) if start + limit < len(rows) else None


@handles("ssm", "GetParameterHistory")
def get_parameter_history(call):
    stored = call.place.parameters.get(call.get("Name"))
    if not (stored and _settle(call, stored, look=True)):
        raise Refused("ParameterNotFound", f"Parameter {call.get('Name')} not found.")
    rows = [{key: value for key, value in copy.copy(one).items() if key != "Tags"} for one in stored["versions"]]
    rows, token = _page(call, rows)
    return {"Parameters": rows, "NextToken": token}


@handles("ssm", "DescribeParameters")
def describe_parameters(call):
    rows = []
    for name in sorted(call.place.parameters):
        one = _read(call, name)
        if one and all(_passes(one, f) for f in call.get("ParameterFilters") or []):
            keys = ("Name", "Type", "LastModifiedDate", "LastModifiedUser", "Description", "Version", "Tier", "DataType")
            rows.append({key: one[key] for key in keys})
    rows, token = _page(call, rows)
    return {"Parameters": rows, "NextToken": token}


def _passes(one, wanted):
    key, option, values = wanted["Key"], wanted.get("Option") or "Equals", wanted.get("Values") or []
    if key.startswith("tag:"):
        return one["Tags"].get(key[4:]) in values
    have = one.get(key, "")
    if option == "BeginsWith" or key == "Path":
        return any(have.startswith(value) for value in values)
    if option == "Contains":
        return any(fnmatch.fnmatch(have, f"*{value}*") for value in values)
    return have in values


@handles("ssm", "DeleteParameter", "DeleteParameters")
def delete_parameter(call):
    names = call.get("Names") or [call.get("Name")]
    gone = [name for name in names if _delete(call, name)]
    if call.operation == "DeleteParameters":
        return {"DeletedParameters": gone, "InvalidParameters": [name for name in names if name not in gone]}
    if not gone:
        raise Refused("ParameterNotFound", f"Parameter {names[0]} not found.")
    return {}


def _delete(call, name):
    stored = call.place.parameters.pop(name, None)
    return bool(stored and stored["versions"])


@handles("ssm", "AddTagsToResource", "RemoveTagsFromResource", "ListTagsForResource")
def parameter_tags(call):
    stored = call.place.parameters.get(call.get("ResourceId"))
    current = stored and _settle(call, stored)
    if call.get("ResourceType") != "Parameter" or not current:
        raise Refused("InvalidResourceId", "The resource does not exist")
    if call.operation.startswith("Add"):
        current["Tags"].update({tag["Key"]: tag["Value"] for tag in call.get("Tags")})
    elif call.operation.startswith("Remove"):
        for key in call.get("TagKeys"):
            current["Tags"].pop(key, None)
    else:
        return {"TagList": [{"Key": key, "Value": value} for key, value in sorted(current["Tags"].items())]}
    return {}
