"""Every error a client sees, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from moesaic.core.errors import EngineDeadError, MoesaicError, RequestError
from moesaic.core.log import get_logger

logger = get_logger(__name__)
CLIENT_GONE = 499  # nginx's number for a client that closed the connection; nobody reads the response


class ErrorDetail(msgspec.Struct):
    """The inside of an error body."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """What is sent: as a response, or as the last event of a stream that had begun."""

    error: ErrorDetail


class ApiError(MoesaicError):
    """An error with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> ErrorBody:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return ErrorBody(ErrorDetail(str(self), kind, self.param, self.code))


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of `error`; of an unforeseen one only that it happened (the log has the rest)."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case EngineDeadError():
            return ApiError(503, str(error), code="engine_dead")
        case MoesaicError():
            return ApiError(500, str(error))
        case HTTPException():  # the router's own: no such route, wrong method
            return ApiError(error.status_code, _routing_message(error), headers=dict(error.headers or {}))
        case _:
            logger.error("internal error", exc_info=error)
            return ApiError(500, "internal server error: the server's log says more")


def _routing_message(error: HTTPException) -> str:
    hints = {
        404: "no such path: see /v1/models, /v1/completions, /v1/chat/completions",
        405: "wrong method for this path",
    }
    return hints.get(error.status_code, str(error.detail))


def error_response(error: Exception) -> Response:
    """`error` as an HTTP response."""
    told = as_api_error(error)
    return Response(msgspec.json.encode(told.body), told.status, told.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Answer every exception of a route in OpenAI's shape."""

    async def answer(request: Request, error: Any) -> Response:
        return error_response(error)

    async def client_gone(request: Request, error: Any) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(MoesaicError, answer)
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(ClientDisconnect, client_gone)
