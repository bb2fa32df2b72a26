"""What every request passes on its way to its route, in one place, since the order matters."""

from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount

from engine.client import EngineClient
from server.admission import AdmissionGate
from server.auth import KeyGate, KeyRing
from server.limits import BodyLimit
from server.metrics import MeasuredApp, Metrics, Routes
from server.origins import Cors, OriginGate, known_hosts
from server.request_id import RequestId
from server.security import SecurityHeaders
from server.settings import Settings
from server.spans import Tracer
from server.tracing import Tracing


def install(
    app: FastAPI, settings: Settings, client: EngineClient, metrics: Metrics, policy: str, tracer: Tracer | None
) -> None:
    """Wrap the application, whose routes are all known by now; the first added is the innermost.

    Raises:
        KeysError: the file of keys cannot be used.
    """
    routes = Routes(_template(route) for route in app.routes)
    app.add_middleware(AdmissionGate, client=client)
    if settings.api_keys is not None:
        ring = KeyRing(settings.api_keys)
        app.add_middleware(KeyGate, ring=ring, public_paths=settings.public_paths, refused=metrics.refused)
    app.add_middleware(
        OriginGate,
        origins=settings.allowed_origins,
        hosts=known_hosts(settings.host, settings.allowed_hosts),
        refused=metrics.refused,
    )
    # Outside whatever may refuse: a client that is still sending gets to read why.
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds, refused=metrics.refused
    )
    app.add_middleware(Cors, origins=settings.allowed_origins, refused=metrics.refused)
    app.add_middleware(SecurityHeaders, policy=policy)
    app.add_middleware(MeasuredApp, metrics=metrics, routes=routes)
    app.add_middleware(Tracing, routes=routes, tracer=tracer)
    app.add_middleware(RequestId)


def _template(route: BaseRoute) -> str:
    """A route's path, as its metrics and spans are labelled; a folder of files is one route."""
    path: str = getattr(route, "path", "")
    return path + "/{path:path}" if isinstance(route, Mount) else path
