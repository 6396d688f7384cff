"""Measurements of the product's own parts: `make bench`. Ratios of one run mean something; numbers of two machines do not."""

import os

FAST = os.environ.get("FAST") == "1"
"""One round of everything instead of three, and small numbers: five minutes at most."""
