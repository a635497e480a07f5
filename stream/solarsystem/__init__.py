"""Solar system: what moves among the detections of a night."""

from stream.solarsystem.tracklets import LINK_DTYPE, LinkSettings, link_tracklets

__all__ = ["LINK_DTYPE", "LinkSettings", "link_tracklets"]
