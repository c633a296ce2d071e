"""The command line: one file per command, each with a `COMMAND` that describes it and a function that does it.

`lmm-forget --help` and tab completion import every command's file. What a command needs is therefore imported inside
its functions, so that the list of commands appears at once, without torch.
"""
