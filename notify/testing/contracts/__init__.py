"""What every implementation of an interface must do, as test suites to subclass together with a ``TestCase``."""
