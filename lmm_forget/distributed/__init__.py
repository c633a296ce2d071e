"""The processes that share one job: ranks, workers, requests to stop, the heartbeat."""
