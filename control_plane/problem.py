"""Errors over the admin API: RFC 9457 problems, as a router's, with the fields that the `bulkhead` command shows."""

from fastapi.responses import JSONResponse

from control_plane.errors import ControlPlaneError


def problem(error: ControlPlaneError) -> JSONResponse:
    """Give the answer for an error."""
    fields = {
        "type": f"urn:bulkhead:problem:{error.code}",
        "title": (type(error).__doc__ or "").partition("\n")[0].rstrip("."),
        "status": error.http_status,
        "detail": error.what,
        **error.fields(),
    }
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}
    headers |= {"Retry-After": "1"} if error.http_status in {429, 503} else {}
    return JSONResponse(fields, status_code=error.http_status, media_type="application/problem+json", headers=headers)
