"""Alert packets: schema, stamps, rules, the writer and the reader, and the messages of the internal topics.

Pure: bytes and records, no topic and no file.
"""

from stream.alert.codec import (
    CODECS,
    StreakBatch,
    decode_batch,
    decode_report,
    decode_streaks,
    decode_tracklet,
    encode_batch,
    encode_report,
    encode_streaks,
    encode_tracklet,
    split_batch,
)
from stream.alert.convert import convert_packet, convert_record
from stream.alert.packet import (
    LEDGER,
    build_packet,
    emit_packet,
    from_candidate,
    make_batch,
    packet_header,
    plain,
    read_head,
    read_packet,
    read_packets,
    split_header,
    write_packet,
)
from stream.alert.rules import packet_problems
from stream.alert.schema import (
    CANDIDATE_FIELDS,
    EXTENSION_FIELDS,
    FP_FIELDS,
    PRV_FIELDS,
    load_schema,
    reader_schema,
    schema_text,
    writer_schema,
    writer_schema_text,
)
from stream.alert.stamps import STAMP_SIDE, decode_stamp, encode_stamp, stamp_names

__all__ = [
    "CANDIDATE_FIELDS",
    "CODECS",
    "EXTENSION_FIELDS",
    "FP_FIELDS",
    "LEDGER",
    "PRV_FIELDS",
    "STAMP_SIDE",
    "StreakBatch",
    "build_packet",
    "convert_packet",
    "convert_record",
    "decode_batch",
    "decode_report",
    "decode_stamp",
    "decode_streaks",
    "decode_tracklet",
    "emit_packet",
    "encode_batch",
    "encode_report",
    "encode_stamp",
    "encode_streaks",
    "encode_tracklet",
    "from_candidate",
    "load_schema",
    "make_batch",
    "packet_header",
    "packet_problems",
    "plain",
    "read_head",
    "read_packet",
    "read_packets",
    "reader_schema",
    "schema_text",
    "split_batch",
    "split_header",
    "stamp_names",
    "write_packet",
    "writer_schema",
    "writer_schema_text",
]
