"""openapi.json describes the service that there is."""

import json
import re

import pytest

from detect.service.app import DESCRIPTION, read_description
from tests.detect.service.fakes import PHOTO, fake, plain, talk

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
KNOWN = {"type", "required", "properties", "additionalProperties", "items", "enum", "minimum", "maximum", "minItems",
         "maxItems", "oneOf", "$ref", "description"}  # fmt: skip


@pytest.fixture(scope="module")
def description():
    return json.loads(read_description())


def follow(description, node):
    while "$ref" in node:
        place = description
        for name in node["$ref"].removeprefix("#/").split("/"):
            place = place[name]
        node = place
    return node


def fits(value, schema, description):
    """Whether a value is as a schema says, of the keywords that this description uses."""
    schema = follow(description, schema)
    assert set(schema) <= KNOWN
    if "oneOf" in schema:
        return sum(fits(value, one, description) for one in schema["oneOf"]) == 1
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if isinstance(value, dict):
        own = schema.get("properties", {})
        return (
            set(schema.get("required", ())) <= set(value)
            and (schema.get("additionalProperties", True) or set(value) <= set(own))
            and all(fits(value[name], own[name], description) for name in own if name in value)
        )
    if isinstance(value, list):
        enough = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return enough and all(fits(one, schema["items"], description) for one in value)
    bounded = isinstance(value, str) or schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return bounded and value in schema.get("enum", [value])


def test_paths_and_methods_are_those_of_the_routes(description):
    routes = {route.path: {one.lower() for one in route.methods} - {"head"} for route in fake().app().routes}
    assert {path: set(item) for path, item in description["paths"].items()} == routes
    names = [operation["operationId"] for item in description["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert description["openapi"].startswith("3.1.")
    assert description["info"]["version"]


def test_references_lead_somewhere_and_examples_fit(description):
    for name in re.findall(r'"\$ref": "([^"]+)"', DESCRIPTION.read_text("utf-8")):
        assert follow(description, {"$ref": name})
    answers = description["paths"]["/detect"]["post"]["responses"]["200"]["content"]["application/json"]
    for example in answers["examples"].values():
        assert fits(example["value"], answers["schema"], description)
    assert not fits({"width": 1, "height": 1}, answers["schema"], description)
    for parameter in description["paths"]["/detect"]["post"]["parameters"]:
        assert fits(parameter["example"], {**parameter["schema"]}, description)


def exchanges(key):
    """(path, method, arguments of a request) of all that can be asked for."""
    named = {"X-API-Key": key}
    examples = {"threshold": 0.3, "format": "json"}
    form = [("image", ("one.png", plain(1))), ("image", ("two.gif", b"GIF89a"))]
    for path in ("/", "/health", "/openapi.json", "/metrics"):
        yield path, "get", {"headers": named}
    yield "/metrics", "get", {}
    yield "/detect", "post", {"content": PHOTO}
    for more in (
        {"content": PHOTO, "params": examples},
        {"content": PHOTO, "params": {"format": "picture"}},
        {"files": form, "params": examples},
        {"files": form, "params": {"format": "picture"}},
        {"content": b"x" * 200_000},
        {"content": b"no image"},
        {"content": plain(255)},
    ):
        yield "/detect", "post", {"headers": named, **more}


def test_answers_are_as_described(description):
    key = "a-key-of-this-very-test"
    service = fake(keys=[key])

    async def conversation(client):
        return [(path, method, await client.request(method, path, **more)) for path, method, more in exchanges(key)]

    statuses = set()
    for path, method, response in talk(service, conversation):
        found = follow(description, description["paths"][path][method]["responses"][str(response.status_code)])
        kind = response.headers["content-type"].partition(";")[0]
        assert kind in found["content"], (path, response.text)
        if kind == "application/json" and path != "/openapi.json":
            assert fits(response.json(), found["content"][kind]["schema"], description), response.text
        statuses.add(response.status_code)
    assert statuses == {200, 400, 401, 413, 415, 500}
