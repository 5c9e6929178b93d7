"""A whole cluster of real, detached processes on this machine: start, repair, list, stop (`gfs up`, `down`, `ps`…).

Knows processes, ports and directories; of the file system it only asks the client library whether it is usable.
"""

from gfsmount.localcluster.cluster import LocalCluster, ProcessState
from gfsmount.localcluster.description import UpOptions
from gfsmount.localcluster.layout import ClusterSpec, Layout

__all__ = ["ClusterSpec", "Layout", "LocalCluster", "ProcessState", "UpOptions"]
