"""Faults that tests ask for: a rule says which calls it meets and what happens to them.

A rule is a JSON object. Which calls: `service`, `operation`, `region`, `account`, `access_key` (each a name or a list of
names), `mutating` (true: only calls that change something), `parameters` (a piece of text that the parameters' JSON holds).
Which of those: `from` (the first is 1) and `times` (unbounded when absent). What happens, one of:

    {"error": "RequestLimitExceeded", "status": 503, "message": "…"}
    {"throttle": true}         the service's own code for it
    {"internal": 500}          an internal error with this status
    {"deny": true}             the caller may not do this; a DryRun is told the same
    {"reset": true}            the connection is reset
    {"hang": 30}               nothing happens for so many seconds, then the connection is reset
    {"delay": 0.2}             the call takes longer
    {"expire": true}           the session has ended
    {"halt": true}             this call and all that follow get no answer until the rules are cleared: the caller is
                               meant to be killed (`/_kiln/halted` waits until it has come to that)

With `"after": true` the call is carried out and then the fault comes: the answer is lost, not the effect.
"""

import json
import threading
import time

from .web import HangUp

READING = ("Describe", "Get", "List", "Head")
THROTTLES = {
    "ec2": ("RequestLimitExceeded", 503, "Request limit exceeded."),
    "ebs": ("RequestThrottledException", 400, "The request was throttled"),
    "ssm": ("ThrottlingException", 400, "Rate exceeded"),
    "kms": ("ThrottlingException", 400, "Rate exceeded"),
    "sts": ("Throttling", 400, "Rate exceeded"),
    "s3": ("SlowDown", 503, "Please reduce your request rate."),
}
INTERNAL = {
    "ec2": {500: "InternalError", 503: "Unavailable"},
    "ebs": {500: "InternalServerException", 503: "ServiceUnavailable"},
    "ssm": {500: "InternalServerError", 503: "ServiceUnavailable"},
    "s3": {500: "InternalError", 503: "ServiceUnavailable"},
}
EXPIRED = {
    "ec2": ("RequestExpired", 400, "Request has expired."),
    "ebs": ("ExpiredTokenException", 403, "The security token included in the request is expired"),
    "s3": ("ExpiredToken", 400, "The provided token has expired."),
    "sts": ("ExpiredToken", 403, "The security token included in the request is expired"),
}
EXPIRED_ELSEWHERE = ("ExpiredTokenException", 400, "The security token included in the request is expired")


class Fault(Exception):
    """An error to answer with instead of the call's result."""

    def __init__(self, code, status, message, members=None):
        super().__init__(message)
        self.code, self.status, self.message, self.members = code, status, message, members


def mutating(operation):
    return not operation.startswith(READING)


def denied(call):
    """How a service says that the caller may not do this."""
    who = call.caller.arn if call.caller else "anonymous"
    what = f"{call.service}:{call.operation}"
    if call.service == "ec2":
        return Fault("UnauthorizedOperation", 403,
                     f"You are not authorized to perform this operation. User: {who} is not authorized to perform: "
                     f"{what} because no identity-based policy allows the {what} action")
    message = f"User: {who} is not authorized to perform: {what} because no identity-based policy allows the action"
    if call.service in ("s3", "sts", "iam"):
        return Fault("AccessDenied", 403, message)
    return Fault("AccessDeniedException", 403 if call.service == "ebs" else 400, message,
                 {"Reason": "UNAUTHORIZED_ACCOUNT"} if call.service == "ebs" else None)


class Faults:
    """The rules in force, and how often each was met."""

    def __init__(self):
        self.lock = threading.Lock()
        self.rules = []
        self.halted = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def add(self, rules):
        with self.lock:
            for rule in rules:
                if not isinstance(rule, dict):
                    raise ValueError("a rule is a JSON object")
                unknown = set(rule) - MATCHED - ACTIONS - {"after", "from", "times", "status", "message", "name"}
                if unknown:
                    raise ValueError(f"a rule has no {', '.join(sorted(unknown))}")
                if len(ACTIONS & set(rule)) != 1:
                    raise ValueError(f"a rule has one of {', '.join(sorted(ACTIONS))}")
                self.rules.append({"rule": rule, "seen": 0, "met": 0})

    def clear(self):
        """No more rules; who is held back is let go (to a closed connection)."""
        with self.lock:
            self.rules = []
            self.halted.clear()
            self.released.set()

    def listing(self):
        with self.lock:
            return [{**r["rule"], "seen": r["seen"], "met": r["met"]} for r in self.rules]

    def met(self, call):
        """The rule that this call meets, if any."""
        if not self.released.is_set():
            return HELD
        if not self.rules:
            return None
        with self.lock:
            found = None
            for entry in self.rules:
                rule = entry["rule"]
                if not _matches(rule, call):
                    continue
                entry["seen"] += 1
                turn = entry["seen"] - rule.get("from", 1)
                if found is None and 0 <= turn < rule.get("times", float("inf")):
                    entry["met"] += 1
                    found = rule
                    if "halt" in rule:
                        self.released.clear()
            return found

    def strike(self, rule, call):
        """What the rule does."""
        if "delay" in rule:
            time.sleep(rule["delay"])
        elif "halt" in rule:
            self.hold()
        elif "hang" in rule:
            self._sleep(rule["hang"])
            raise HangUp
        elif "reset" in rule:
            raise HangUp
        elif "deny" in rule:
            raise denied(call)
        elif "expire" in rule:
            raise expired(call.service)
        elif "throttle" in rule:
            raise throttled(call.service)
        elif "internal" in rule:
            status = rule["internal"]
            code = INTERNAL.get(call.service, INTERNAL["ec2"]).get(status, "InternalError")
            raise Fault(code, status, rule.get("message", "An internal error has occurred"))
        else:
            raise Fault(rule["error"], rule.get("status"), rule.get("message", "injected"))

    def _sleep(self, seconds):
        """Sleeps, but not past the rules' end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.rules:
            time.sleep(min(0.1, max(0, until - time.monotonic())))

    def hold(self):
        """Keeps a call until the rules are cleared, then drops its connection."""
        self.halted.set()
        self.released.wait()
        raise HangUp


ACTIONS = {"error", "throttle", "internal", "deny", "reset", "hang", "delay", "expire", "halt"}
HELD = {"halt": True}
MATCHED = {"service", "operation", "region", "account", "access_key", "mutating", "parameters"}


def throttled(service):
    code, status, message = THROTTLES.get(service, THROTTLES["ssm"])
    return Fault(code, status, message, {"Reason": "ACCOUNT_THROTTLED"} if service == "ebs" else None)


def expired(service):
    return Fault(*EXPIRED.get(service, EXPIRED_ELSEWHERE))


def _matches(rule, call):
    for name in ("service", "operation", "region", "account", "access_key"):
        if name in rule:
            wanted = rule[name] if isinstance(rule[name], list) else [rule[name]]
            if getattr(call, name) not in wanted:
                return False
    if "mutating" in rule and rule["mutating"] != mutating(call.operation):
        return False
    shown = {key: value for key, value in call.parameters.items() if not isinstance(value, bytes)}
    return "parameters" not in rule or rule["parameters"] in json.dumps(shown, default=str)
