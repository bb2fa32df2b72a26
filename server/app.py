"""The HTTP application: routes, and how they meet the engine."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from engine.client import EngineClient
from server import docs, errors, middleware, rest, tracing
from server.content import ContentFilter
from server.images import ImageService
from server.metrics import Metrics
from server.realtime.endpoint import Realtime
from server.recorded import RecordedClient
from server.security import page_policy
from server.settings import Settings

STATIC = Path(__file__).parent / "static"
# Seconds after which a thread that decodes or encodes has to let the loop in; Python's own 5 ms add up.
SWITCH_INTERVAL = 0.001


def create_app(
    settings: Settings,
    client: EngineClient,
    metrics: Metrics,
    on_loaded: Callable[[BaseException | None], None],
) -> FastAPI:
    """Build the application. `on_loaded` is called once: with None when ready, or with the reason why it never will be.

    It answers from the start (`/healthz`), and makes pictures as soon as the engine has loaded (`/readyz`).
    """
    release = version("pixart-delta-server")
    metrics.watch(client)
    content = ContentFilter(settings.content_filter) if settings.content_filter else None
    client = RecordedClient(client, metrics, settings.log_prompts, content)
    service = ImageService(client, metrics, settings.max_control_pixels)
    realtime = Realtime(client, settings, metrics)

    def loaded(task: asyncio.Task[None]) -> None:
        # What is here now stays. Full collections would stop the loop for tens of milliseconds to look at it again.
        gc.collect()
        gc.freeze()
        if task.cancelled():
            return
        if task.exception() is None:
            precision = max(worker.precision for worker in client.stats().workers)  # of one that is warm
            metrics.build.labels(release, client.manifest.name, settings.backend, precision).set(1)
        on_loaded(task.exception())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(SWITCH_INTERVAL)
        loading = asyncio.create_task(client.start())
        loading.add_done_callback(loaded)
        yield
        loading.cancel()
        realtime.close()
        await client.close(settings.drain_seconds)
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="PixArt-δ server",
        version=release,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)

    rest.install(app, service, client)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def health() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses={503: {"description": "The model is still being loaded, or no worker is left."}})
    async def readiness() -> Response:
        """Pictures can be made now."""
        ready = client.ready
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_api_websocket_route("/v1/realtime", realtime.endpoint)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/docs", include_in_schema=False)
    async def read_docs(request: Request) -> Response:
        html = docs.page(app.openapi(), str(request.base_url).rstrip("/"))
        return HTMLResponse(html, headers={"Content-Security-Policy": docs.POLICY})

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    tracer = tracing.tracer(release)
    middleware.install(app, settings, client, metrics, page_policy(STATIC.glob("*.html")), tracer)
    return app
