"""The product store: names, files of every kind, what the science reads from it, and the archive of alerts."""

from stream.archive.alert_tables import write_alert_tables
from stream.archive.depths import StoreDepths
from stream.archive.inputs import BoundedCache, StoreInputs
from stream.archive.manifest import (
    archived_alerts,
    make_manifest,
    public_part,
    read_manifest,
    same_statement,
    write_manifest,
)
from stream.archive.packets import (
    NightShelf,
    PacketArchive,
    Sent,
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
    "NightShelf",
    "PacketArchive",
    "ProductStore",
    "Sent",
    "StoreDepths",
    "StoreInputs",
    "alert_folder",
    "alert_index",
    "alert_path",
    "archived_alerts",
    "archived_nights",
    "calibration_path",
    "find_science_products",
    "iterate_alerts",
    "iterate_packets",
    "make_manifest",
    "night_of_candid",
    "parse_science_name",
    "public_part",
    "read_alert",
    "read_manifest",
    "read_mask",
    "read_quality_record",
    "read_science_product",
    "recall_history",
    "reference_path",
    "same_statement",
    "science_path",
    "write_alert",
    "write_alert_tables",
    "write_manifest",
    "write_products",
]
