"""One quadrant from its bytes to its products: the step that the stream's pixel worker and ``process`` share.

The science is ``stream.pipeline``; this adds reading the payload, writing the products and the records that go on.
Products are written before anything is announced, under deterministic names with deterministic bytes, so that doing a
quadrant twice changes nothing.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

from stream import __version__
from stream.alert import make_batch
from stream.archive import ProductStore, write_products
from stream.core.errors import PacketError
from stream.core.records import CandidateBatch, QuadrantInputs, QuadrantResult, failed_report
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
    batch = make_batch(result.quadrant, result.candidates)
    for item in batch.items:
        item.extension["software"] = __version__
        item.extension["reference"] = None if result.reference is None else result.reference.version
        item.extension["calibration"] = ",".join(result.report.calids) or None
    return batch
