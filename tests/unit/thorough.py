"""Grids of parameters of which a few values reach every branch."""

import pytest


def first_then_thorough(first, all_of_them):
    """first, and as thorough what else there is: it tests the same branches and only costs time for more certainty."""
    more = [one if isinstance(one, tuple) else (one,) for one in all_of_them if one not in first]
    return [*first, *(pytest.param(*one, marks=pytest.mark.thorough) for one in more)]
