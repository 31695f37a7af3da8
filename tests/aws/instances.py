"""Instances, as far as they keep an image in use: run, describe, terminate."""

from . import images
from .protocol import Refused
from .registry import handles, matches, paged, tag_facts, tag_list, tags_of


@handles("ec2", "RunInstances")
def run_instances(call):
    image = images.lookup(call, call.get("ImageId") or "")
    if image.state != "available":
        raise Refused("InvalidAMIID.Unavailable", f"The image ID '{image.id}' is {image.state}, not available")
    tags = tags_of(call, "instance", "volume")["instance"]
    rows = []
    for _ in range(call.get("MinCount")):
        identifier = call.world.new_id("i")
        call.place.instances[identifier] = {"id": identifier, "image": image.id, "state": "running", "tags": tags,
                                            "type": call.get("InstanceType") or "m1.small", "at": call.world.now()}
        rows.append(_shown(call.place.instances[identifier]))
    return {"Instances": rows, "OwnerId": call.account, "ReservationId": call.world.new_id("r")}


CODES = {"running": 16, "stopped": 80, "terminated": 48}


def _shown(one):
    return {"InstanceId": one["id"], "ImageId": one["image"], "InstanceType": one["type"], "LaunchTime": one["at"],
            "State": {"Name": one["state"], "Code": CODES[one["state"]]}, "Tags": tag_list(one["tags"])}


@handles("ec2", "DescribeInstances")
def describe_instances(call):
    asked = call.get("InstanceIds")
    if asked and call.get("MaxResults") is not None:
        raise Refused("InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter "
                      "maxResults")
    rows = []
    for identifier in asked or sorted(call.place.instances):
        one = _instance(call, identifier)
        facts = {"image-id": one["image"], "instance-id": identifier, "instance-state-name": one["state"],
                 "instance-type": one["type"], **tag_facts(one["tags"])}
        if matches(call.get("Filters"), facts):
            rows.append({"ReservationId": f"r-{identifier[2:]}", "OwnerId": call.account, "Instances": [_shown(one)]})
    rows, token = paged(call, rows)
    return {"Reservations": rows, "NextToken": token}


def _instance(call, identifier):
    if identifier not in call.place.instances:
        raise Refused("InvalidInstanceID.NotFound", f"The instance ID '{identifier}' does not exist")
    return call.place.instances[identifier]


@handles("ec2", "TerminateInstances", "StopInstances")
def end_instances(call):
    found = [_instance(call, identifier) for identifier in call.get("InstanceIds")]
    state = "terminated" if call.operation.startswith("Terminate") else "stopped"
    changes = []
    for one in found:
        changes.append({"InstanceId": one["id"], "PreviousState": _shown(one)["State"]})
        one["state"] = state
        changes[-1]["CurrentState"] = _shown(one)["State"]
    return {"TerminatingInstances" if state == "terminated" else "StoppingInstances": changes}
