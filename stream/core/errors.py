"""Every error the system raises on purpose.

::

    ZtfError
    ├── Retriable              the world outside hiccupped: back off, try again, nothing is lost
    │   ├── BrokerUnavailable      Kafka does not answer or refuses
    │   ├── StoreUnavailable       the product store cannot be read or written
    │   └── StateUnavailable       Redis does not answer
    │       └── StateLost              Redis answers, but what the stream wrote is gone: it has to be rebuilt
    ├── Permanent              this packet, quadrant or message will never work as it is: dead letter
    │   ├── PacketError            the raw packet (or one of its extensions) breaks the format
    │   ├── CalibrationError       no image could be made of the pixels (all NaN, all saturated, ...)
    │   ├── AstrometryError        no trustworthy WCS
    │   ├── PhotometryError        no PSF, no zero point
    │   ├── ReferenceBuildError        a reference cannot be built from these inputs
    │   ├── SubtractionError       the difference cannot be made
    │   ├── AlertError             a packet would break the schema or the brokers' rules
    │   └── MessageError           a message on an internal topic cannot be decoded
    └── UsageError             the person asked for something that cannot be: says what to do instead

``Permanent`` carries the stage and a ``context`` (rid, field, figures) that reaches the dead letter and
the quality record. A *missing* reference, catalogue or calibration frame is not an error: the quadrant's
status says so and its other products are made.
"""

from __future__ import annotations

from typing import Any


class ZtfError(Exception):
    """Base of all errors raised on purpose."""


class Retriable(ZtfError):
    """An outside service failed; the same work may succeed later."""


class BrokerUnavailable(Retriable):
    """Kafka does not answer or refuses."""


class StoreUnavailable(Retriable):
    """The product store cannot be read or written."""


class StateUnavailable(Retriable):
    """Redis does not answer."""


class StateLost(StateUnavailable):
    """Redis answers, but was emptied. Who meets this holds what it has in hand until the state was rebuilt."""

    def __init__(self, message: str = "Redis was emptied: run `ztf-stream state rebuild`") -> None:
        super().__init__(message)


class Permanent(ZtfError):
    """This input will never work as it is.

    Parameters
    ----------
    message : str
        Which input, what is wrong, what to do.
    **context
        Identifiers and figures (``rid``, ``file``, ``n_stars``...), JSON-serialisable scalars.
    """

    stage = "unknown"

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.context = context


class PacketError(Permanent):
    """The raw packet, or one extension of it, breaks ``interfaces.md`` §1."""

    stage = "ingest"


class CalibrationError(Permanent):
    """The raw pixels give no usable image."""

    stage = "calibrate"


class AstrometryError(Permanent):
    """No trustworthy WCS was found."""

    stage = "astrometry"


class PhotometryError(Permanent):
    """No PSF or no zero point could be determined."""

    stage = "photometry"


class ReferenceBuildError(Permanent):
    """A reference image cannot be built from these inputs."""

    stage = "reference"


class SubtractionError(Permanent):
    """The difference image cannot be made."""

    stage = "subtract"


class AlertError(Permanent):
    """A packet would break the schema or a rule that brokers rely on."""

    stage = "alert"


class MessageError(Permanent):
    """A message on an internal topic cannot be decoded."""

    stage = "message"


class UsageError(ZtfError):
    """A request that cannot be met as it was asked; the message says what to do instead."""
