"""Training of one stage: batches, precision, the LightningModule, the fit, and what is logged meanwhile."""
