"""The page /docs: the OpenAPI description for people, without a script and without anything from elsewhere."""

import base64
import hashlib
import json
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h2 { margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem 1rem; border-radius: .5rem; background: #8882; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8883; }
"""

# The page needs its own style and nothing else.
POLICY = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


def page(schema: dict[str, Any], origin: str) -> str:
    """HTML of an OpenAPI description; its examples are commands for the server at `origin`."""
    info = schema["info"]
    title = escape(f"{info['title']} {info['version']}")
    operations = [
        _operation(schema, method, path, operation, origin)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>{"".join(operations)}</body></html>'
    )


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any], origin: str) -> str:
    parts = [f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        rows = [("field", "type", "")]
        rows += _fields(schema, _resolve(schema, content["schema"]))
        parts.append(f"<h3>Body: <code>{escape(media_type)}</code></h3>{_table(rows)}")
        for example in content.get("examples", {}).values():
            command = _curl(origin + path, media_type, example["value"])
            parts.append(f"<p>{escape(example['summary'])}:</p><pre>{escape(command)}</pre>")
    rows = [("status", "", "")]
    rows += [(status, "", _text(response["description"])) for status, response in operation["responses"].items()]
    parts.append(f"<h3>Answers</h3>{_table(rows)}")
    return "".join(parts)


def _fields(schema: dict[str, Any], model: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    required = model.get("required", [])
    for name, field in model["properties"].items():
        nested = [part for part in _options(schema, field) if "properties" in part]
        mark = "" if name not in required or prefix else " (required)"
        kind = " or ".join(dict.fromkeys(filter(None, (_kind(part) for part in _options(schema, field)))))
        yield (
            f"<code>{escape(prefix + name)}</code>{mark}",
            escape(kind + _limits(field)),
            _text(field.get("description", "")),
        )
        for part in nested:
            yield from _fields(schema, part, f"{prefix}{name}.")


def _options(schema: dict[str, Any], field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, besides null."""
    options = [_resolve(schema, option) for option in field.get("anyOf", [field])]
    return [option for option in options if option.get("type") != "null"]


def _kind(field: dict[str, Any]) -> str:
    values = field.get("enum", [field["const"]] if "const" in field else [])
    return ", ".join(map(str, values)) if values else str(field.get("format", field.get("type", "")))


def _limits(field: dict[str, Any]) -> str:
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    if high is not None:
        return f", {'above ' if 'exclusiveMinimum' in field else ''}{low} to {high}"
    return f", {field['minLength']} to {field['maxLength']} characters" if "maxLength" in field else ""


def _resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: dict[str, Any] = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    return found


def _curl(url: str, media_type: str, value: dict[str, Any]) -> str:
    words = ["curl", "-sN" if value.get("stream") else "-s", url]
    if media_type == "application/json":
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(value)]
    else:
        words += ["-F", "image=@picture.png"]
        for name, field in value.items():
            words += ["-F", f"{name}={field}"]
    return shlex.join(words)


def _text(markdown: str) -> str:
    """Escaped, with `code` set apart."""
    pieces = escape(markdown).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _table(rows: list[tuple[str, str, str]]) -> str:
    """The first row is the head; cells are HTML."""

    def line(row: tuple[str, str, str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in row) + "</tr>"

    head, *body = rows
    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in body)}</table>"
