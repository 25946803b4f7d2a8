"""Where plugins are found: a third party adds a file ``notify/plugins/NAME.py`` from its own distribution.

Such a file holds :class:`notify.components.Plugin` values and imports nothing heavy; see docs/plugins.md.
"""

from twisted.plugin import pluginPackagePaths

__path__.extend(pluginPackagePaths(__name__))  # type: ignore[no-untyped-call]
__all__: list[str] = []
