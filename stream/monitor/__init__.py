"""What is late, what failed, what was found: figures of the running system and summaries of a night."""

from stream.monitor.counts import Monitor, NightCounts
from stream.monitor.latency import percentiles

__all__ = ["Monitor", "NightCounts", "percentiles"]
