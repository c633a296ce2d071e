"""Scorers: pure functions of an answer and its sample; every score lies in 0..1."""
