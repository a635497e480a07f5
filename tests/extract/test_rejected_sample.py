"""What is not sent goes to a topic of its own: with its stamps and the reason, the same sample every time."""

from __future__ import annotations

import extract_scene as scene
import numpy as np
import pytest

from stream.alert import decode_batch, encode_batch
from stream.alert.stamps import decode_stamp
from stream.core.records import QuadrantResult, new_report
from stream.engine.topics import load_topics
from stream.extract import ExtractSettings, extract
from stream.quadrants import batch_of, is_sampled, rejected_of

SHAPE = (512, 512)


@pytest.fixture(scope="module")
def result():
    """A quadrant with real sources near the limit, some sent, some not."""
    x, y = scene.grid_places(SHAPE, 40, 5)
    flux = np.linspace(3.5, 9.0, len(x)) * scene.flux_error() * np.where(np.arange(len(x)) % 2, -1, 1)
    science = scene.science_of(SHAPE)
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=6, reference=np.ones(SHAPE))
    candidates = extract(science, scene.reference_of(science), difference, ExtractSettings(profile="survey-2018"))
    return QuadrantResult(
        new_report(science.quadrant), science.quadrant, science=science, difference=difference, candidates=candidates
    )


def test_all_rejected_ones_travel_with_reason_and_stamps(result):
    batch = decode_batch(encode_batch(rejected_of(result, 1.0)))
    wanted = {c.candid: c for c in result.candidates if c.rejected is not None}
    assert len(wanted) > 20
    assert {item.candidate["candid"] for item in batch.items} == set(wanted)
    for item in batch.items:
        candidate = wanted[item.candidate["candid"]]
        assert item.rejected == candidate.rejected
        stamp = decode_stamp(item.cutouts[2])
        if stamp.shape == (63, 63):
            core = stamp[29:34, 29:34]
            assert item.candidate["nneg"] == np.sum(core < 0)  # the identity of the survey's packets
    assert all(c.rejected is not None for c in wanted.values())  # the result itself is left as it was
    assert all(item.rejected is None for item in decode_batch(encode_batch(batch_of(result))).items)


def test_a_share_is_a_sample_that_a_rerun_repeats(result):
    some = [item.candidate["candid"] for item in rejected_of(result, 0.3).items]
    rejected = sum(c.rejected is not None for c in result.candidates)
    assert 0 < len(some) < rejected
    assert some == [item.candidate["candid"] for item in rejected_of(result, 0.3).items]
    more = {item.candidate["candid"] for item in rejected_of(result, 0.6).items}
    assert set(some) <= more
    assert not rejected_of(result, 0.0).items
    assert np.mean([is_sampled(k, 0.1) for k in range(5000)]) == pytest.approx(0.1, abs=0.02)


def test_only_the_observatory_reads_what_may_be_private():
    topics = load_topics()
    for name in ("ztf.rejected", "ztf.fakes"):
        spec = topics.spec_of(name)
        assert (spec.access, spec.groups, spec.writers) == ("private", ("caltech",), ("pixels",))
