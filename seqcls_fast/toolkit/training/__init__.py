"""The training loop, and all that lets it stop and go on."""
