"""A backend for tests that serves nothing."""


def supports(case):
    return "does nothing at all"
