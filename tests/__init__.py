"""All tests. They run under pytest and under trial."""

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # so that tests.support.programs can say what this Python lacks
    pass
else:
    # A test must not fail because the machine is slow.
    settings.register_profile(
        "notify", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("notify")
