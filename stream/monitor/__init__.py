"""What is late, what failed, what was found: figures of the running system and summaries of a night."""

from stream.monitor.counts import Monitor, NightCounts
from stream.monitor.latency import percentiles
from stream.monitor.plots import plot_night
from stream.monitor.recovery import Injected, recovery

__all__ = ["Injected", "Monitor", "NightCounts", "percentiles", "plot_night", "recovery"]
