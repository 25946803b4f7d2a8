"""All tests; under pytest and under trial alike."""

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a bare Python asks tests.support.programs what this machine lacks
    pass
else:
    # How fast a machine is has nothing to do with what is right.
    settings.register_profile(
        "notify", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("notify")
