"""``/admin``: a page for operators, which asks the API with the key that is typed into it.

Its files are anybody's and say nothing. They are served by the names that metrics are served by: a page under a stranger's name
that leads here (DNS rebinding) would look like this one.
"""

from __future__ import annotations

from collections.abc import Callable

from notify.http.answers import Answer
from notify.http.files import WEB, File
from notify.http.hosts import Hosts
from notify.http.request import Request, Route

#: no script, style or request but our own; shown in no frame, and no window that opened it can reach it
HEADERS = {
    b"Content-Security-Policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cross-Origin-Resource-Policy": b"same-origin",
    b"X-Frame-Options": b"DENY",
}

#: what is served below /admin, and where it is below web/
FILES = {
    b"": "admin/index.html",
    b"/admin.css": "admin/admin.css",
    b"/admin.js": "admin/admin.js",
    b"/int64.js": "client/int64.js",
}


def routes(hosts: Hosts) -> dict[bytes, Route]:
    """The page and its files; ``hosts`` are the names by which they may be asked for."""

    def guarded(file: File) -> Callable[[Request], Answer]:
        def serve(request: Request) -> Answer:
            hosts.check(request.host)
            return file(request)

        return serve

    return {
        b"/admin" + path: Route({b"GET": guarded(File(WEB / file, HEADERS))}) for path, file in FILES.items()
    }
