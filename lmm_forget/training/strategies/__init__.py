"""How several devices share one stage's training: one file per strategy, chosen by name from conf/strategy/."""
