"""Precisions of exported models: what each costs is measured on the pair's own trajectories."""

from obclip.export.quantise.report import QuantisationReport
from obclip.export.quantise.run import PRECISIONS, quantise
from obclip.export.quantise.trajectories import Trajectory, trajectories
from obclip.export.quantise.verdict import Verdict

__all__ = ["PRECISIONS", "QuantisationReport", "Trajectory", "Verdict", "quantise", "trajectories"]
