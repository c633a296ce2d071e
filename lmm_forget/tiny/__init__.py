"""Tiny models and synthetic toy tasks: small generated images in place of the paper's skills and benchmarks.

Their scores show how this software and its recipes behave on a laptop; they are not scores of the paper's benchmarks.
Every task's recorded name starts with `tiny_`, so that the two are not confused.
"""
