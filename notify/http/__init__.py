"""HTTP on both listeners: publishing, questions and health inside, health and the demo page outside.

The interface is described in docs/http-api.md and by ``/openapi.json`` itself.
"""

from notify.http.keys import ApiKeys, digests, read_keys
from notify.http.server import Site
from notify.http.sites import internal_site, public_site

__all__ = ["ApiKeys", "Site", "digests", "internal_site", "public_site", "read_keys"]
