"""What the contract says in words and schemas cannot: fills it into generated requests.

Schemathesis draws each parameter by itself. Names of connections, tickets and cursors are given
out by the service, and a drawn one is refused, so valid requests get real ones here; and where the
document says that exactly one group of parameters is used (`x-exactly-one-of`), the rest is taken
out. Requests that are meant to be wrong stay as they were drawn.
"""

import collections
import itertools
import json
import os
import re
from urllib.parse import parse_qs, urlsplit

import requests
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.parameters import ParameterLocation

TOKEN = os.environ["CONTRACT_TOKEN"]
# Streams held at a time for requests that act on one; an older one leaves.
HELD = 8
# Fewer rooms than a connection may have and a ticket can name, however long their names are.
MOST_ROOMS = 8

# What lists of names in a query are made of.
NAMES = {
    "blog_id": re.compile(r"[A-Za-z0-9._~:@|+-]{1,128}"),
    "room": re.compile(r"[a-z][a-z0-9_-]{0,31}:[A-Za-z0-9._~:@|+-]{1,128}"),
}

turns = collections.defaultdict(itertools.count)


def every_other(what):
    """True for every second call with the same argument, so that a run is repeatable."""
    return next(turns[what]) % 2 == 0


class Stream:
    """An open stream, and what `connected` says of it."""

    held = collections.deque()
    staying = []

    def __init__(self, base, member, **more):
        headers = {"Accept": "text/event-stream"}
        if member:
            headers["Authorization"] = f"Bearer {TOKEN}"
        body = {"rooms": ["blog:1", "match:12"], "watch": ["blog:2"], **more}
        self.response = requests.post(
            f"{base}/v1/join", json=body, headers=headers, stream=True, timeout=10
        )
        self.response.raise_for_status()
        # Kept, since the stream is closed with the iterator.
        self.lines = self.response.iter_lines(chunk_size=1, decode_unicode=True)
        connected = next(line for line in self.lines if line.startswith("data: "))
        told = json.loads(connected.removeprefix("data: "))
        self.connection, self.ticket = told["connection"], told["ticket"]

    @classmethod
    def open(cls, base, member=True):
        stream = cls(base, member)
        cls.held.append(stream)
        if len(cls.held) > HELD:
            cls.held.popleft().response.close()
        return stream


def is_valid(case, location):
    """True where this part of the request is not meant to be wrong."""
    component = case.meta.components.get(location) if case.meta else None
    return component is None or component.mode.is_positive


@schemathesis.hook
def after_load_schema(context, schema):
    """Readers who stay, so that lists and counts are not empty."""
    base = schema.config.base_url.rstrip("/")
    for _ in range(3):
        Stream.staying.append(Stream(base, member=False, rooms=[f"blog:{n}" for n in range(4)]))
    Stream.staying.append(Stream(base, member=False, viewer="reader-1"))
    Stream.staying.append(Stream(base, member=True))


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether a failure is one.

    A number in the place of a name is the name's text once it stands in a query: what is meant to
    be wrong is not, and is rightly accepted.
    """
    if not isinstance(failure, AcceptedNegativeData) or not case.meta:
        return True
    mutations = getattr(case.meta.phase.data, "mutations", None) or []
    if not mutations or {mutation.parameter for mutation in mutations} - set(NAMES):
        return True
    query = parse_qs(urlsplit(response.request.url).query, keep_blank_values=True)
    return not all(
        NAMES[name].fullmatch(text)
        for name in NAMES
        for value in query.get(name, [])
        for text in value.split(",")
    )


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation.definition.raw
    name = operation.get("operationId")
    base = (kwargs.get("base_url") or case.operation.base_url).rstrip("/")
    if is_valid(case, ParameterLocation.QUERY):
        choose_one_group(case, operation)
        fill_cursor(case, base)
        if "ticket" in case.query:
            case.query["ticket"] = Stream.open(base).ticket
    body = case.body if isinstance(case.body, dict) else {}
    body_is_valid = is_valid(case, ParameterLocation.BODY)
    if body_is_valid:
        limit_rooms(body)
    if "ticket" in body and name != "renewConnection":
        # A header would win over the ticket, which nobody would look at then.
        case.headers.pop("Authorization", None)
    if is_valid(case, ParameterLocation.PATH):
        fill_path(case, name, base, body if body_is_valid else {})
    if name == "join" and every_other("join with a stream"):
        case.headers["Accept"] = "text/event-stream"


def fill_path(case, name, base, body):
    """Has every second request act on somebody who is there."""
    # A kick keeps its viewer out, which must not be the one that the others come as; and names
    # that an answer told are drawn again.
    kicks = name in ("deleteConnection", "closeConnection", "deleteUserConnections")
    there = every_other(name)
    if "connection" in case.path_parameters:
        if there:
            stream = Stream.open(base, member=not kicks)
            case.path_parameters["connection"] = stream.connection
            if "ticket" in body:
                body["ticket"] = stream.ticket
        else:
            case.path_parameters["connection"] = "0" * 32
    if "user_id" in case.path_parameters:
        if there and not kicks:
            Stream.open(base)
            case.path_parameters["user_id"] = "contract"
        elif case.path_parameters["user_id"] == "contract":
            case.path_parameters["user_id"] = "7"


def choose_one_group(case, operation):
    """Leaves one of the groups of parameters of which exactly one is used, and sees to it that
    there is one."""
    groups = operation.get("x-exactly-one-of", [])
    used = [group for group in groups if any(case.query.get(name) for name in group)]
    for group in used[1:]:
        for name in group:
            case.query.pop(name, None)
    if groups and not used:
        case.query[groups[-1][0]] = ["42"]
    for name in ("blog_id", "room"):
        if isinstance(case.query.get(name), list):
            case.query[name] = case.query[name][:MOST_ROOMS]


def limit_rooms(body):
    for name in ("rooms", "watch"):
        if isinstance(body.get(name), list):
            body[name] = body[name][:MOST_ROOMS]


def fill_cursor(case, base):
    """Takes a cursor from the page before, where there are two pages."""
    if "cursor" not in case.query:
        return
    del case.query["cursor"]
    page = requests.get(
        base + case.formatted_path,
        params={**case.query, "limit": 1},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=10,
    )
    if page.ok and page.json()["next_cursor"]:
        case.query["cursor"] = page.json()["next_cursor"]
