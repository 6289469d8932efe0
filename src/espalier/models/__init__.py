"""Language models: loading, THE forward over a Batch, the probe, adapters, heads and sampling."""

from espalier.noise import quiet_loggers

quiet_loggers()  # before peft and others are imported below here, and speak
