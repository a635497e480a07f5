"""Always-on fakes: how complete and how pure the search is, by what was put into a copy of every quadrant.

The public stream never sees one: fakes go into a copy of a piece of the science image, which goes through the same
subtraction and search as the quadrant and is then forgotten. ``run_fakes`` gives what became of each; ``summarise``
puts many quadrants together.
"""

from stream.fakes.crop import Box, crop_reference, crop_science
from stream.fakes.inject import inject
from stream.fakes.plan import FakeSettings, is_due, plan_fakes
from stream.fakes.recover import judge, other_candidates, run_fakes
from stream.fakes.summary import summarise
from stream.fakes.table import FAKE_DTYPE, KINDS, OTHER, empty_fakes, fake_rows

__all__ = [
    "FAKE_DTYPE",
    "KINDS",
    "OTHER",
    "Box",
    "FakeSettings",
    "crop_reference",
    "crop_science",
    "empty_fakes",
    "fake_rows",
    "inject",
    "is_due",
    "judge",
    "other_candidates",
    "plan_fakes",
    "run_fakes",
    "summarise",
]
