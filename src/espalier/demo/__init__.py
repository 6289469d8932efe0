"""The demo: a small world of facts and the files that the whole chain is shown on."""
