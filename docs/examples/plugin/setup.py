"""A distribution of its own that adds a broker to notify."""

from setuptools import setup

setup(
    name="notify-quiet",
    version="1.0",
    # notify/plugins has no __init__.py here: the file joins notify's own folder of plugins when installed.
    packages=["notify_quiet", "notify.plugins"],
    install_requires=["notify-realtime"],
)
