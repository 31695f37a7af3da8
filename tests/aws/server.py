"""The strict local AWS: reads its arguments, takes requests, and sends each through the same steps.

    python -m aws.server [--port PORT] [--state FOLDER] [--log FILE] [--with-parent]
"""

import argparse
import os
import pickle
import shutil
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from pathlib import Path
from urllib.parse import parse_qsl

from . import identity, leftovers, protocol, s3_wire, web
from .blocks import Blocks
from .control import control
from .faults import Fault, Faults, throttled
from .journal import Journal
from .machine import is_machine, metadata
from .objects import Files
from .protocol import Refused
from .quota import Quotas
from .registry import HANDLERS, Call, check_parameters
from .web import HangUp, Response
from .world import BY_CHOICE, OWN_ACCOUNT, World

# Registering their handlers is what these are imported for.
from . import access, ebs, images, imports, instances, objects, snapshots, ssm, sts  # noqa: F401  isort: skip

# Calls that nobody signs, and the service that they are for.
UNSIGNED_ACTIONS = {"AssumeRoleWithWebIdentity": "sts"}
UNSIGNED_PATHS = {"/federation/credentials": "sso", "/token": "sso-oidc"}


class Server:
    """Everything that a request meets."""

    def __init__(self, folder, log=None):
        self.world = World(Blocks(folder), Files(folder))
        self.faults = Faults()
        self.quotas = Quotas(lambda: self.world.settings)
        self.journal = Journal(folder, log)
        self.number = 0
        self.url = ""

    def reset(self):
        self.faults.clear()
        self.quotas.reset()
        self.journal.reset()
        self.world.reset()

    # ---- one request

    def handle(self, request):
        """The answer to a request. HangUp where there is none."""
        if request.path.startswith("/_kiln/"):
            return control(self, request)
        if is_machine(request):
            return metadata(self, request)
        self.number += 1
        call, signed = self.understand(request)
        started, before = self.world.now(), time.perf_counter()
        outcome = {}
        try:
            return self.answer(call, signed, outcome)
        except HangUp:
            outcome["status"] = 0
            raise
        finally:
            self.journal.add(call, started, time.perf_counter() - before, outcome)

    def understand(self, request):
        """(the call as far as it can be told before it is parsed, the matched signature)."""
        signed = identity.scope(request)
        if signed:
            service, region, key = protocol.SIGNING.get(signed[4], signed[4]), signed[3], signed[1]
        else:
            action = dict(parse_qsl(request.body.decode("latin-1"))).get("Action") if len(request.body) < 65536 else None
            service = UNSIGNED_PATHS.get(request.path) or UNSIGNED_ACTIONS.get(action) or "s3"
            region, key = "us-east-1", None
        call = Call(request, service, region, key, f"{self.number:08x}-0000-4000-8000-000000000000", world=self.world)
        return call, signed

    def answer(self, call, signed, outcome):
        """Runs the steps and turns what they raise into the service's own errors."""
        try:
            response = self.steps(call, signed, outcome)
            outcome.setdefault("status", response.status)
            return response
        except (Refused, Fault) as error:
            if isinstance(error, Fault):
                outcome["fault"] = True
            response = protocol.error(call.service if call.service in protocol.SIGNING.values() else "ec2", error.code,
                                      error.message, call.request_id, error.status, error.members)
            outcome |= {"error": error.code, "message": error.message, "status": response.status}
            return response
        except HangUp:
            raise
        except Exception as error:  # a fault of the emulator's own: it must be seen, but not end the server
            traceback.print_exc()
            outcome |= {"error": "EmulatorFailed", "message": repr(error), "status": 500}
            return protocol.error("ec2", "EmulatorFailed", repr(error), call.request_id, 500)

    def steps(self, call, signed, outcome):
        """Understand, admit, break, carry out."""
        self.parse(call)
        if call.region in self.world.settings["regions_down"]:
            outcome["fault"] = True
            raise HangUp
        self.admit(call, signed)
        rule = self.faults.met(call)
        if rule:
            outcome["fault"] = True
            if not rule.get("after"):
                self.faults.strike(rule, call)
        if not self.quotas.take(call):
            raise throttled(call.service)
        try:
            response = self.carry_out(call)
        except Refused as refused:
            if not rule or not rule.get("after"):
                raise
            outcome |= {"carried_out": refused.code}
            response = None
        if rule and rule.get("after"):
            outcome.setdefault("carried_out", "yes")
            self.faults.strike(rule, call)
            if response is None:
                raise Refused(outcome["carried_out"], "as carried out")
        return response

    def parse(self, call):
        if call.service not in protocol.SIGNING.values():
            raise Refused("UnsupportedOperation", f"The local AWS has no service {call.service}", 501)
        parsed = s3_wire.parse(call.request) if call.service == "s3" else protocol.parse(call.service, call.request)
        if parsed is None:
            raise Refused("InvalidAction" if call.service in ("ec2", "sts", "iam") else "UnknownOperationException",
                          f"No operation of {call.service} is asked for by this request")
        call.operation, call.parameters = parsed.operation, parsed.parameters
        call.unknown, call.wrong = parsed.unknown, parsed.wrong

    def admit(self, call, signed):
        """Who calls, and whether the region is one of theirs."""
        if not signed:
            call.account = OWN_ACCOUNT
            if (call.service, call.operation) not in UNSIGNED:
                raise Fault("MissingAuthenticationToken", 403, "The request must contain a signature")
            return
        with self.world.lock:
            call.caller = identity.caller(self.world, call, signed)
            call.account = call.caller.account
            closed = call.region in BY_CHOICE and not call.place.opted_in
        if call.region not in self.world.regions() and call.service != "iam":
            raise HangUp  # there is no such host
        if closed and call.service in ("ec2", "ebs", "ssm", "kms"):
            raise identity.invalid(call.service)

    def carry_out(self, call):
        handler = HANDLERS.get((call.service, call.operation))
        if handler is None:
            raise Refused("UnsupportedOperation", f"The local AWS does not know {call.service}:{call.operation}", 501)
        check_parameters(call)
        if call.get("DryRun"):
            raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        if call.operation in UNLOCKED:
            result = handler(call)
        else:
            with self.world.lock:
                result = handler(call)
        if isinstance(result, Response):
            return result
        if call.service == "s3":
            return s3_wire.answer(call.operation, result, call.request_id)
        return protocol.answer(call.service, call.operation, result, call.request_id)

    # ---- what is kept between runs

    def save(self, folder):
        kept = {"world": self.world.kept(), "blocks": self.world.blocks.kept()}
        new = Path(folder) / "world.new"
        new.write_bytes(pickle.dumps(kept))
        new.rename(Path(folder) / "world")

    def load(self, folder):
        path = Path(folder) / "world"
        if path.exists():
            kept = pickle.loads(path.read_bytes())
            self.world.restore(kept["world"])
            self.world.blocks.restore(kept["blocks"])


# Handlers that move many bytes: they take the lock for as long as they need it.
UNLOCKED = {"PutSnapshotBlock", "PutObject", "UploadPart", "GetObject"}
UNSIGNED = {("sts", "AssumeRoleWithWebIdentity"), ("sso", "GetRoleCredentials"), ("sso-oidc", "CreateToken")}


# ---- the process


def arguments():
    parser = argparse.ArgumentParser(prog="aws-local", description="A strict local AWS on the loopback interface.")
    parser.add_argument("--port", type=int, default=4599, help="0: one that is free; the first line of output says which")
    parser.add_argument("--state", metavar="FOLDER", help="keep everything here between runs")
    parser.add_argument("--log", metavar="FILE", help="append each request as a line of JSON")
    parser.add_argument("--with-parent", action="store_true",
                        help="end when the parent process ends, or when standard input (a pipe) is closed")
    return parser.parse_args()


def main():
    asked = arguments()
    temporary = None
    if asked.state:
        folder = Path(asked.state)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        temporary = folder = leftovers.new_folder()
    try:
        server = Server(folder, asked.log)
        if asked.state:
            server.load(folder)
        run(server, asked)
        if asked.state:
            server.save(folder)
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    # Threads that wait for a caller would keep the process.
    sys.stdout.flush()
    os._exit(0)


def run(server, asked):
    """Serves until a signal, or the parent's end."""
    listener = socket.create_server(("127.0.0.1", asked.port), backlog=512)
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    if asked.with_parent:
        _follow_parent(done)
    threading.Thread(target=web.serve, args=(listener, server.handle, set()), daemon=True).start()
    print(server.url, flush=True)
    # Models are large: whoever comes first needn't wait for them.
    threading.Thread(target=lambda: [protocol.model(s) for s in ("ec2", "ebs", "ssm", "sts", "s3")], daemon=True).start()
    while not done.wait(0.5):
        pass
    listener.close()


def _follow_parent(done):
    """Watches the parent, and standard input where that is a pipe. (Not PR_SET_PDEATHSIG: that follows the thread that
    started this process, and a test's thread ends before its process.)"""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.3)
        done.set()

    def read():
        while os.read(0, 4096):
            pass
        done.set()

    threading.Thread(target=watch, daemon=True).start()
    if stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode):
        threading.Thread(target=read, daemon=True).start()


if __name__ == "__main__":
    main()
