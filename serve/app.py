"""The application: one Service and its limits behind routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from serve.context import Server
from serve.door import Door
from serve.openapi import describe
from serve.page_files import page_routes
from serve.refusals import REFUSED, refuse
from serve.routes import router

NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""Our own metrics and log say what there is to say, and leave ids out."""


def create_app(server: Server) -> FastAPI:
    """The ASGI application; it does not close the Service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.admission.close()

    app = FastAPI(title="Tandem", lifespan=lifespan, docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY)
    app.state.server = server
    app.include_router(router)
    describe(app)
    page_routes(app, server.page)
    for kind in REFUSED:
        app.add_exception_handler(kind, refuse)
    app.add_middleware(Door, keys=server.keys, metrics=server.metrics)
    return app
