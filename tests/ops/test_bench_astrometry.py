"""A few of the bench's hard fields: none solved wrongly, all with enough stars solved, and the same ones every time."""

from __future__ import annotations

import numpy as np

from ops.bench.astrometry import ENOUGH, rows_of, try_field, try_fields


def test_hard_fields_are_solved_or_refused() -> None:
    outcomes = try_fields(24)
    assert not any(o.wrong for o in outcomes)
    assert all(o.solved for o in outcomes if o.n_seen >= ENOUGH and not o.how.wrong_sky)
    assert any(o.how.wrong_sky for o in outcomes)
    assert {row.name for row in rows_of(outcomes) if row.ok is False} == set()


def test_a_seed_is_a_field() -> None:
    one, again = try_field(5), try_field(5)
    assert one.how == again.how
    np.testing.assert_array_equal([one.error, one.log_chance], [again.error, again.log_chance])
