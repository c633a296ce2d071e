"""Training of one stage: micro-batches, precision, the LightningModule, callbacks and strategies."""
