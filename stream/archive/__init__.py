"""The product store: names, files of every kind, what the science reads from it, and the archive of alerts."""

from stream.archive.inputs import BoundedCache, StoreInputs
from stream.archive.packets import (
    PacketArchive,
    alert_index,
    archived_nights,
    iterate_alerts,
    iterate_packets,
    night_of_candid,
    read_alert,
    write_alert,
)
from stream.archive.paths import (
    alert_folder,
    alert_path,
    calibration_path,
    parse_science_name,
    reference_path,
    science_path,
)
from stream.archive.products import (
    find_science_products,
    read_mask,
    read_quality_record,
    read_science_product,
    write_products,
)
from stream.archive.recall import recall_history
from stream.archive.store import ProductStore

__all__ = [
    "BoundedCache",
    "PacketArchive",
    "ProductStore",
    "StoreInputs",
    "alert_folder",
    "alert_index",
    "alert_path",
    "archived_nights",
    "calibration_path",
    "find_science_products",
    "iterate_alerts",
    "iterate_packets",
    "night_of_candid",
    "parse_science_name",
    "read_alert",
    "read_mask",
    "read_quality_record",
    "read_science_product",
    "recall_history",
    "reference_path",
    "science_path",
    "write_alert",
    "write_products",
]
