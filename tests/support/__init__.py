"""Builders and stand-ins that tests of several files share."""
