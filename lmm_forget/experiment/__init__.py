"""One job from its resolved configuration to its results: context, stages, records."""
