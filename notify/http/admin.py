"""``/admin``: a page for operators, which uses the API with the key that is typed into it.

Its files are public and contain nothing secret. They are served only under the host names that metrics are served
under: a page of a stranger's host name that resolves to this server (DNS rebinding) would look like this one.
"""

from __future__ import annotations

from collections.abc import Callable

from notify.http.answers import Answer
from notify.http.files import WEB, File
from notify.http.hosts import Hosts
from notify.http.request import Request, Route

#: scripts, styles and requests only from this site; no framing, and no access for a window that opened it
HEADERS = {
    b"Content-Security-Policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cross-Origin-Resource-Policy": b"same-origin",
    b"X-Frame-Options": b"DENY",
}

#: the paths below /admin, and the files below web/
FILES = {
    b"": "admin/index.html",
    b"/admin.css": "admin/admin.css",
    b"/admin.js": "admin/admin.js",
    b"/int64.js": "client/int64.js",
}


def routes(hosts: Hosts) -> dict[bytes, Route]:
    """The routes of the page and its files; ``hosts`` are the names under which they may be requested."""

    def guarded(file: File) -> Callable[[Request], Answer]:
        def serve(request: Request) -> Answer:
            hosts.check(request.host)
            return file(request)

        return serve

    return {
        b"/admin" + path: Route({b"GET": guarded(File(WEB / file, HEADERS))}) for path, file in FILES.items()
    }
