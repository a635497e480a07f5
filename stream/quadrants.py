"""One quadrant from its bytes to its products: the step that the stream's pixel worker and ``process`` share.

The science is ``stream.pipeline``; this adds reading the payload, writing the products and the records that go on.
Products are written before anything is announced, under deterministic names with deterministic bytes, so that doing a
quadrant twice changes nothing.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from dataclasses import dataclass, field, replace

import numpy as np

from stream import __version__
from stream.alert import make_batch
from stream.archive import ProductStore, write_products
from stream.core.errors import PacketError
from stream.core.records import Candidate, CandidateBatch, QuadrantInputs, QuadrantResult, Stamps, failed_report
from stream.extract import cut_stamps
from stream.ingest import payload_quadrant, read_quadrant
from stream.pipeline import ScienceSettings, process_quadrant


@dataclass(slots=True)
class QuadrantTask:
    """Does quadrants, one after another, with inputs that stay in memory between them."""

    store: ProductStore
    inputs: QuadrantInputs
    settings: ScienceSettings = field(default_factory=ScienceSettings)

    def run(self, payload: bytes) -> QuadrantResult:
        """Read, process and store one quadrant.

        Raises
        ------
        PacketError
            Not even the payload's headers can be read. Every other failure of the input is in the result's report,
            that of its pixels too.
        Retriable
            The store failed.
        """
        started = time.process_time()
        result, raw = None, None
        try:
            raw = read_quadrant(payload, self.settings.camera)
        except PacketError as error:
            quadrant = payload_quadrant(payload)
            if quadrant is None:
                raise
            result = QuadrantResult(failed_report(quadrant, error), quadrant, traceback=traceback.format_exc())
        decompress = round(time.process_time() - started, 4)
        if raw is not None:
            result = process_quadrant(raw, self.inputs, self.settings)
        assert result is not None
        started = time.process_time()
        write_products(self.store, result)
        stored = round(time.process_time() - started, 4)
        result.elapsed = {step: decompress + at for step, at in result.elapsed.items()}
        result.report.seconds = {"decompress": decompress, **result.report.seconds, "products": stored}
        return result


def batch_of(result: QuadrantResult) -> CandidateBatch:
    """The sent candidates of a quadrant, stamps encoded, with the versions that made them."""
    return _with_versions(make_batch(result.quadrant, result.candidates), result)


def rejected_of(result: QuadrantResult, share: float) -> CandidateBatch:
    """A sample of the candidates of a quadrant that are not sent, with their stamps and why.

    ``share`` (0..1) of all candids, the same ones every time; those that no stamps can be cut for are left out.
    """
    candidates = [c for c in result.candidates if c.rejected is not None and is_sampled(c.candid, share)]
    candidates = with_stamps(result, candidates)
    batch = make_batch(result.quadrant, [replace(c, rejected=None) for c in candidates])
    for item, candidate in zip(batch.items, candidates, strict=True):
        item.rejected = candidate.rejected
    return _with_versions(batch, result)


def is_sampled(candid: int, share: float) -> bool:
    """Whether a candid is in a sample of that share: by its hash, so that a rerun takes the same ones."""
    return int.from_bytes(hashlib.blake2b(str(candid).encode(), digest_size=4).digest()) < share * 2**32


def with_stamps(result: QuadrantResult, candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with cutouts; without those that have no place, or an image without a pixel there."""
    science, difference = result.science, result.difference
    if science is None or difference is None:
        return []
    placed = [c for c in candidates if c.fields["xpos"] is not None and c.fields["ypos"] is not None]
    x, y = (np.array([round(c.fields[name]) - 1 for c in placed], np.int64) for name in ("xpos", "ypos"))
    signs = [1 if c.fields["isdiffpos"] == "t" else -1 for c in placed]
    stamps = cut_stamps(science.data, difference.reference, difference.data, x, y, signs)
    return [replace(c, stamps=cut) for c, cut in zip(placed, stamps, strict=True) if _has_pixels(cut)]


def _has_pixels(stamps: Stamps) -> bool:
    return all(np.any(np.nan_to_num(image)) for image in (stamps.science, stamps.template, stamps.difference))


def _with_versions(batch: CandidateBatch, result: QuadrantResult) -> CandidateBatch:
    for item in batch.items:
        item.extension["software"] = __version__
        item.extension["reference"] = None if result.reference is None else result.reference.version
        item.extension["calibration"] = ",".join(result.report.calids) or None
    return batch
