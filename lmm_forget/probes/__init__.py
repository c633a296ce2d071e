"""Why a model forgets: how its next-token distribution shifts, and which blocks write the shift."""
