"""Which function answers which operation, and what such a function gets."""

import re
from dataclasses import dataclass, field

from . import protocol
from .protocol import Refused

HANDLERS = {}


def handles(service, *operations):
    """Registers a function `(Call) -> dict in botocore's words` for operations of a service."""

    def register(function):
        for name in operations:
            assert protocol.operation(service, name) is not None, f"{service} has no {name}"
            HANDLERS[service, name] = function
        return function

    return register


@dataclass
class Call:
    """One request to a service, understood."""

    request: object
    service: str
    region: str
    access_key: str
    request_id: str
    operation: str = None
    parameters: dict = field(default_factory=dict)
    unknown: list = field(default_factory=list)
    wrong: list = field(default_factory=list)
    account: str = None
    caller: object = None  # AccessKey
    world: object = None

    @property
    def place(self):
        """The caller's account in this region."""
        return self.world.place(self.account, self.region)

    @property
    def settings(self):
        return self.world.settings

    def get(self, name, default=None):
        return self.parameters.get(name, default)


def check_parameters(call):
    """Refuses what the service's model doesn't know, and what it requires and is missing."""
    generic = {"ec2": "UnknownParameter", "ebs": "ValidationException", "s3": "InvalidArgument"}
    generic = generic.get(call.service, "ValidationError")
    if call.unknown:
        raise Refused(generic, f"The parameter {', '.join(call.unknown)} is not recognized")
    if call.wrong:
        code = "InvalidParameterValue" if call.service == "ec2" else generic
        raise Refused(code, f"Not valid: {'; '.join(call.wrong)}")
    shape = protocol.operation(call.service, call.operation).input_shape
    missing = [name for name in (shape.required_members if shape is not None else []) if call.get(name) is None]
    if missing:
        code = "MissingParameter" if call.service == "ec2" else generic
        raise Refused(code, f"The request must contain the parameter {', '.join(missing)}")


def tags_of(call, *kinds):
    """{kind of resource: {key: value}} from TagSpecifications; other kinds than those are refused."""
    found = {kind: {} for kind in kinds}
    for one in call.get("TagSpecifications") or []:
        kind = one.get("ResourceType")
        if kind not in kinds:
            raise Refused("InvalidParameterValue", f"'{kind}' is not a valid taggable resource type for this operation.")
        if found[kind]:
            raise Refused("InvalidParameterValue", f"Duplicate TagSpecification for resource type '{kind}'.")
        found[kind] = tag_map(one.get("Tags") or [])
    return found


def tag_map(tags, existing=()):
    """{key: value} of a list of tags, checked as EC2 does."""
    found = dict(existing)
    seen = set()
    for tag in tags:
        key, value = tag.get("Key"), tag.get("Value") or ""
        if not key or len(key) > 127:
            raise Refused("InvalidParameterValue", "Tag key must be between 1 and 127 characters long")
        if len(value) > 255:
            raise Refused("InvalidParameterValue", f"Tag value exceeds the maximum length of 255 characters: {key}")
        if key.lower().startswith("aws:"):
            raise Refused("InvalidParameterValue", f"Tag keys starting with 'aws:' are reserved for internal use: {key}")
        if key in seen:
            raise Refused("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        seen.add(key)
        found[key] = value
    if len(found) > 50:
        raise Refused("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
    return found


def tag_list(tags):
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def overlooked(resource):
    """Whether a new resource isn't seen by this call yet."""
    if resource.unseen > 0:
        resource.unseen -= 1
        return True
    return False


def paged(call, items, most=1000, least=5):
    """(this page's items, NextToken): EC2's paging; the token names the place where to go on."""
    limit = call.get("MaxResults")
    if limit is not None and not least <= limit <= most:
        raise Refused("InvalidParameterValue", f"Value ( {limit} ) for parameter maxResults is invalid.")
    token = call.get("NextToken")
    if token is not None and not (token.startswith("page-") and token[5:].isdigit()):
        raise Refused("InvalidNextToken", "The token is not valid")
    start = int(token[5:]) if token else 0
    end = len(items) if limit is None else start + limit
    return items[start:end], f"page-{end}" if end < len(items) else None


def remembered(call, token_name="ClientToken"):
    """What the same client token gave before: None if it is new; refused where the parameters differ."""
    token = call.get(token_name)
    if token is None:
        return None
    if not 1 <= len(token) <= 64 or not all(33 <= ord(c) <= 126 for c in token):
        code = "ValidationException" if call.service == "ebs" else "InvalidParameterValue"
        raise Refused(code, "ClientToken must be 1 to 64 printable ASCII characters")
    known = call.place.tokens.get((call.operation, token))
    if known is None:
        return None
    if known[0] != _identity(call):
        if call.service == "ebs":
            raise Refused("ConflictException", "The request uses the same client token as a previous, but non-identical "
                          "request.")
        raise Refused("IdempotentParameterMismatch", "The client token was used with other parameters before")
    return known[1]


def remember(call, result, token_name="ClientToken"):
    """Keeps a result under its client token; gives the result back."""
    if call.get(token_name) is not None:
        call.place.tokens[call.operation, call.get(token_name)] = (_identity(call), result)
    return result


def _identity(call):
    return {key: value for key, value in call.parameters.items() if key not in ("DryRun", "PresignedUrl")}


def matches(filters, facts):
    """Whether a resource passes EC2's filters. `facts`: {filter's name: value or list of values}; tags under `tag:KEY`."""
    for one in filters or []:
        name, wanted = one.get("Name"), one.get("Values") or []
        if name.startswith("tag:") or name in facts:
            have = facts.get(name)
        else:
            raise Refused("InvalidParameterValue", f"The filter '{name}' is invalid")
        have = have if isinstance(have, (list, set)) else [] if have is None else [have]
        if not any(_like(pattern, str(value)) for pattern in wanted for value in have):
            return False
    return True


def _like(pattern, value):
    """EC2's wildcards: * and ?."""
    text = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(text, value, re.DOTALL) is not None


def tag_facts(tags):
    return {"tag-key": list(tags), **{f"tag:{key}": value for key, value in tags.items()}}
