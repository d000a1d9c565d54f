"""create_app: the HTTP application around an engine that runs."""

from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from moesaic import __version__
from moesaic.entrypoints.server import advice, chat, completions, errors, moe, pages, recording, routing, status
from moesaic.entrypoints.server.middleware import ID_HEADER, ApiKeys, RequestScope
from moesaic.entrypoints.server.settings import ServerArgs

if TYPE_CHECKING:
    from moesaic.engine.async_engine import AsyncEngine


def create_app(engine: "AsyncEngine", settings: ServerArgs) -> FastAPI:
    """The application. Whoever started the engine shuts it down."""
    # FastAPI's own documentation pages load their scripts from elsewhere; the schema itself stays
    app = FastAPI(title="moesaic", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.state.profile_folder = settings.moe_profile_dir
    app.state.settings = settings
    if settings.metrics_aliases is not None:
        engine.metrics.add_vllm_names()
    for part in (status, moe, advice, routing, recording, completions, chat):
        app.include_router(part.router)
    pages.install(app)
    errors.install(app)
    # the last one added is the outermost
    if settings.keys:
        app.add_middleware(ApiKeys, keys=settings.keys)
    app.add_middleware(RequestScope, log_requests=not settings.disable_log_requests)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[ID_HEADER],
        )
    return app
