"""Checks a log of requests against botocore's service models: what was really sent is what AWS's own models allow.

    scripts/aws-local --python -m aws.wire validate LOG…     each request's members exist, and have the right types, values
                                                             and lengths; nothing required is missing
    scripts/aws-local --python -m aws.wire members LOG…      which members of which operations were ever sent

LOG is a file that `--log` wrote or that GET /_kiln/log gave; "-" is standard input. A request that the emulator was told to
answer with a fault is checked as well: what was sent doesn't depend on the answer.
"""

import json
import re
import sys
from functools import lru_cache

from botocore.validate import ParamValidator

from . import protocol


def problems(entry):
    """What is wrong with one logged request: a list of texts."""
    name = f"{entry.get('service')}:{entry.get('operation')}"
    model = protocol.operation(entry["service"], entry["operation"]) if entry.get("operation") else None
    if model is None:
        return [f"{entry.get('method')} {entry.get('path')} is no operation of {entry.get('service')}"]
    found = [f"{name} has no member {one}" for one in entry.get("unknown", [])]
    found += [f"{name}: {one}" for one in entry.get("wrong", [])]
    parameters = {key: value for key, value in entry["parameters"].items() if value is not None}
    shape = model.input_shape
    if shape is None:
        return found
    report = ParamValidator().validate(parameters, shape)
    if report.has_errors():
        found += [f"{name}: {line}" for line in report.generate_report().splitlines()]
    else:
        found += [f"{name}: {one}" for one in _values(shape, parameters, "")]
    return found


@lru_cache(maxsize=None)
def _pattern(text):
    """A model's pattern as Python has it; None where Java's dialect is another."""
    try:
        return re.compile(text)
    except re.error:
        return None


def _values(shape, value, where):
    """What botocore doesn't check: enumerations, patterns, the largest lengths and numbers."""
    kind = shape.type_name
    if kind == "structure":
        for key, inner in value.items():
            yield from _values(shape.members[key], inner, f"{where}.{key}".lstrip("."))
    elif kind == "list":
        yield from _range(shape, len(value), where, "items")
        for number, inner in enumerate(value):
            yield from _values(shape.member, inner, f"{where}[{number}]")
    elif kind == "map":
        for key, inner in value.items():
            yield from _values(shape.value, inner, f"{where}.{key}")
    elif kind == "string" and isinstance(value, str):
        allowed = shape.metadata.get("enum")
        if allowed and value not in allowed:
            yield f"{where} is {value!r}, none of {', '.join(allowed)}"
        yield from _range(shape, len(value), where, "characters")
        pattern = shape.metadata.get("pattern")
        compiled = pattern and _pattern(pattern)
        if compiled and not compiled.search(value):
            yield f"{where} is {value!r}, which {pattern} doesn't match"
    elif kind in ("integer", "long", "float", "double"):
        yield from _range(shape, value, where, "in value")


def _range(shape, size, where, what):
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < least:
        yield f"{where} has {size} {what}, at least {least} are needed"
    if most is not None and size > most:
        yield f"{where} has {size} {what}, at most {most} are allowed"


def paths(value, where=""):
    """The members that a request holds: `BlockDeviceMappings[].Ebs.SnapshotId`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{where}[]")
        if not value:
            yield f"{where}[]"
    else:
        yield where


def entries(names):
    for name in names:
        with sys.stdin if name == "-" else open(name, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)


def validate(names):
    """Prints each kind of problem once, with the number of the first request that has it."""
    count, seen = 0, {}
    for entry in entries(names):
        count += 1
        for text in problems(entry):
            seen.setdefault(text, []).append(entry.get("number"))
    for text, numbers in seen.items():
        print(f"{text} (request {numbers[0]}{f' and {len(numbers) - 1} more' if len(numbers) > 1 else ''})")
    if not count:
        print("the log is empty")
    print(f"{count} requests, {len(seen)} kinds of problems", file=sys.stderr)
    return 1 if seen or not count else 0


def members(names):
    """Prints `service:Operation member` for each member that was sent, sorted."""
    sent = set()
    for entry in entries(names):
        if entry.get("operation"):
            name = f"{entry['service']}:{entry['operation']}"
            sent.add(name)
            sent.update(f"{name} {path}" for path in paths(entry["parameters"]))
    print("\n".join(sorted(sent)))
    return 0


def main():
    commands = {"validate": validate, "members": members}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    return commands[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
