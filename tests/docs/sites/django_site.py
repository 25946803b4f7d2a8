"""Runs in the standard library's WSGI server: ``python -m tests.docs.sites.django_site PORT DATABASE``.

``NOTIFY_SECRETS`` is the path of the file with the keys.
"""

import sys
from importlib import import_module
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from django.conf import settings

PORT, DATABASE = sys.argv[1:]
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of this test alone",
)
django.setup()

from django.contrib.auth import get_user_model, login, logout  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import ensure_csrf_cookie  # noqa: E402
from django.views.static import serve  # noqa: E402


@ensure_csrf_cookie
def page(request):
    return HttpResponse("a page")


def sign_in(request):
    login(request, get_user_model().objects.get(pk=5))
    return HttpResponse()


def sign_out(request):
    logout(request)
    return HttpResponse()


urlpatterns = [
    path("", page),
    path("sign-in", sign_in),
    path("sign-out", sign_out),
    path("files/<path:path>", serve, {"document_root": "."}),
    *import_module("tokens_django").urlpatterns,
]


class Quiet(WSGIRequestHandler):
    def log_message(self, *about: object) -> None:
        """Logs nothing."""


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    get_user_model().objects.create_user("ada", pk=5)
    with make_server("127.0.0.1", int(PORT), get_wsgi_application(), handler_class=Quiet) as server:
        server.serve_forever()
