"""What a machine asks for its credentials: EC2's metadata service (version 2) and the containers' endpoint."""

import secrets

from .registry import Call
from .sts import machine_credentials
from .web import Response
from .world import OWN_ACCOUNT

ROLE = {"name": "kiln-machine", "account": OWN_ACCOUNT}
_tokens = set()
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"


def is_machine(request):
    return request.path.startswith("/latest/") or request.path == "/container-credentials"


def metadata(server, request):
    """Answers the metadata service's calls; a token must have been asked for."""
    if request.path == "/latest/api/token" and request.method == "PUT":
        if "x-aws-ec2-metadata-token-ttl-seconds" not in request.headers:
            return Response(400)
        _tokens.add(token := secrets.token_urlsafe(24))
        lasting = request.headers["x-aws-ec2-metadata-token-ttl-seconds"]
        return Response(200, [("x-aws-ec2-metadata-token-ttl-seconds", lasting)], token.encode())
    if request.path == "/container-credentials":
        return _credentials(server, request)
    if request.headers.get("x-aws-ec2-metadata-token") not in _tokens:
        return Response(401)
    if request.path == CREDENTIALS:
        return Response(200, [("Content-Type", "text/plain")], ROLE["name"].encode())
    if request.path == CREDENTIALS + ROLE["name"]:
        return _credentials(server, request)
    if request.path == "/latest/meta-data/placement/region":
        return Response(200, [("Content-Type", "text/plain")], b"us-east-1")
    return Response(404)


def _credentials(server, request):
    with server.world.lock:
        call = Call(request, "sts", "us-east-1", None, "", world=server.world)
        return Response(200, [("Content-Type", "application/json")], machine_credentials(server.world, ROLE, call))
