"""HTTP on both listeners: publishing, queries and health inside, health and the demo page outside.

The interface is described in docs/http-api.md, and by ``/openapi.json`` itself.
"""

from notify.http.keys import ApiKeys, read_keys, unlimited
from notify.http.server import Site
from notify.http.sites import internal_site, most_body, public_site

__all__ = ["ApiKeys", "Site", "internal_site", "most_body", "public_site", "read_keys", "unlimited"]
