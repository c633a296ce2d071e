"""Tables, pictures and summaries, drawn from results.json alone (no model library is imported)."""

from lmm_forget.report.load import Sweep, Unfinished, load_results, load_sweep
from lmm_forget.report.rows import Row, notes, sweep_rows
from lmm_forget.report.table import render

__all__ = ["Row", "Sweep", "Unfinished", "load_results", "load_sweep", "notes", "render", "sweep_rows"]
