"""A real Slurm on this machine, to rehearse jobs on and to test with."""

from launch.lab.lab import DaemonStatus, Lab, LabStatus
from launch.lab.settings import LabFailed, LabUnavailable

__all__ = ["DaemonStatus", "Lab", "LabFailed", "LabStatus", "LabUnavailable"]
