"""Raw CCD packets in, quadrant payloads out: the boundary where everything is checked once.

``parse_packet`` splits a packet by copying bytes, ``read_quadrant`` turns a payload into pixels, ``watch_folder`` and
``expand_inputs`` find the files.
"""

from stream.ingest.packet import Packet, QuadrantPayload, parse_packet, read_packet, read_quadrant
from stream.ingest.watch import expand_inputs, watch_folder

__all__ = [
    "Packet",
    "QuadrantPayload",
    "expand_inputs",
    "parse_packet",
    "read_packet",
    "read_quadrant",
    "watch_folder",
]
