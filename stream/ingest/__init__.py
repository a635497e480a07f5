"""Raw CCD packets in, quadrant payloads out: the boundary where everything is checked once.

``parse_packet`` splits a packet by copying bytes, ``read_quadrant`` turns a payload into pixels, ``watch_folder`` and
``expand_inputs`` find the files, ``read_science`` takes an image that is calibrated already.
"""

from stream.ingest.packet import Packet, QuadrantPayload, parse_packet, payload_quadrant, read_packet, read_quadrant
from stream.ingest.science import CalibratedInput, read_science
from stream.ingest.watch import expand_inputs, is_packet_name, watch_folder

__all__ = [
    "CalibratedInput",
    "Packet",
    "QuadrantPayload",
    "expand_inputs",
    "is_packet_name",
    "parse_packet",
    "payload_quadrant",
    "read_packet",
    "read_quadrant",
    "read_science",
    "watch_folder",
]
