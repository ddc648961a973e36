"""Hosts on one machine: network namespaces with names, addresses and links of limited rate.

For integration tests and benchmarks of what happens between hosts; not part of the wheel. Needs
root, Linux and pyroute2, and no system package. ``python -m testbed --help``.
"""

from testbed.hosts import Hosts, NotAvailable

__all__ = ["Hosts", "NotAvailable"]
