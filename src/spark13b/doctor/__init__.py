"""What this machine has and lacks: `examine` looks at one part after the other and survives whatever is missing.

installation.py, machine.py, ascend.py, ports.py and fit.py have the parts; probe.py is run in a process of its own,
for MindSpore may crash or hang.
"""

from spark13b.doctor.examine import examine
from spark13b.doctor.findings import Finding, State

__all__ = ["Finding", "State", "examine"]
