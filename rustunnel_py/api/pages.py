"""Pages for people: one frame, one stylesheet, no script and nothing from elsewhere.

A page is text that is escaped where it is put together; what may be done with it is said by its own policy.
"""

from __future__ import annotations

from html import escape
from importlib import resources

from quart import Blueprint, Response

# Forms may be sent to this server only. A navigation by <meta> is no form and no fetch: it is not limited here.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_TYPES = {"look.css": "text/css; charset=utf-8", "mark.svg": "image/svg+xml"}


def static_files() -> Blueprint:
    """`/static/…`: the few files that pages use, for everyone."""
    files = Blueprint("static_files", __name__)

    @files.get("/static/<name>")
    async def static_file(name: str) -> Response:
        if name not in _TYPES:
            return Response(b"", 404)
        content = (resources.files(__package__) / "static" / name).read_bytes()
        response = Response(content, content_type=_TYPES[name])
        response.headers["Cache-Control"] = "public, max-age=3600"
        return response

    return files


def page(title: str, body: str, status: int = 200, *, onward: str | None = None, wide: bool = False) -> Response:
    """A whole page. `body` is markup, `title` text; `onward` is a URL to go to at once, with a link beside it."""
    refresh = "" if onward is None else f'<meta http-equiv="refresh" content="0;url={escape(onward)}">\n'
    if onward is not None:
        body += f'\n<p><a class="button" href="{escape(onward)}">Continue</a></p>'
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{refresh}<title>{escape(title)}</title>
<link rel="icon" href="/static/mark.svg">
<link rel="stylesheet" href="/static/look.css">
</head>
<body>
<main{' class="wide"' if wide else ""}>
<header><img src="/static/mark.svg" alt="" width="28" height="28"> <span>rustunnel</span></header>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""
    response = Response(text, status, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "same-origin"  # with no-referrer a form's Origin would be null
    return response
