"""From what a bot posts to commands for the ledger."""
