"""Scorers: pure functions of an answer and its sample; every score is in 0..1."""
