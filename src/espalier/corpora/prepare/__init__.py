"""Raw corpora -> records, one file a family of corpora; `corpora` is the table of all of them."""
