"""What is late, what failed, what was found: figures of the running system and summaries of a night."""

from stream.monitor.counts import Monitor, NightCounts
from stream.monitor.latency import latency_report, percentiles, slow_stage, stage_latencies
from stream.monitor.plots import plot_night
from stream.monitor.recovery import Injected, recovery

__all__ = [
    "Injected",
    "Monitor",
    "NightCounts",
    "latency_report",
    "percentiles",
    "plot_night",
    "recovery",
    "slow_stage",
    "stage_latencies",
]
