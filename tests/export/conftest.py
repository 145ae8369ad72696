"""The small networks are in the table while a test of this folder runs."""

from tests.export.small import small_networks  # noqa: F401
