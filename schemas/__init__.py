"""Avro schemas, one file a record; every version ever published stays. Read them with ``stream.alert.schema``."""
