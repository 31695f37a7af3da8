"""The control API under /_kiln/: what tests set, break, look at and take away. README.md lists its calls."""

import dataclasses
import json
import os

from . import ebs, objects
from .access import managed_key
from .blocks import BLOCK, ZEROS, noise
from .registry import Call
from .sts import totp
from .web import Response
from .world import AccessKey


class Wrong(Exception):
    """A control call that makes no sense."""


def control(server, request):
    """Answers one control call."""
    parts = request.path.split("/")[2:]
    function = CALLS.get((request.method, parts[0]))
    if function is None:
        known = ", ".join(sorted(f"{method} {name}" for method, name in CALLS))
        return Response.of_json({"error": f"no such control call; there are {known}"}, 404)
    try:
        return function(server, request, parts[1:])
    except (Wrong, ValueError, KeyError, TypeError) as error:
        return Response.of_json({"error": f"{type(error).__name__}: {error}"}, 400)


def _health(server, _request, _parts):
    return Response.of_json({"ready": True, "process": os.getpid(), **server.world.blocks.statistics()})


def _reset(server, _request, _parts):
    server.reset()
    return Response.of_json({})


# ---- settings


def _get_settings(server, _request, _parts):
    return Response.of_json(server.world.settings)


def _change_settings(server, request, _parts):
    changes = request.json()
    with server.world.lock:
        unknown = set(changes) - set(server.world.settings)
        if unknown:
            raise Wrong(f"no setting is called {', '.join(sorted(unknown))}")
        server.world.settings.update(changes)
    return Response.of_json(server.world.settings)


PLACE = {"encrypt", "default_key", "images_private", "snapshots_private", "opted_in", "quotas"}


def _change_place(server, request, parts):
    """POST /_kiln/place/ACCOUNT/REGION {"encrypt": true, …}"""
    account, region = parts
    changes = request.json()
    if set(changes) - PLACE:
        raise Wrong(f"a place has {', '.join(sorted(PLACE))}")
    with server.world.lock:
        place = server.world.place(account, region)
        for name, value in changes.items():
            setattr(place, name, value)
        return Response.of_json({name: getattr(place, name) for name in sorted(PLACE)})


def _change_key(server, request, parts):
    """POST /_kiln/kms/ACCOUNT/REGION/KEY {"usable": false}: KEY is an id or alias/aws/ebs with its slashes"""
    account, region, name = parts[0], parts[1], "/".join(parts[2:])
    with server.world.lock:
        place = server.world.place(account, region)
        if name == "alias/aws/ebs":
            managed_key(Call(request, "kms", region, None, "", account=account, world=server.world))
        key = place.keys[place.aliases.get(name, name)]
        for field, value in request.json().items():
            if field not in ("usable", "state", "policy"):
                raise Wrong(f"a key has no {field}")
            setattr(key, field, value)
        return Response.of_json({"arn": key.arn})


# ---- who there is


def _add_key(server, request, _parts):
    """POST /_kiln/keys {"access_key", "secret", "account", "user"}: an IAM user's key, whose signatures are checked"""
    new = request.json()
    account, user = new["account"], new.get("user", "kiln")
    with server.world.lock:
        server.world.keys[new["access_key"]] = AccessKey(
            new["access_key"], new["secret"], account, f"arn:aws:iam::{account}:user/{user}", "AIDAKILNTESTUSER00000")
    return Response.of_json({})


def _add_device(server, request, _parts):
    """POST /_kiln/mfa {"serial", "secret" (base32), "account"}"""
    new = request.json()
    totp(new["secret"], 0)
    with server.world.lock:
        server.world.devices[new["serial"]] = {key: new[key] for key in ("secret", "account") if key in new}
    return Response.of_json({})


def _code(server, request, _parts):
    """GET /_kiln/mfa?serial=…[&steps=1]: the code of this time step, or of one some steps on"""
    arguments = request.arguments()
    device = server.world.devices[arguments["serial"]]
    step = int(server.world.now().timestamp()) // 30 + int(arguments.get("steps", 0))
    return Response.of_json({"code": totp(device["secret"], step), "step": step, "used": device.get("last")})


ROLE = {"mfa", "external_id", "max_duration", "principals", "session_seconds", "web_identity"}


def _add_role(server, request, _parts):
    """POST /_kiln/roles {"arn", "mfa": true, "external_id", "max_duration", "principals": […], "session_seconds"}"""
    new = request.json()
    arn = new.pop("arn")
    if set(new) - ROLE:
        raise Wrong(f"a role has {', '.join(sorted(ROLE))}")
    with server.world.lock:
        server.world.roles[arn] = new
    return Response.of_json({})


def _expire(server, request, _parts):
    """POST /_kiln/expire {"access_key"?}: the session, or all sessions, end now"""
    wanted = request.json().get("access_key")
    with server.world.lock:
        ended = [key for key in server.world.keys.values() if key.token and wanted in (None, key.id)]
        for key in ended:
            key.expires = server.world.now()
    return Response.of_json({"ended": [key.id for key in ended]})


# ---- faults


def _get_faults(server, _request, _parts):
    return Response.of_json(server.faults.listing())


def _add_faults(server, request, _parts):
    rules = request.json()
    server.faults.add(rules if isinstance(rules, list) else [rules])
    return Response.of_json(server.faults.listing())


def _clear_faults(server, _request, _parts):
    server.faults.clear()
    return Response.of_json([])


def _halted(server, request, _parts):
    """GET /_kiln/halted?seconds=60: waits until a call was halted"""
    seconds = float(request.arguments().get("seconds", 60))
    return Response.of_json({"halted": server.faults.halted.wait(seconds)})


# ---- what happened, and what there is


def _log(server, request, _parts):
    """GET /_kiln/log[?operation=PutSnapshotBlock&region=…]: JSON lines"""
    lines = [line.encode() for line in server.journal.read(request.arguments())]
    return Response(200, [("Content-Type", "application/jsonl")], chunks=lines, length=sum(map(len, lines)))


def _clear_log(server, _request, _parts):
    server.journal.reset()
    return Response.of_json({})


def _count(server, request, _parts):
    """GET /_kiln/count: how often each operation was called"""
    counts = {}
    for line in server.journal.read(request.arguments()):
        entry = json.loads(line)
        name = f"{entry['service']}:{entry['operation']}"
        counts[name] = counts.get(name, 0) + 1
    return Response.of_json(counts)


def _state(server, _request, _parts):
    """GET /_kiln/state: everything there is, in all accounts and regions"""
    world = server.world
    with world.lock:
        places = [_place(world, place) for _, place in sorted(world.places.items())]
    places = [place for place in places if len(place) > 2]
    return Response.of_json({"places": places, "buckets": objects.listing(world)})


def _place(world, place):
    shown = {"account": place.account, "region": place.region}
    snapshots = [_snapshot(world, place, one) for one in place.snapshots.values()]
    images = [_image(one) for one in place.images.values() if not one.deregistered]
    parameters = [
        {"name": name, "coming": len(stored["coming"]), "versions": [
            {key: one[key] for key in ("Value", "Version", "Type", "DataType", "Tags")} for one in stored["versions"]]}
        for name, stored in sorted(place.parameters.items())]
    tasks = [_task(one) for one in place.tasks.values()]
    parts = {"snapshots": snapshots, "images": images, "parameters": parameters, "tasks": tasks}
    return shown | {name: value for name, value in parts.items() if value}


def _task(one):
    return {key: one[key] for key in ("id", "status", "message", "tags", "snapshot", "bucket", "size")}


def _snapshot(world, place, one):
    ebs.expire(world, one)
    users = [i.id for i in place.images.values() if one.id in i.snapshots() and not i.deregistered]
    return {
        "id": one.id, "size": one.size, "state": one.state, "sealed": one.sealed, "message": one.message,
        "description": one.description, "tags": one.tags, "encrypted": one.encrypted, "key": one.key,
        "parent": one.parent, "origin": one.origin, "written": len(one.own), "blocks": len(one.blocks), "puts": one.puts,
        "users": sorted(one.users), "public": one.public, "images": users,
    }


def _image(one):
    left_out = ("account", "region", "created", "polls", "unseen", "deregistered", "unprotected", "deprecated")
    shown = {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name not in left_out}
    return shown | {"deprecated": one.deprecated and one.deprecated.isoformat(), "public": one.public}


def _volume(server, request, parts):
    """GET /_kiln/volume/REGION/SNAPSHOT[?encrypted=1]: the bytes that an instance would find on the volume"""
    region, identifier = parts
    with server.world.lock:
        found = server.world.find("snapshots", identifier, region)
        if found is None:
            raise Wrong(f"there is no snapshot {identifier} in {region}")
        blocks, encrypted = found.blocks, found.encrypted or "encrypted" in request.arguments()
    count = found.size * (1 << 30) // BLOCK

    def chunks():
        for index in range(count):
            if index in blocks:
                yield server.world.blocks.get(blocks[index])
            else:
                yield noise(identifier, index) if encrypted else ZEROS

    return Response(200, [("Content-Type", "application/octet-stream")], chunks=chunks(), length=count * BLOCK)


CALLS = {
    ("GET", "health"): _health, ("POST", "reset"): _reset,
    ("GET", "settings"): _get_settings, ("POST", "settings"): _change_settings, ("POST", "place"): _change_place,
    ("POST", "kms"): _change_key, ("POST", "keys"): _add_key, ("POST", "mfa"): _add_device, ("GET", "mfa"): _code,
    ("POST", "roles"): _add_role, ("POST", "expire"): _expire,
    ("GET", "faults"): _get_faults, ("POST", "faults"): _add_faults, ("DELETE", "faults"): _clear_faults,
    ("GET", "halted"): _halted, ("GET", "log"): _log, ("DELETE", "log"): _clear_log, ("GET", "count"): _count,
    ("GET", "state"): _state, ("GET", "volume"): _volume,
}
