"""The OpenAPI 3.1 document, made of the routes and structs that serve, and the page that shows it."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec

from rustunnel_py.api.routes import DATE, Auth, ErrorShown, Gives, Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_REF = "#/components/schemas/{name}"
_SHAPES = "shapes"  # the heading under which they stand; no route has this tag
_CODE = re.compile("`([^`]+)`")
_REASONS = {
    200: "The answer.",
    201: "Made.",
    202: "Taken.",
    204: "Done.",
    400: "A parameter or body cannot be used.",
    401: "No token, or none that is known.",
    403: "This token may not.",
    404: "There is nothing there that this token may see.",
    408: "The body came too slowly.",
    409: "It cannot be done as things are now.",
    413: "The body is too long.",
    415: "The body is not what this route reads.",
    421: "Asked without a token, under a name that is not the dashboard's.",
    422: "A field of the body has the wrong type, is missing or unknown.",
    429: "Too often; Retry-After says when.",
    500: "The server failed; `id` finds why in its log.",
    502: "The agent or the local service failed.",
    503: "The server cannot do it just now.",
    504: "The local service took too long.",
    507: "There is no room left to store it.",
}

Json = dict[str, Any]
"""A piece of the document: JSON by nature, so nothing more can be said of its type."""


def document(routes: Sequence[Route], version: str, server_name: str) -> Json:
    """The whole document."""
    shapes = [ErrorShown, *_shapes(routes)]
    _, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rustunnel-py",
            "version": version,
            "description": f"Tunnels, tokens, history and captured requests of {server_name}. Every error is "
            '`{"error": "..."}`. Times are ISO 8601 in UTC. HEAD works wherever GET does.',
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "externalDocs": {
            "url": "/v1/openapi.json",
            "description": "What the rs-tunnel CLI speaks: the same tunnels under /v1, with leases and telemetry.",
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": _without_queries(components, routes),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The admin token, or a token of POST /api/tokens.",
                }
            },
        },
    }


def _shapes(routes: Iterable[Route]) -> Iterator[Any]:
    for route in routes:
        for gives in route.gives.values():
            if isinstance(gives, tuple):
                yield from gives
            elif not isinstance(gives, Gives):
                yield gives
        if route.body is not None and not isinstance(route.body, Gives):
            yield route.body
        if route.query is not None:
            yield route.query


def _without_queries(components: Json, routes: Iterable[Route]) -> Json:
    """A query's struct is taken apart into parameters."""
    queries = {route.query.__name__ for route in routes if route.query is not None}
    return {name: schema for name, schema in components.items() if name not in queries}


def _operation(route: Route) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": _responses(route),
        "security": _security(route.auth),
    }
    if route.description:
        operation["description"] = route.description
    if route.body is not None:
        media = route.body.media if isinstance(route.body, Gives) else "application/json"
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {media: {"schema": _schema(route.body)}},
        }
    return operation


def _security(auth: Auth) -> list[Json]:
    if auth is Auth.OPEN:
        return []
    return [{}, {"token": []}] if auth is Auth.DOOR else [{"token": []}]


def _path_parameters(route: Route) -> list[Json]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"} if name.endswith("id") else {"type": "string"},
        }
        for name in route.parameters
    ]


def _query_parameters(route: Route) -> list[Json]:
    if route.query is None:
        return []
    _, components = msgspec.json.schema_components([route.query], ref_template=_REF)
    own = components[route.query.__name__]
    return [
        {"name": name, "in": "query", "required": name in own.get("required", ()), "schema": _parameter(schema)}
        for name, schema in own["properties"].items()
    ]


def _parameter(schema: Json) -> Json:
    """Of a query there is no null: it is left out."""
    schema = dict(schema)
    if schema.get("default", 0) is None:
        del schema["default"]
    choices = [choice for choice in schema.pop("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        schema = {**choices[0], **schema}
    if schema.get("format") == "date-time":
        schema["pattern"] = DATE.pattern
    if None in schema.get("enum", ()):
        schema["enum"] = [word for word in schema["enum"] if word is not None]
    return schema


def _schema(shape: Any) -> Json:
    if isinstance(shape, Gives):
        return {}
    if isinstance(shape, tuple):
        return {"anyOf": [_schema(one) for one in shape]}
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return schema


def _responses(route: Route) -> Json:
    responses: Json = {}
    for status, gives in route.gives.items():
        if not isinstance(gives, Gives):
            responses[str(status)] = {
                "description": _REASONS[status],
                "content": {"application/json": {"schema": _schema(gives)}},
            }
        elif gives.media is None:
            responses[str(status)] = {"description": gives.description}
        else:
            responses[str(status)] = {"description": gives.description, "content": {gives.media: {}}}
    for status in sorted(_errors(route) - {int(status) for status in responses}):
        responses[str(status)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorShown")}}},
        }
    return dict(sorted(responses.items()))


def _errors(route: Route) -> set[int]:
    errors = {*route.errors, 500, 503}
    if route.auth is not Auth.OPEN:
        errors |= {401, 403, 421}
    if route.query is not None:
        errors |= {400}
    if route.body is not None:
        errors |= {400, 408, 413, 415, 422}
    return errors


def page_body(api: Json) -> str:
    """The document for people, as markup; whatever it says is escaped."""
    by_tag: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    parts = [
        f"<p>{_prose(api['info']['description'])}</p>",
        "<p>Where nothing else is said a call needs <code>Authorization: Bearer TOKEN</code>.</p>",
        f'<nav>{" ".join(_link(tag) for tag in (*by_tag, _SHAPES))} <a href="/api/openapi.json">openapi.json</a></nav>',
    ]
    for tag, operations in by_tag.items():
        parts.append(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>')
        parts += [_section(method, path, operation) for method, path, operation in operations]
    parts.append(f'<h2 id="{_SHAPES}">{_SHAPES}</h2>')
    for name, schema in api["components"]["schemas"].items():
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>{_fields(schema)}')
    return "\n".join(parts)


def _link(name: str) -> str:
    name = escape(name)
    return f'<a href="#{name}">{name}</a>'


def _prose(text: str) -> str:
    """Text with `code` in it, as markup."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _section(method: str, path: str, operation: Json) -> str:
    parts = [f"<h3><code>{method} {escape(path)}</code></h3>", f"<p>{_prose(operation['summary'])}.</p>"]
    if "description" in operation:
        parts.append(f"<p>{_said(operation)}</p>")
    if operation["security"] == []:
        parts.append("<p>Needs no token.</p>")
    parameters = [
        (f"<code>{escape(one['name'])}</code>", one["in"], _kind(one["schema"]), _said(one["schema"]))
        for one in operation["parameters"]
    ]
    parts.append(_table(("parameter", "in", "type", ""), parameters))
    if "requestBody" in operation:
        (media, content), *_ = operation["requestBody"]["content"].items()
        parts.append(f"<p>Body: {escape(media)} {_kind(content['schema'])}</p>")
    answers = [(status, _said(answer), _answer_kind(answer)) for status, answer in operation["responses"].items()]
    parts.append(_table(("status", "", "body"), answers))
    return "\n".join(parts)


def _table(names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of markup, without columns in which nothing stands: a phone has no room for them."""
    shown = [at for at in range(len(names)) if any(row[at] for row in rows)]
    if not shown:
        return ""
    head = "".join(f"<th>{names[at]}</th>" for at in shown)
    body = "".join(f"<tr>{''.join(f'<td>{row[at]}</td>' for at in shown)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _answer_kind(answer: Json) -> str:
    for media, content in answer.get("content", {}).items():
        return _kind(content["schema"]) if "schema" in content else escape(media)
    return ""


def _fields(schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (f"<code>{escape(name)}</code>", _kind(one), "" if name in required else "optional", _said(one))
        for name, one in schema.get("properties", {}).items()
    ]
    said = _said(schema)
    return (f"<p>{said}</p>" if said else "") + _table(("field", "type", "", ""), rows)


def _said(schema: Json) -> str:
    return _prose(schema.get("description", ""))


def _kind(schema: Json) -> str:
    """A schema in a few words, with links to shapes."""
    if "prefixItems" in schema:
        return "(" + ", ".join(_kind(one) for one in schema["prefixItems"]) + ")"
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("format") or schema.get("type") or "anything"))
