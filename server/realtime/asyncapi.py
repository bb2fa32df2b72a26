"""The protocol for machines: AsyncAPI 3.0, made from the messages' own models.

python -m server.realtime.asyncapi > docs/asyncapi.yaml
"""

import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.realtime.protocol import ClientMessage, CloseCode, ServerMessage

_BINARY = {
    "controlImage": "A control image: PNG, JPEG or WebP. An input: a picture is made that follows it.",
    "pictureBytes": "A picture, right after its `image.preview` or `image.completed`, in the format that it names.",
}


def document() -> dict[str, Any]:
    """The whole document."""
    client: tuple[type[BaseModel], ...] = get_args(ClientMessage)
    server: tuple[type[BaseModel], ...] = get_args(ServerMessage)
    _, definitions = models_json_schema(
        [*((model, "validation") for model in client), *((model, "serialization") for model in server)],
        ref_template="#/components/schemas/{model}",
    )
    messages = {model.__name__: _message(model) for model in (*client, *server)}
    for name, text in _BINARY.items():
        payload = {"type": "string", "format": "binary"}
        messages[name] = {"summary": text, "contentType": "application/octet-stream", "payload": payload}
    sent_by_client = [*(model.__name__ for model in client), "controlImage"]
    sent_by_server = [*(model.__name__ for model in server), "pictureBytes"]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "PixArt-δ in real time",
            "version": "1",
            "description": "Draw or type, and the picture follows; docs/realtime.md explains how. Close codes: "
            + ", ".join(f"{code.value} {code.name.lower()}" for code in CloseCode),
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:8000", "protocol": "ws"}},
        "channels": {
            "realtime": {
                "address": "/v1/realtime",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {
                    "ws": {
                        "query": {
                            "type": "object",
                            "properties": {
                                "client_id": {"type": "string", "description": "Resumes the session of this id."}
                            },
                        }
                    }
                },
            }
        },
        "operations": {
            "fromClient": _operation("receive", sent_by_client),
            "fromServer": _operation("send", sent_by_server),
        },
        "components": {"messages": messages, "schemas": definitions["$defs"]},
    }


def _message(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": get_args(model.model_fields["type"].annotation)[0],
        "summary": re.sub(r"\s+", " ", model.__doc__ or ""),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _operation(action: str, names: list[str]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/realtime"},
        "messages": [{"$ref": f"#/channels/realtime/messages/{name}"} for name in names],
    }


if __name__ == "__main__":
    import yaml  # of the development packages

    print(yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=110), end="")
