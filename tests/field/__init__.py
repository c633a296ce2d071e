"""Kinds of trouble that users of neighbouring projects reported, tried on this one with inputs of its own.

README.md lists them: number, kind, the public thread where it was reported, and the test here. Every test says in its
docstring what happened elsewhere and what is right. Whole runs are shared between tests where they can be.
"""
