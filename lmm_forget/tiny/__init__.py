"""The embedded world: small procedural pictures that stand in for the paper's five skills and eight benchmarks.

Its numbers say how this software and these recipes behave on a laptop. They are not the paper's benchmarks,
and every task's recorded name starts with `tiny_` so that nobody can take one for the other.
"""
