"""A package, so that tests share what lies in `tests.support`."""
