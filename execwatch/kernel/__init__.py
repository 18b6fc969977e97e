"""Load, attach, read: everything that speaks to the running kernel.

With :mod:`execwatch.build` the only place that uses ctypes, ``/sys`` or tracefs.
"""
