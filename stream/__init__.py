"""The ZTF Science Data System as a stream: raw CCD packets in, Avro alerts out.

Rooms, in the order a quadrant passes through them: ``ingest``, ``calibrate``, ``photometry``,
``astrometry``, ``reference``, ``subtract``, ``extract``, ``score``, ``solarsystem``, ``enrich``,
``alert``, ``archive``, ``monitor``. Beside them ``core`` (records, identity, flags, errors: imports
nothing of ours), ``sky`` (catalogue tiles), ``simulate``, ``engine`` (Kafka, Redis, configuration,
workers) and ``cli``. Imports run from ``cli`` and ``engine`` towards ``core``, never back.
"""

__version__ = "0.1.0"
