"""Language models: loading, THE forward over a Batch, the probe, adapters, heads and sampling."""
