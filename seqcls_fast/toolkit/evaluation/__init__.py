"""How good the predictions are, how far they can be trusted, and pages and pictures that say so."""
