"""Our packets in the brokers' own clients: fink-client and ampel-ztf, as the package index has them today.

    python ops/bench/brokers.py [--store URL] [--keep FOLDER] [--json]

Each client is installed into an environment of its own (they pin what they like) and reads the same folder of packets
with its own decoding code: Fink's ``AlertReader``, AMPEL's ``ZiAlertSupplier``, its data point shaper
and id mapper, and BSON, which its database takes. What a client read is compared with what was written, number by
number. Without ``--store`` the packets are synthetic, both signs, with and without histories.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream.alert import emit_packet, read_packet
from stream.alert.synthetic import synthetic_batch
from stream.archive import ProductStore, iterate_packets

CLIENTS = {
    "fink": ["fink-client"],
    "ampel": ["ampel-ztf", "ampel-alerts"],
}

# What runs in the client's environment: folder in, one JSON object out: candid -> what the client made of it.
FINK = """
import glob, json, sys
from fink_client.avro_utils import AlertReader
reader = AlertReader(sys.argv[1])
alerts = reader.to_list()
assert len(reader.to_pandas()) == len(alerts)
one = AlertReader(sorted(glob.glob(sys.argv[1] + "/*.avro"))[0]).to_list()
assert len(one) == 1
print(json.dumps({str(a["candid"]): {
    "candidate": a["candidate"], "objectId": a["objectId"],
    "detections": [r["candid"] for r in a["prv_candidates"] or [] if r["candid"] is not None],
    "limits": [r["diffmaglim"] for r in a["prv_candidates"] or [] if r["candid"] is None],
    "forced": [r["forcediffimflux"] for r in a["fp_hists"] or []],
} for a in alerts}, allow_nan=False))
"""
AMPEL = """
import glob, json, sys
from fastavro import reader
from ampel.ztf.alert.ZiAlertSupplier import ZiAlertSupplier
from ampel.ztf.ingest.ZiDataPointShaper import ZiDataPointShaperBase
from ampel.ztf.util.ZTFIdMapper import to_ampel_id, to_ztf_id
import bson
found = {}
for path in sorted(glob.glob(sys.argv[1] + "/*.avro")):
    with open(path, "rb") as file:
        record = next(reader(file))  # ampel.alert.BaseAlertSupplier's own line
    alert = ZiAlertSupplier.shape_alert_dict(record)
    points = [dict(p) for p in alert.datapoints]
    first = dict(points[0])
    shaped = ZiDataPointShaperBase().process([dict(p) for p in alert.datapoints], alert.stock)
    assert len({p["id"] for p in shaped}) == len(shaped), "two data points with one id"
    for point in shaped:
        bson.encode({**point, "tag": list(point["tag"])})
    assert to_ztf_id(alert.stock) == record["objectId"]
    found[str(alert.id)] = {
        "candidate": first, "objectId": to_ztf_id(alert.stock),
        "detections": [p["candid"] for p in points[1:] if p.get("candid") is not None],
        "limits": [p["diffmaglim"] for p in points[1:] if p.get("candid") is None],
    }
print(json.dumps(found, allow_nan=False))
"""
SCRIPTS = {"fink": FINK, "ampel": AMPEL}


def write_packets(folder: Path, store: str | None) -> dict[str, dict[str, Any]]:
    """Packets as files, and what is in them by candid."""
    if store:
        packets = [packet for _, packet in iterate_packets(ProductStore(store))]
    else:
        batch = synthetic_batch(40)
        items = list(batch.items)
        items[0] = replace(items[0], prv_candidates=None, fp_hists=None)
        items[1] = replace(items[1], prv_candidates=None)
        packets = [emit_packet(item, batch, {"published": 1.6e9}) for item in items]
    written = {}
    for packet in packets:
        record = read_packet(packet)
        (folder / f"{record['candid']}.avro").write_bytes(packet)
        rows = record["prv_candidates"] or []
        written[str(record["candid"])] = {
            "candidate": record["candidate"],
            "objectId": record["objectId"],
            "detections": [row["candid"] for row in rows if row["candid"] is not None],
            "limits": [row["diffmaglim"] for row in rows if row["candid"] is None],
            "forced": [row["forcediffimflux"] for row in record["fp_hists"] or []],
        }
    return written


def read_with(client: str, folder: Path, home: Path) -> tuple[dict[str, Any], list[str]]:
    """What a client reads, and its packages' versions."""
    python = home / client / "bin" / "python"
    if not python.exists():
        venv.create(home / client, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *CLIENTS[client]], check=True)
    frozen = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    versions = [line for line in frozen.splitlines() if line.split("==")[0].lower() in (*CLIENTS[client], "fastavro")]
    done = subprocess.run([python, "-c", SCRIPTS[client], folder], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{client} cannot read our packets:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1]), versions


def differences(written: dict[str, Any], read: dict[str, Any]) -> list[str]:
    """What a client did not read as it was written."""
    wrong = [f"{candid} was not read" for candid in written.keys() - read.keys()]
    wrong += [f"{candid} was never written" for candid in read.keys() - written.keys()]
    for candid in written.keys() & read.keys():
        for key, value in read[candid].items():
            if written[candid][key] != value:
                wrong.append(f"{candid}: {key} differs")
    return wrong


def main() -> int:
    """Run every client; exit status 1 where one of them reads anything wrongly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", help="a product store whose alert archive is read instead of synthetic packets")
    parser.add_argument("--keep", type=Path, help="folder in which the clients' environments stay for the next run")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ztf-brokers-") as scratch:
        home = options.keep or Path(scratch)
        folder = Path(scratch) / "packets"
        folder.mkdir()
        written = write_packets(folder, options.store)
        for client in CLIENTS:
            read, versions = read_with(client, folder, home)
            wrong = differences(written, read)
            figures[client] = {"versions": versions, "packets": len(read), "wrong": wrong}
            if not options.json:
                print(f"{client}: {len(read)} of {len(written)} packets read as written ({', '.join(versions)})")
                print("\n".join(wrong))
    if options.json:
        print(json.dumps(figures))
    return int(any(result["wrong"] for result in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
