"""Measurements of the product's own parts: `make bench`. Ratios of one run mean something; numbers of two machines do not."""
